"""Fig. 11: Gaussian shaping in many dimensions (Appendix C.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import GSLoss, LRProp, RPProp, TotalProp
from proppo_agents.figures.experiment import Claim, Experiment, Row
from proppo_agents.figures.repetitions import moments
from proppo_agents.figures.style import BLACK, grid, line_style, new_figure
from proppo_envs import ChaoticRNN

FIELDS = ("beta", "paths", "estimator", "mean", "standard_error", "variance", "low", "high")
ESTIMATORS: dict[str, Callable[[], PropagationManager]] = {
    "RP": lambda: PropagationManager(RPProp(detach=False)),
    "LR": lambda: PropagationManager(LRProp()),
    "TP": lambda: PropagationManager(TotalProp()),
    "RP+GS": lambda: PropagationManager(RPProp(detach=False), loss_propagator=GSLoss()),
    "LR+GS": lambda: PropagationManager(LRProp(), loss_propagator=GSLoss()),
    "TP+GS": lambda: PropagationManager(TotalProp(), loss_propagator=GSLoss()),
}
# A greatest over a least variance; what is linear grows by far more.
CONSTANT = 3.0
FAR = 1e6  # so much above all others RP is not drawn
CHAOS = 2.5  # beta from which on the network is called chaotic


@dataclass(frozen=True)
class Settings:
    """Of the experiment.

    Attributes:
        betas: at which it is measured.
        paths: D, the numbers of parallel paths.
        repetitions: N, independent gradients of each estimator.
        particles: P.
        horizon: H.
    """

    betas: tuple[float, ...] = (2.0, 2.5, 3.5)
    paths: tuple[int, ...] = (1, 3, 10, 30, 60, 100)
    repetitions: int = 100
    particles: int = 1000
    horizon: int = 100

    def __str__(self) -> str:
        """Return them in words."""
        return (
            f"batch {self.particles}, horizon {self.horizon}, {self.repetitions} independent "
            "repetitions; bars: 95 % intervals (bootstrap)"
        )


def other_costs(system: ChaoticRNN, beta: float, paths: int, particles: int) -> Tensor:
    """Return what the paths after the first add to the costs.

    Args:
        system: one path; its weights are each path's own, so that no gradient goes there.
        beta: of every path.
        paths: D, the greatest number.
        particles: P.

    Returns:
        [D, P]: the sum of the costs of the paths 2 to d, in row d - 1; the first is zero.
    """
    x = system.initial_state((paths - 1) * particles) if paths > 1 else torch.empty(0, 2)
    for _ in range(system.horizon):
        x = system.mean(x, x.new_tensor(beta)) + system.noise_std * torch.randn_like(x)
    costs = system.cost(x).view(paths - 1, particles)
    return torch.cat((costs.new_zeros(1, particles), costs.cumsum(0)))


def path_gradient(
    system: ChaoticRNN, name: str, beta: float, particles: int
) -> Callable[[Tensor], float]:
    """Return a function that computes one gradient, through the first path.

    It takes what the other paths add to the costs, [P].
    """
    parameter = torch.tensor([beta], requires_grad=True)
    manager = ESTIMATORS[name]()

    def gradient(others: Tensor) -> float:
        x = system.initial_state(particles)
        for _ in range(system.horizon):
            x = manager.sample(system.transition(x, parameter))
        # Gaussian shaping redraws the first path's last state, and nothing else.
        manager.append_loss(x, lossfunc=lambda x: system.cost(x) + others)
        return torch.autograd.grad(manager.loss(), parameter)[0].item()

    return gradient


def compute(settings: Settings, bar: tqdm) -> Iterator[Row]:
    """Yield each beta's, number of paths' and estimator's mean and variance.

    The other paths are drawn once in a repetition. As every gradient has first paths of its own,
    and a score's mean is zero whatever the others cost, gradients stay uncorrelated.
    """
    system = ChaoticRNN(horizon=settings.horizon)
    bar.reset(len(settings.betas) * settings.repetitions)
    for beta in settings.betas:
        gradients = {
            name: path_gradient(system, name, beta, settings.particles) for name in ESTIMATORS
        }
        values: dict[tuple[int, str], list[float]] = {
            (paths, name): [] for paths in settings.paths for name in ESTIMATORS
        }
        for _ in range(settings.repetitions):
            others = other_costs(system, beta, max(settings.paths), settings.particles)
            for (paths, name), own in values.items():
                own.append(gradients[name](others[paths - 1]))
            bar.update()
        for (paths, name), own in values.items():
            yield {"beta": beta, "paths": paths, "estimator": name, **moments(own)}


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
    for beta in betas:
        for position, total in enumerate(found[beta, "TP"]):
            others = [found[beta, name][position] for name in ESTIMATORS if name[:2] != "TP"]
            best = min(others, key=lambda row: row["variance"])
            if total["low"] > best["high"]:
                above.append(f"{best['estimator']} at beta {beta}, {total['paths']} paths")
    return Claim(
        "TP, without shaping, outperforms all others, those with shaping too",
        not above,
        "beaten by " + "; ".join(above) if above else "everywhere",
    )


def draw(rows: list[Row], note: str) -> Figure:
    """Draw the variances against the number of paths, a panel for each beta."""
    found = curves(rows)
    betas = list(dict.fromkeys(row["beta"] for row in rows))
    figure = new_figure(
        3.8 * len(betas) + 1.2, 4.6, "Fig. 11: variance of the gradient through one path of D", note
    )
    panels = figure.subplots(1, len(betas), squeeze=False)[0]
    for axes, beta in zip(panels, betas, strict=True):
        for name in ESTIMATORS:
            own = found[beta, name]
            paths = [row["paths"] for row in own]
            variances = [row["variance"] for row in own]
            style = line_style(name)
            bars = [
                [row["variance"] - row["low"] for row in own],
                [row["high"] - row["variance"] for row in own],
            ]
            axes.errorbar(paths, variances, yerr=bars, elinewidth=1.0, capsize=2, **style)
        line = lr_line(found, beta)
        between = np.geomspace(min(paths), max(paths), 50)
        fitted = line.intercept + line.slope * between
        axes.plot(between, fitted, ":", color=BLACK, label="straight line through LR's")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"beta = {beta}", fontsize=10)
        axes.set_xlabel("parallel paths D")
        grid(axes)
        _cut_off_rp(axes, found, beta)
    panels[0].set_ylabel("variance of the gradient")
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _cut_off_rp(axes: Axes, found: Curves, beta: float) -> None:
    """Let the others have the panel where RP is too far above them, and say where it is."""
    values = {
        kind: [
            row["variance"]
            for name in ESTIMATORS
            if (name[:2] == "RP") is kind
            for row in found[beta, name]
        ]
        for kind in (True, False)
    }
    least, most = min(values[False]), max(values[False])
    if min(values[True]) < FAR * most:
        return
    axes.set_ylim(least / 3, 30 * most)
    powers = [round(np.log10(bound(values[True]))) for bound in (min, max)]
    axes.annotate(
        f"↑ RP and RP+GS: $10^{{{powers[0]}}}$ to $10^{{{powers[1]}}}$",
        (0.03, 0.96),
        xycoords="axes fraction",
        va="top",
        fontsize=8.5,
        color=line_style("RP")["color"],
    )


EXPERIMENT = Experiment(
    name="11",
    title="Gaussian shaping against the number of parallel paths",
    fields=FIELDS,
    full=Settings(),
    quick=Settings(paths=(1, 10, 50, 100), repetitions=30, particles=100),
    compute=compute,
    draw=draw,
    claims=claims,
)
