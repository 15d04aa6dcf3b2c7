"""Fig. 8b: RP's derivative against beta, with the seed held (Appendix C.1)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from proppo_agents.figures.experiment import Claim, Experiment, Row
from proppo_agents.figures.style import BLUE, VERMILLION, grid, new_figure
from proppo_envs import ChaoticRNN

FIELDS = ("beta", "cost", "derivative", "standard_deviation")
CHUNK = 20  # betas at a time: 100 steps of 20 x 1000 particles take about 200 MB


@dataclass(frozen=True)
class Settings:
    """Of the derivative.

    Attributes:
        betas: how many, evenly from 1 to 4.
        particles: P.
        horizon: H.
        seed: of the noise, which is the same at every beta.
    """

    betas: int = 601
    particles: int = 1000
    horizon: int = 100
    seed: int = 0

    def __str__(self) -> str:
        """Return them in words."""
        return (
            f"{self.betas} values of beta, batch {self.particles}, horizon {self.horizon}, the "
            "same noise at every beta"
        )


def derivatives(betas: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return every particle's cost, and its derivative along its path.

    Args:
        betas: [N].
        noise: standard normal, [H, P, 2], the same for every beta.

    Returns:
        The costs and their derivatives with respect to beta, both [N, P].
    """
    system = ChaoticRNN(horizon=len(noise))
    particles = noise.shape[1]
    # One beta for each particle, so that one backward pass keeps the particles' derivatives apart.
    own = betas[:, None, None].expand(len(betas), particles, 1).clone().requires_grad_()
    x = system.initial_state(particles, betas.dtype).expand(len(betas), particles, 2)
    for step in noise:
        x = system.mean(x, own) + system.noise_std * step
    costs = system.cost(x)
    (gradient,) = torch.autograd.grad(costs.sum(), own)
    return costs.detach(), gradient.squeeze(2)


def compute(settings: Settings, bar: tqdm) -> Iterator[Row]:
    """Yield each beta's mean cost, its derivative, and the derivative's spread over particles."""
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (settings.horizon, settings.particles, 2)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    betas = torch.linspace(1.0, 4.0, settings.betas, dtype=torch.float64)
    bar.reset(len(betas))
    for chunk in betas.split(CHUNK):
        costs, gradients = derivatives(chunk, noise)
        columns = (chunk, costs.mean(1), gradients.mean(1), gradients.std(1))
        for values in zip(*(column.tolist() for column in columns), strict=True):
            yield dict(zip(FIELDS, values, strict=True))
        bar.update(len(chunk))


def claims(rows: list[Row]) -> list[Claim]:
    """Check that the derivative is tame before beta 2.5, and wild after it."""

    def between(low: float, high: float) -> list[Row]:
        return [row for row in rows if low <= row["beta"] <= high]

    calm, wild = between(1.0, 2.3), between(2.7, 4.0)
    largest_calm = max(abs(row["derivative"]) for row in calm)
    typical_wild = sorted(abs(row["derivative"]) for row in wild)[len(wild) // 2]
    signs = [row["derivative"] > 0 for row in wild]
    flips = sum(a != b for a, b in itertools.pairwise(signs)) / (len(signs) - 1)
    calm_spread = max(row["standard_deviation"] for row in calm)
    wild_spread = sorted(row["standard_deviation"] for row in wild)[len(wild) // 2]
    return [
        Claim(
            "the derivative is well-behaved before the transition",
            largest_calm < 10,
            f"at most {largest_calm:.2g} in size up to beta 2.3",
        ),
        Claim(
            "beyond beta 2.5 it swings up and down with a large magnitude",
            typical_wild > 1e3 and flips > 0.25,
            f"median size {typical_wild:.2g} from beta 2.7 on; its sign changes between "
            f"{flips:.0%} of neighbours",
        ),
        Claim(
            "its variance explodes",
            wild_spread > 1e6 * calm_spread,
            f"a particle's standard deviation is at most {calm_spread:.2g} up to beta 2.3, and "
            f"{wild_spread:.2g} (median) from beta 2.7 on",
        ),
    ]


def draw(rows: list[Row], note: str) -> Figure:
    """Draw derivative and spread, one above the other."""
    figure = new_figure(8.0, 6.4, "Fig. 8b: RP's derivative in beta, with the seed held", note)
    upper, lower = figure.subplots(2, 1, sharex=True)
    betas = [row["beta"] for row in rows]
    upper.plot(betas, [row["derivative"] for row in rows], color=VERMILLION, linewidth=0.7)
    upper.set_yscale("symlog", linthresh=1.0, linscale=2.0)
    sizes = [0.0, *(sign * 10.0**power for power in (0, 6, 12, 18) for sign in (-1, 1))]
    largest = max(abs(row["derivative"]) for row in rows)
    upper.set_yticks([size for size in sizes if abs(size) <= max(largest, 1.0)])
    upper.set_ylabel("derivative of the mean cost\n(linear between -1 and 1)")
    lower.plot(betas, [row["standard_deviation"] for row in rows], color=BLUE, linewidth=1.0)
    lower.set_yscale("log")
    lower.set_ylabel("standard deviation of\na particle's derivative")
    lower.set_xlabel("inverse temperature beta")
    lower.set_xlim(1.0, 4.0)
    for axes in (upper, lower):
        axes.axvline(2.5, color="0.4", linestyle="--", linewidth=1.0, label="beta = 2.5")
        grid(axes)
    upper.legend(loc="upper left")
    return figure


EXPERIMENT = Experiment(
    name="8b",
    title="RP's derivative against beta, with the seed held",
    fields=FIELDS,
    full=Settings(),
    quick=Settings(betas=121, particles=100),
    compute=compute,
    draw=draw,
    claims=claims,
)
