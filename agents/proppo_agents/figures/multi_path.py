"""Fig. 11: Gaussian shaping in many dimensions (Appendix C.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import GSLoss, LRProp, RPProp, TotalProp
from proppo_agents.figures.experiment import Experiment, Row
from proppo_agents.figures.multi_path_claims import Curves, claims, curves, lr_line
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
FAR = 1e6  # so much above all others RP is not drawn


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
