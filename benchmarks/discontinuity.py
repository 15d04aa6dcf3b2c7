"""Bias of gradient estimators where costs or dynamics jump.

    python -m benchmarks.discontinuity                             # a table on the terminal
    python -m benchmarks.discontinuity --csv d.csv --png d.png     # both; goes on with a d.csv
    python -m benchmarks.discontinuity --quick

*The table*: for each problem of :mod:`benchmarks.jumps`, the bias of the first gradient of a new
manager, and that of gradients 21 to 40 at the same parameters, as a share of the true gradient,
with standard errors; and the standard deviation of one gradient. "AoBG" is the estimator of Suh et
al. (2022, "Do differentiable simulators give better policy gradients?"), with the tolerance gamma
that has the least mean squared error on that problem, of 12.

*The picture*: the same for a cost that is a sigmoid, against its steepness. AoBG's gamma is the one
with the least mean squared error over the whole axis. "Switch" is LR wherever RP and LR differ by c
standard errors, else their inverse-variance mixture, with the best c. It stands for DDCG (Onoda et
al. 2026, "Does 'Do differentiable simulators give better policy gradients?' give better policy
gradients?"), a switch on a test with one hyperparameter; it is not their test.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal
from tqdm import tqdm

from benchmarks.jumps import PROBLEMS, Problem, truth
from lightning_proppo import PropagationManager
from proppo_agents.figures.experiment import Row, write_table
from proppo_agents.figures.style import BLACK, BLUE, GREEN, grid, new_figure, save

FIELDS = (
    "problem",
    "estimator",
    "particles",
    "truth",
    "truth_error",
    "first",
    "first_error",
    "later",
    "later_error",
    "later_std",
)
# Name: estimator, options, and whether it shares samples, for problems that allow it.
ESTIMATORS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "LR": ("LR", {}, False),
    "RP": ("RP", {}, False),
    "TP, no guard": ("TP", {"guard": False}, False),
    "TP": ("TP", {}, False),
    "TP, covariance": ("TP", {"weighting": "covariance"}, False),
    "TP, cross-fitted": ("TP", {"weighting": "cross-fitted"}, False),
    "TPX": ("TPX", {}, False),
    "TP+BIW": ("TP+BIW", {}, True),
    "TP+MESH": ("TP+MESH", {}, True),
}
MEMORY = 20  # gradients before the later ones
TOLERANCES = [10.0 ** (k / 3) for k in range(-8, 4)]  # gamma, as shares of LR's mean
CONFIDENCE = 0.95


def gradient(manager: PropagationManager, problem: Problem, particles: int) -> float:
    """Return one gradient."""
    theta = torch.tensor(problem.parameter, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(particles, dtype=torch.float64)
    costs = problem.costs(theta, zeros, lambda loc, scale: manager.sample(Normal(loc, scale)))
    (found,) = torch.autograd.grad(manager.loss(costs), [theta])
    return found.item()


def rows_of(name: str, problem: Problem, particles: int) -> Tensor:
    """Return each particle's gradient, [P]."""
    manager = PropagationManager(name)
    theta = torch.full((particles,), problem.parameter, dtype=torch.float64, requires_grad=True)
    costs = problem.costs(
        theta,
        torch.zeros(particles, dtype=torch.float64),
        lambda loc, scale: manager.sample(Normal(loc, scale)),
    )
    (found,) = torch.autograd.grad(manager.loss(costs), [theta])
    return found * particles


def alpha_order(lr: Tensor, rp: Tensor, tolerance: float) -> Tensor:
    r"""Return the alpha-order gradient (Suh et al. 2022, Sec. 4), of rows [..., P].

    RP's weight is that of inverse variances, unless the bias that it may bring, the difference of
    both means and LR's confidence interval :math:`\varepsilon` (Bernstein's), exceeds the
    tolerance.
    """
    particles = lr.shape[-1]
    zeroth, first = lr.mean(-1), rp.mean(-1)
    v0, v1 = lr.var(-1), rp.var(-1)
    largest = (lr - zeroth.unsqueeze(-1)).abs().amax(-1)
    surprise = math.log(2 / (1 - CONFIDENCE))
    epsilon = largest * surprise / (3 * particles)
    epsilon = epsilon + (epsilon.square() + 2 * v0 * surprise / particles).sqrt()
    difference = (first - zeroth).abs()
    alpha = v0 / (v0 + v1)
    allowed = ((tolerance - epsilon) / difference).clamp(0, 1)
    alpha = torch.where(alpha * difference > tolerance - epsilon, allowed, alpha)
    return alpha * first + (1 - alpha) * zeroth


def switched(lr: Tensor, rp: Tensor, errors: float) -> Tensor:
    """Return LR's gradient where RP's differs by so many standard errors; else their mixture."""
    zeroth, first = lr.mean(-1), rp.mean(-1)
    v0, v1 = (x.var(-1) / x.shape[-1] for x in (lr, rp))
    alpha = (v0 / (v0 + v1)) * ((first - zeroth).abs() <= errors * (v0 + v1).sqrt())
    return alpha * first + (1 - alpha) * zeroth


def measure(problem: Problem, name: str, particles: int, runs: int, gradients: int) -> Row:
    """Return the means and errors of one row, without the truth."""
    first, later = [], []
    if name == "AoBG":
        pairs = [
            [rows_of(kind, problem, particles) for kind in ("LR", "RP")]
            for _ in range(runs * (gradients - MEMORY))
        ]
        lr, rp = (torch.stack(rows) for rows in zip(*pairs, strict=True))
        right, _ = known_truth(problem)
        size = lr.mean().abs().item()
        candidates = [alpha_order(lr, rp, gamma * size) for gamma in TOLERANCES]
        first = later = min(candidates, key=lambda x: (x - right).square().mean()).tolist()
    else:
        estimator, options, _ = ESTIMATORS[name]
        for _ in range(runs):
            manager = PropagationManager(estimator, **options)
            found = [gradient(manager, problem, particles) for _ in range(gradients)]
            later += found[MEMORY:]
            first.append(found[0])
        for _ in range(5 * runs):
            first.append(gradient(PropagationManager(estimator, **options), problem, particles))
    row: Row = {"problem": problem.name, "estimator": name, "particles": particles}
    for label, values in (("first", first), ("later", later)):
        numbers = torch.tensor(values, dtype=torch.float64)
        row[label] = numbers.mean().item()
        row[f"{label}_error"] = (numbers.std() / math.sqrt(len(numbers))).item()
    row["later_std"] = numbers.std().item()
    return row


_truths: dict[str, tuple[float, float]] = {}


def known_truth(problem: Problem, particles: int = 4_000_000) -> tuple[float, float]:
    """Return the true gradient and its standard error, computed once."""
    if problem.name not in _truths:
        _truths[problem.name] = truth(problem, particles=particles)
    return _truths[problem.name]


def line(row: Row) -> str:
    """Return a row of the table, with biases in percent of the truth."""
    right = float(row["truth"])
    cells = []
    for label in ("first", "later"):
        bias = 100 * (float(row[label]) - right) / abs(right)
        # The truth has an error of its own.
        error = math.hypot(float(row[f"{label}_error"]), float(row["truth_error"]))
        cells.append(f"{bias:7.1f} +- {100 * error / abs(right):4.1f}")
    spread = 100 * float(row["later_std"]) / abs(right)
    return (
        f"{row['problem']:<20} {int(row['particles']):>5} {row['estimator']:<16} "
        f"{right:8.4f} {cells[0]} {cells[1]} {spread:7.1f}"
    )


def table(settings: argparse.Namespace) -> list[Row]:
    """Print the table; go on with one that was begun."""
    rows: list[Row] = []
    if settings.csv and settings.csv.exists():
        with settings.csv.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {(row["problem"], row["estimator"], int(row["particles"])) for row in rows}
    for row in rows:
        _truths[row["problem"]] = float(row["truth"]), float(row["truth_error"])
    sys.stdout.write(
        f"{'bias, in % of the truth':<20}\n{'problem':<20} {'P':>5} {'estimator':<16} "
        f"{'truth':>8} {'first gradient':>15} {'after 20':>15} {'std, %':>7}\n"
    )
    for row in rows:
        sys.stdout.write(f"{line(row)}\n")
    wanted = [
        (problem, name, particles)
        for particles in settings.particles
        for problem in PROBLEMS
        for name in settings.estimators
        if problem.markov or name == "AoBG" or not ESTIMATORS[name][2]
    ]
    for problem, name, particles in tqdm(wanted, leave=False, disable=None):
        if (problem.name, name, particles) in done:
            continue
        right, error = known_truth(problem, settings.truth_particles)
        torch.manual_seed(settings.seed)
        row = measure(problem, name, particles, settings.runs, settings.gradients)
        rows.append({**row, "truth": right, "truth_error": error})
        sys.stdout.write(f"{line(rows[-1])}\n")
        sys.stdout.flush()
        if settings.csv:
            write_table(settings.csv, FIELDS, rows)
    return rows


# -- the picture -----------------------------------------------------------------------------

MEAN, STD = 0.3, 0.5
PANELS = ("RP", "LR", "TP without the guard", "TP", "AoBG", "switch")


def sigmoid_truth(steepness: float) -> float:
    """Return d/dm of E[sigmoid(s x) + x / 10], x ~ N(m, std^2), by quadrature."""
    if math.isinf(steepness):
        return 0.1 + math.exp(-0.5 * (MEAN / STD) ** 2) / (STD * math.sqrt(2 * math.pi))
    u = torch.linspace(-40, 40, 40_001, dtype=torch.float64)  # of s x: the slope is narrow
    slope = torch.sigmoid(u) * torch.sigmoid(-u)
    density = Normal(MEAN, STD).log_prob(u / steepness).exp()
    return 0.1 + torch.trapezoid(slope * density, u).item()


def sigmoid_estimates(
    steepness: float, particles: int, repetitions: int
) -> dict[str, Callable[[float], Tensor] | Tensor]:
    """Return each estimator's gradients, [R]; for those with a hyperparameter a function of it."""

    def cost(x: Tensor) -> Tensor:
        soft = (x > 0).to(x) if math.isinf(steepness) else torch.sigmoid(steepness * x)
        return soft + 0.1 * x

    noise = torch.randn(repetitions, particles, dtype=torch.float64)
    x = (MEAN + STD * noise).requires_grad_()
    values = cost(x)
    (rp,) = torch.autograd.grad(values.sum(), [x])
    others = (values.sum(1, keepdim=True) - values) / (particles - 1)
    lr = ((values - others) * noise / STD).detach()
    found: dict[str, Callable[[float], Tensor] | Tensor] = {
        "RP": rp.mean(1),
        "LR": lr.mean(1),
        "AoBG": lambda gamma: alpha_order(lr, rp, gamma),
        "switch": lambda errors: switched(lr, rp, errors),
    }
    problem = Problem("sigmoid", MEAN, lambda theta, zeros, draw: cost(draw(zeros + theta, STD)))
    for name, guard in (("TP without the guard", False), ("TP", True)):
        manager = PropagationManager("TP", guard=guard)
        every = [gradient(manager, problem, particles) for _ in range(MEMORY + repetitions)]
        found[name] = torch.tensor(every[MEMORY:], dtype=torch.float64)
    firsts = [gradient(PropagationManager("TP"), problem, particles) for _ in range(repetitions)]
    found["TP, first gradient"] = torch.tensor(firsts, dtype=torch.float64)
    return found


def draw_steepness(particles: int, repetitions: int, points: int) -> Figure:
    """Draw each estimator's mean and spread against the steepness of the cost."""
    steepness = [*torch.logspace(0, 4, points).tolist(), math.inf]
    truths = torch.tensor([sigmoid_truth(s) for s in steepness])
    every = [
        sigmoid_estimates(s, particles, repetitions)
        for s in tqdm(steepness, leave=False, disable=None)
    ]
    chosen = {}
    for name, values in (("AoBG", TOLERANCES), ("switch", [1.0, 2.0, 3.0, 4.0, 5.0])):

        def loss(value: float, name: str = name) -> float:
            errors = [f[name](value) - t for f, t in zip(every, truths, strict=True)]  # type: ignore[operator]
            return torch.stack(errors).square().mean().item()

        chosen[name] = min(values, key=loss)
        for found in every:
            found[name] = found[name](chosen[name])  # type: ignore[operator]
    figure = new_figure(
        9.0,
        4.6,
        r"$\frac{d}{dm}$ E[sigmoid(s x) + x/10], x ~ N(m, 0.5²), at m = 0.3",
        f"{particles} particles; line and band: mean and 95 % of {repetitions} estimates; TP after "
        f"{MEMORY} gradients, dotted: first gradient; AoBG's gamma {chosen['AoBG']:.2g}, the "
        f"switch's c {chosen['switch']:g}, the best of several",
    )
    axes = figure.subplots(2, 3, sharex=True, sharey=True).flatten()
    place = [*steepness[:-1], 4 * steepness[-2]]
    for ax, name in zip(axes, PANELS, strict=True):
        values = torch.stack([f[name] for f in every])  # type: ignore[arg-type]
        low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), 1)
        colour = GREEN if name == "TP" else BLUE
        ax.fill_between(place, low, high, color=colour, alpha=0.25, linewidth=0)
        ax.plot(place, values.mean(1), color=colour, linewidth=1.6)
        if name == "TP":
            firsts = torch.stack([f["TP, first gradient"] for f in every])  # type: ignore[arg-type]
            ax.plot(place, firsts.mean(1), color=colour, linewidth=1.4, linestyle=":")
        ax.plot(place, truths, color=BLACK, linewidth=1.2, linestyle="--", label="truth")
        ax.set_xscale("log")
        ax.set_ylim(-0.1, 1.4)
        ax.set_title(name, fontsize=10)
        ax.set_xticks([1, 100, 10_000, place[-1]], ["1", "100", "$10^4$", "step"])
        grid(ax)
    axes[0].legend(fontsize=8, loc="upper left")
    for ax in axes[3:]:
        ax.set_xlabel("steepness s", fontsize=9)
    return figure


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--particles", type=int, nargs="+", default=[1000, 200])
    parser.add_argument(
        "--estimators",
        nargs="+",
        choices=[*ESTIMATORS, "AoBG"],
        metavar="NAME",
        default=[*ESTIMATORS, "AoBG"],
        help=", ".join([*ESTIMATORS, "AoBG"]),
    )
    parser.add_argument("--runs", type=int, default=10, help="managers for each row (default: 10)")
    parser.add_argument("--gradients", type=int, default=40, help="of each manager (default: 40)")
    parser.add_argument("--truth-particles", type=int, default=4_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, help="write the table there, or go on with it")
    parser.add_argument("--png", type=Path, help="draw the picture there")
    parser.add_argument("--only-picture", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few repetitions, in half a minute")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    if settings.quick:
        settings.particles, settings.runs, settings.gradients = [200], 1, MEMORY + 4
        settings.estimators, settings.truth_particles = ["LR", "RP", "TP"], 400_000
    if not settings.only_picture:
        table(settings)
    if settings.png:
        torch.manual_seed(settings.seed)
        size = (200, 20, 7) if settings.quick else (1000, 300, 21)
        save(draw_steepness(*size), settings.png)


if __name__ == "__main__":
    main()
