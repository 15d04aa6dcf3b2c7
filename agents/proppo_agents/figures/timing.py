"""Figs. 5 and 6: time of a gradient against batch size and dimension (Appendix B.3).

A recurrent network with as many neurons as dimensions, horizon 10, differentiated with respect to
its inverse temperature: forward and backward. Estimators take turns; shown are medians of the time
with quartiles, and the ratio to plain PyTorch (reparameterized, without this package), the median
of the turns' ratios.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal
from tqdm import tqdm

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import RPProp
from proppo_agents.figures.experiment import Claim, Experiment, Row
from proppo_agents.figures.memory import split_by_memory
from proppo_agents.figures.style import grid, line_style, new_figure, plain_numbers
from proppo_agents.figures.turns import Gradient, quartiles, ratio, times

HORIZON, NOISE, BETA = 10, 1e-3, 2.5
PLAIN = "plain PyTorch"
FIELDS = ("sweep", "batch", "dimension", "estimator", "milliseconds", "low", "high", "ratio")
OURS: dict[str, Callable[[], PropagationManager]] = {
    "RP": lambda: PropagationManager("RP"),
    "RP, detached": lambda: PropagationManager(RPProp()),
    "LR": lambda: PropagationManager("LR"),
    "TP": lambda: PropagationManager("TP"),
    "TPX": lambda: PropagationManager("TPX"),
}
# How many arrays of all particles' states a gradient holds at once: TP takes 15 GB for 100,000
# particles of 500 dimensions.
ARRAYS = 75


@dataclass(frozen=True)
class Settings:
    """Of a sweep.

    Attributes:
        sweep: what differs, ``"batch"`` or ``"dimension"``.
        values: its values. The smallest batch is 2: a leave-one-out baseline needs another
            particle.
        fixed: the other one's value.
        repetitions: N, turns.
        seconds: after which no turn at a size is begun.
    """

    sweep: str
    values: tuple[int, ...]
    fixed: int
    repetitions: int = 20
    seconds: float = 60.0

    def sizes(self) -> list[tuple[int, int]]:
        """Return the batch sizes with their dimensions."""
        if self.sweep == "batch":
            return [(value, self.fixed) for value in self.values]
        return [(self.fixed, value) for value in self.values]

    def __str__(self) -> str:
        """Return them in words."""
        other = "dimension" if self.sweep == "batch" else "batch"
        return (
            f"{other} {self.fixed}, horizon {HORIZON}, threads: {torch.get_num_threads()}; medians "
            f"of {self.repetitions} turns, fewer if they take over {self.seconds:.0f} s; bands: "
            "quartiles"
        )


class Network:
    """Weights of the size at which the sigmoid neither dies nor saturates, and a start."""

    def __init__(self, batch: int, dimension: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(dimension, dimension, generator=generator) / math.sqrt(dimension)
        self.weight = weight.to(device)
        self.start = torch.full((batch, dimension), 0.5, device=device)
        self.beta = torch.tensor([BETA], device=device, requires_grad=True)
        self.std = torch.full((), NOISE, device=device)

    def mean(self, x: Tensor, beta: Tensor) -> Tensor:
        """Return the next state without its noise, [P, D]."""
        return torch.sigmoid(beta * (x @ self.weight))

    @staticmethod
    def cost(x: Tensor) -> Tensor:
        """Return one cost for each particle, [P]."""
        return 0.5 * (1 - x).square().mean(1)


def plain_gradient(network: Network) -> Gradient:
    """Return a function that computes one gradient with PyTorch alone."""

    def gradient() -> Tensor:
        x = network.start
        for _ in range(HORIZON):
            x = Normal(network.mean(x, network.beta), network.std).rsample()
        return torch.autograd.grad(network.cost(x).mean(), network.beta)[0]

    return gradient


def our_gradient(network: Network, manager: PropagationManager) -> Gradient:
    """Return a function that computes one gradient with our manager."""

    def gradient() -> Tensor:
        x = network.start
        for _ in range(HORIZON):
            x = manager.sample(Normal(network.mean(x, network.beta), network.std))
        return torch.autograd.grad(manager.loss(network.cost(x)), network.beta)[0]

    return gradient


def all_gradients(network: Network) -> dict[str, Gradient]:
    """Return plain PyTorch's gradient and all of ours, by name."""
    ours = {name: our_gradient(network, make()) for name, make in OURS.items()}
    return {PLAIN: plain_gradient(network), **ours}


def summary(sweep: str, batch: int, dimension: int, found: Mapping[str, list[float]]) -> list[Row]:
    """Return a row for each estimator: the median with quartiles, and the ratio to plain PyTorch.

    Args:
        sweep: what differs.
        batch: P.
        dimension: D.
        found: seconds, from :func:`times`.
    """
    rows = []
    for name, seconds in found.items():
        row: Row = {"sweep": sweep, "batch": batch, "dimension": dimension, "estimator": name}
        rows.append(row | quartiles(seconds) | {"ratio": ratio(seconds, found[PLAIN])})
    return rows


def compute(settings: Settings, bar: tqdm) -> Iterator[Row]:
    """Yield each size's and estimator's time."""
    device = torch.device("cpu")
    bar.reset(len(settings.values) * settings.repetitions)
    for batch, dimension in settings.sizes():
        gradients = all_gradients(Network(batch, dimension, device))
        found = times(gradients, settings.repetitions, device, bar, settings.seconds)
        yield from summary(settings.sweep, batch, dimension, found)


def fit(settings: Settings) -> tuple[Settings, list[str]]:
    """Leave out the sizes that this machine has no memory for."""
    needed = {
        value: 4.0 * ARRAYS * batch * dimension
        for value, (batch, dimension) in zip(settings.values, settings.sizes(), strict=True)
    }
    fitting, left_out = split_by_memory(needed)
    told = [f"{settings.sweep} {line}" for line in left_out]
    return dataclasses.replace(settings, values=tuple(fitting)), told


def claims(rows: list[Row]) -> list[Claim]:
    """Check where the overhead is, and what TP takes."""
    sweep = rows[0]["sweep"]
    sizes = sorted({row[sweep] for row in rows})
    ratios = {(row[sweep], row["estimator"]): row["ratio"] for row in rows}
    least, most = sizes[0], sizes[-1]

    def told(size: int) -> str:
        each = ", ".join(f"{name} {ratios[size, name]:.2f}" for name in OURS)
        return f"times plain PyTorch's at {sweep} {size:,}: {each}"

    return [
        Claim(
            "for very small sizes there is a significant overhead",
            ratios[least, "TP"] > 2 and ratios[least, "RP, detached"] > 1.5,
            told(least),
        ),
        Claim(
            "it becomes negligible for large ones",
            ratios[most, "RP"] < 1.2 and ratios[most, "RP, detached"] < 1.2,
            told(most),
        ),
        Claim(
            "for large sizes TP takes about twice the time",
            1.5 < ratios[most, "TP"] < 2.5,
            f"{ratios[most, 'TP']:.2f} times plain PyTorch's",
        ),
    ]


def draw_times(axes: Axes, rows: list[Row], sweep: str) -> None:
    """Draw milliseconds with quartiles against a size."""
    own = [row for row in rows if row["sweep"] == sweep]
    for number, name in enumerate(dict.fromkeys(row["estimator"] for row in own)):
        line = [row for row in own if row["estimator"] == name]
        sizes = [row[sweep] for row in line]
        style = line_style(name, number)
        axes.plot(sizes, [row["milliseconds"] for row in line], **style)
        low, high = ([row[bound] for row in line] for bound in ("low", "high"))
        axes.fill_between(sizes, low, high, color=style["color"], alpha=0.2, linewidth=0)
    _finish(axes, sweep, "milliseconds for one gradient")


def draw_ratios(axes: Axes, rows: list[Row], sweep: str) -> None:
    """Draw the ratios to plain PyTorch against a size."""
    own = [row for row in rows if row["sweep"] == sweep]
    for number, name in enumerate(dict.fromkeys(row["estimator"] for row in own)):
        line = [row for row in own if row["estimator"] == name]
        values = [row["ratio"] for row in line]
        axes.plot([row[sweep] for row in line], values, **line_style(name, number))
    _finish(axes, sweep, "time of a gradient / plain PyTorch's")
    plain_numbers(axes.yaxis)


def _finish(axes: Axes, sweep: str, label: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("batch size (particles)" if sweep == "batch" else "dimension (neurons)")
    axes.set_ylabel(label)
    grid(axes)


def draw(rows: list[Row], note: str) -> Figure:
    """Draw times and ratios side by side."""
    sweep = rows[0]["sweep"]
    name, against = ("5", "batch size") if sweep == "batch" else ("6", "dimension")
    figure = new_figure(10.5, 4.6, f"Fig. {name}: time of a gradient against the {against}", note)
    left, right = figure.subplots(1, 2)
    draw_times(left, rows, sweep)
    draw_ratios(right, rows, sweep)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


BATCH = Experiment(
    name="5",
    title="time of a gradient against batch size",
    fields=FIELDS,
    full=Settings("batch", (2, 10, 100, 1000, 10_000, 100_000), 500),
    quick=Settings("batch", (2, 10, 100, 300), 500, seconds=10.0),
    compute=compute,
    draw=draw,
    claims=claims,
    fit=fit,
)
DIMENSION = Experiment(
    name="6",
    title="time of a gradient against dimension",
    fields=FIELDS,
    full=Settings("dimension", (2, 10, 50, 200, 500, 1000, 2000), 1000),
    quick=Settings("dimension", (2, 10, 50, 200), 1000, seconds=10.0),
    compute=compute,
    draw=draw,
    claims=claims,
    fit=fit,
)
