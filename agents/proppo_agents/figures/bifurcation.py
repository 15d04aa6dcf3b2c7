"""Fig. 8a: where the noiseless chaotic network goes, against beta (Appendix C.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from proppo_agents.figures.experiment import Claim, Experiment, Row
from proppo_agents.figures.style import BLACK, VERMILLION, new_figure
from proppo_envs import ChaoticRNN

FIELDS = ("beta", "x1", "visits")
# States that differ by less are one. A cycle is approached by a factor at each step, slowly near a
# bifurcation; the picture's dots are a thousandth high.
RESOLUTION = 1e-5
CYCLES = (1, 2, 4)


@dataclass(frozen=True)
class Settings:
    """Of the diagram.

    Attributes:
        betas: how many, evenly from 1 to 4.
        steps: T, of each trajectory.
        kept: how many of them are drawn, the last.
    """

    betas: int = 1201
    steps: int = 10_000
    kept: int = 500

    def __str__(self) -> str:
        """Return them in words."""
        return (
            f"{self.betas} values of beta, {self.steps:,} steps without noise from (0.35, 0.55), "
            f"the last {self.kept} drawn"
        )


def trajectories(betas: Tensor, steps: int, kept: int, bar: tqdm) -> Tensor:
    """Return the last states' first coordinate.

    Args:
        betas: [N].
        steps: T, without noise, from the published start.
        kept: K, at most T.
        bar: moves on with every step.

    Returns:
        [K, N].
    """
    system = ChaoticRNN()
    x = system.initial_state(len(betas), betas.dtype)
    last = betas.new_empty(kept, len(betas))
    bar.reset(steps)
    for step in range(steps):
        x = system.mean(x, betas.unsqueeze(1))
        if step >= steps - kept:
            last[step - (steps - kept)] = x[:, 0]
        bar.update()
    return last


def compute(settings: Settings, bar: tqdm) -> Iterator[Row]:
    """Yield the states that each beta's trajectory visits in the end, and how often."""
    betas = torch.linspace(1.0, 4.0, settings.betas, dtype=torch.float64)
    last = trajectories(betas, settings.steps, settings.kept, bar)
    for beta, states in zip(betas.tolist(), last.T, strict=True):
        cells, visits = (states / RESOLUTION).round().unique(return_counts=True)
        for cell, count in zip(cells.tolist(), visits.tolist(), strict=True):
            yield {"beta": round(beta, 6), "x1": round(cell * RESOLUTION, 5), "visits": count}


def periods(rows: list[Row]) -> dict[float, int]:
    """Return how many states each beta's trajectory visits, neighbouring cells taken as one."""
    found: dict[float, int] = {}
    before: dict[float, float] = {}
    for row in rows:
        beta, x1 = row["beta"], row["x1"]
        new = beta not in before or x1 - before[beta] > 1.5 * RESOLUTION
        found[beta] = found.get(beta, 0) + new
        before[beta] = x1
    return found


def claims(rows: list[Row]) -> list[Claim]:
    """Check the order of fixed point, cycles and chaos."""
    found = periods(rows)
    first = {
        period: min((beta for beta, count in found.items() if count == period), default=None)
        for period in CYCLES
    }
    chaotic = [beta for beta, count in found.items() if count > 64]
    onset = min(chaotic, default=float("nan"))
    order = [beta for beta in (*first.values(), onset) if beta is not None]
    return [
        Claim("a fixed point at beta 1", found[min(found)] == 1, f"{found[min(found)]} states"),
        Claim(
            "then oscillation between two states, then further splits, then chaos",
            len(order) == len(CYCLES) + 1 and order == sorted(order),
            ", ".join(f"{period} from {first[period]}" for period in CYCLES)
            + f", over 64 from {onset:.4g}",
        ),
        Claim(
            "the transition to chaos is around beta 2.5",
            2.4 <= onset <= 2.6,
            f"the first beta with over 64 states is {onset:.4g}",
        ),
    ]


def draw(rows: list[Row], note: str) -> Figure:
    """Draw the states as dots."""
    figure = new_figure(8.0, 4.8, "Fig. 8a: bifurcation diagram of the chaotic network", note)
    axes = figure.add_subplot()
    # One pixel each, so that dense bands are told from their edges.
    axes.plot(
        [row["beta"] for row in rows],
        [row["x1"] for row in rows],
        ",",
        color=BLACK,
        alpha=0.25,
        rasterized=True,
    )
    axes.axvline(2.5, color=VERMILLION, linestyle="--", linewidth=1.0, label="beta = 2.5")
    axes.set_xlim(1.0, 4.0)
    axes.set_ylim(0.45, 1.02)
    axes.set_xlabel("inverse temperature beta")
    axes.set_ylabel("first neuron's state x₁")
    axes.legend(loc="upper left")
    return figure


EXPERIMENT = Experiment(
    name="8a",
    title="bifurcation diagram",
    fields=FIELDS,
    full=Settings(),
    quick=Settings(betas=301, steps=2000, kept=200),
    compute=compute,
    draw=draw,
    claims=claims,
)
