"""What the paper says of Fig. 11 (Appendix C.3), held against its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from proppo_agents.figures.experiment import Claim, Row

# A greatest over a least variance; what is linear grows by far more.
CONSTANT = 3.0
CHAOS = 2.5  # beta from which on the network is called chaotic


@dataclass(frozen=True)
class Line:
    """A straight line through variances.

    Attributes:
        slope: for each path more.
        intercept: at no path.
        r_squared: the share of the variances' variation that it accounts for.
    """

    slope: float
    intercept: float
    r_squared: float


def fit_line(paths: Sequence[float], variances: Sequence[float]) -> Line:
    """Return the straight line through variances [N] at numbers of paths [N].

    Variances of equally many values are all off by the same share of themselves, so that it is
    the relative errors whose squares are least. R^2 is weighted in the same way.
    """
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (paths, variances))
    weight = y.reciprocal()
    design = torch.stack((x, torch.ones_like(x)), dim=1)
    solution = torch.linalg.lstsq(weight.unsqueeze(1) * design, (weight * y).unsqueeze(1)).solution
    slope, intercept = solution.squeeze(1).tolist()
    squared = weight.square()
    mean = (squared * y).sum() / squared.sum()
    residual = (squared * (y - slope * x - intercept).square()).sum()
    total = (squared * (y - mean).square()).sum()
    return Line(slope, intercept, (1 - residual / total).item())


Curves = dict[tuple[float, str], list[Row]]


def curves(rows: list[Row]) -> Curves:
    """Return the rows of each beta and estimator, in their order."""
    found: Curves = {}
    for row in rows:
        found.setdefault((row["beta"], row["estimator"]), []).append(row)
    return found


def spread(own: list[Row]) -> float:
    """Return the greatest variance over the least."""
    variances: list[float] = [row["variance"] for row in own]
    return max(variances) / min(variances)


def claims(rows: list[Row]) -> list[Claim]:
    """Check how each estimator's variance depends on the number of paths."""
    found = curves(rows)
    betas = list(dict.fromkeys(row["beta"] for row in rows))
    calm = min(betas)
    return [
        _linear(found, betas),
        _constant("LR+GS's variance stays constant", found, [(beta, "LR+GS") for beta in betas]),
        _constant(
            "RP's variance stays constant, with GS or without, where it is of use",
            found,
            [(calm, "RP"), (calm, "RP+GS")],
        ),
        _inaccurate(found, betas),
        _constant("TP's variance stays constant where RP is accurate", found, [(calm, "TP")]),
        _growing(found, betas),
        _total_propagation(found, betas, ""),
        _total_propagation(found, betas, "+GS"),
        _best_of_all(found, betas),
    ]


def lr_line(found: Curves, beta: float) -> Line:
    """Return the straight line through LR's variances at a beta."""
    own = found[beta, "LR"]
    return fit_line([row["paths"] for row in own], [row["variance"] for row in own])


def _linear(found: Curves, betas: list[float]) -> Claim:
    lines = {beta: lr_line(found, beta) for beta in betas}
    growth = {beta: _growth(found[beta, "LR"]) for beta in betas}
    told = ", ".join(
        f"at {beta}: {line.slope:.2g} a path, R² {line.r_squared:.3f}, {growth[beta]:.3g} times "
        "from the fewest paths to the most"
        for beta, line in lines.items()
    )
    # A line fits a constant's noise too, so that it has to rise.
    return Claim(
        "LR's variance increases linearly with the number of paths",
        all(line.r_squared > 0.9 and growth[beta] > CONSTANT for beta, line in lines.items()),
        told,
    )


def _growth(own: list[Row]) -> float:
    """Return the variance with the most paths over that with the fewest."""
    most: float = own[-1]["variance"]
    fewest: float = own[0]["variance"]
    return most / fewest


def _inaccurate(found: Curves, betas: list[float]) -> Claim:
    worse = {
        beta: min(
            rp["variance"] / tp["variance"]
            for rp, tp in zip(found[beta, "RP"], found[beta, "TP"], strict=True)
        )
        for beta in betas
        if beta >= CHAOS
    }
    told = ", ".join(f"{ratio:.2g} at {beta}" for beta, ratio in worse.items())
    return Claim(
        "RP is inaccurate in chaos",
        all(ratio > 100 for ratio in worse.values()),
        f"times TP's variance, at least: {told}",
    )


def _growing(found: Curves, betas: list[float]) -> Claim:
    growth = {
        (beta, name): _growth(found[beta, name])
        for beta in betas
        if beta >= CHAOS
        for name in ("LR", "TP")
    }
    told = ", ".join(f"{name}'s at {beta} {value:.3g}" for (beta, name), value in growth.items())
    return Claim(
        "in chaos TP's variance grows as LR's does",
        all(value > CONSTANT for value in growth.values()),
        f"times, from the fewest paths to the most: {told}",
    )


def _constant(text: str, found: Curves, chosen: list[tuple[float, str]]) -> Claim:
    spreads = {key: spread(found[key]) for key in chosen}
    told = ", ".join(f"{name} at {beta}: {value:.2f}" for (beta, name), value in spreads.items())
    holds = all(value < CONSTANT for value in spreads.values())
    return Claim(text, holds, f"greatest over least: {told}")


def _total_propagation(found: Curves, betas: list[float], family: str) -> Claim:
    """Compare TP with RP and LR of its own kind."""
    above, ratios = [], []
    for beta in betas:
        columns = (found[beta, f"{name}{family}"] for name in ("TP", "RP", "LR"))
        for total, *others in zip(*columns, strict=True):
            best = min(others, key=lambda row: row["variance"])
            ratios.append(total["variance"] / best["variance"])
            if total["low"] > best["high"]:
                above.append((beta, total["paths"]))
    return Claim(
        f"TP{family} is at or under the better of RP{family} and LR{family}, to within 95 % "
        "intervals",
        not above,
        f"{min(ratios):.2g} to {max(ratios):.2g} times the better one's variance"
        + (f"; above at beta and paths {above}" if above else ""),
    )


def _best_of_all(found: Curves, betas: list[float]) -> Claim:
    """Compare TP without shaping with everything, shaped estimators too."""
    above = []
    names = list(dict.fromkeys(name for _, name in found))
    for beta in betas:
        for position, total in enumerate(found[beta, "TP"]):
            others = [found[beta, name][position] for name in names if name[:2] != "TP"]
            best = min(others, key=lambda row: row["variance"])
            if total["low"] > best["high"]:
                above.append(f"{best['estimator']} at beta {beta}, {total['paths']} paths")
    return Claim(
        "TP, without shaping, outperforms all others, those with shaping too",
        not above,
        "beaten by " + "; ".join(above) if above else "everywhere",
    )
