"""Fig. 8c: the cost against the start position, in chaos (Appendix C.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from proppo_agents.figures.experiment import Claim, Experiment, Row, silent_bar
from proppo_agents.figures.style import new_figure
from proppo_envs import ChaoticRNN

FIELDS = ("x1", "x2", "cost")
LEVELS = 20


@dataclass(frozen=True)
class Settings:
    """Of the landscape.

    Attributes:
        points: N, start positions along each side of the unit square.
        beta: inverse temperature.
        horizon: H.
        perturbation: standard deviation of what is added to W11.
        seed: of that.
    """

    points: int = 500
    beta: float = 3.5
    horizon: int = 15
    perturbation: float = 0.1
    seed: int = 0

    @property
    def system(self) -> ChaoticRNN:
        """The network with its first weight perturbed."""
        (first, second), below = ChaoticRNN().weight
        generator = torch.Generator().manual_seed(self.seed)
        added = self.perturbation * torch.randn((), dtype=torch.float64, generator=generator)
        return ChaoticRNN(weight=((first + added.item(), second), below), horizon=self.horizon)

    def __str__(self) -> str:
        """Return them in words."""
        return (
            f"{self.points} x {self.points} starts, beta {self.beta}, horizon {self.horizon}, no "
            f"noise, W11 = {self.system.weight[0][0]:.4f}"
        )


def costs(settings: Settings, bar: tqdm | None = None) -> tuple[Tensor, Tensor]:
    """Return the starts' coordinates along each side, [N], and the costs, [N (x2), N (x1)]."""
    bar = silent_bar() if bar is None else bar
    system = settings.system
    beta = torch.tensor(settings.beta, dtype=torch.float64)
    # Cells' centres.
    side = (torch.arange(settings.points, dtype=torch.float64) + 0.5) / settings.points
    second, first = torch.meshgrid(side, side, indexing="ij")
    x = torch.stack((first, second), dim=-1)
    bar.reset(system.horizon)
    for _ in range(system.horizon):
        x = system.mean(x, beta)
        bar.update()
    return side, system.cost(x)


def compute(settings: Settings, bar: tqdm) -> Iterator[Row]:
    """Yield the cost of each start."""
    side, found = costs(settings, bar)
    coordinates = [round(value, 6) for value in side.tolist()]
    for second, row in zip(coordinates, found.tolist(), strict=True):
        for first, cost in zip(coordinates, row, strict=True):
            yield {"x1": first, "x2": second, "cost": round(cost, 6)}


def as_grid(rows: list[Row]) -> Tensor:
    """Return the costs as an image, [N (x2), N (x1)]."""
    points = round(len(rows) ** 0.5)
    return torch.tensor([row["cost"] for row in rows], dtype=torch.float64).view(points, points)


def roughness(image: Tensor) -> float:
    """Return how much steps to the next neighbour keep of their size when they are halved.

    Of a smooth function a half; of one that looks alike at every scale more, up to 1.

    Args:
        image: [N, N].
    """

    def mean_step(stride: int) -> float:
        along = (image[stride:] - image[:-stride]).abs().mean()
        across = (image[:, stride:] - image[:, :-stride]).abs().mean()
        return (along + across).item()

    return mean_step(1) / mean_step(2)


def claims(rows: list[Row]) -> list[Claim]:
    """Check that the landscape does not become smooth when it is looked at more closely."""
    found = roughness(as_grid(rows))
    return [
        Claim(
            "the landscape is fractal: it stays rough at the smallest scale shown",
            found > 0.6,
            f"halving the distance of two starts leaves {found:.0%} of their costs' difference; "
            "50 % where it is smooth",
        )
    ]


def draw(rows: list[Row], note: str) -> Figure:
    """Draw the costs as an image."""
    figure = new_figure(6.2, 5.6, "Fig. 8c: cost against the start position", note)
    axes = figure.add_subplot()
    # Even in brightness, and told apart by the colour-blind; few levels keep the file small.
    image = axes.imshow(
        as_grid(rows).numpy(),
        origin="lower",
        extent=(0.0, 1.0, 0.0, 1.0),
        cmap=colormaps["cividis"].resampled(LEVELS),
        interpolation="nearest",
        vmin=0.0,
        vmax=1.0,
    )
    axes.set_xlabel("start of the first neuron, x₁")
    axes.set_ylabel("start of the second neuron, x₂")
    figure.colorbar(image, ax=axes, label="cost L after the last step")
    return figure


EXPERIMENT = Experiment(
    name="8c",
    title="loss landscape over the start position",
    fields=FIELDS,
    full=Settings(),
    quick=Settings(points=200),
    compute=compute,
    draw=draw,
    claims=claims,
)
