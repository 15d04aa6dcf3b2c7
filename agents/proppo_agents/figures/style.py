"""How all figures look: colours that the colour-blind tell apart, a marker for each, no pyplot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito 2008, "Color Universal Design". Yellow is left out: it is too faint for a line.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
COLOURS = (VERMILLION, BLUE, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# The same in every figure.
_ESTIMATORS: dict[str, dict[str, Any]] = {
    "plain PyTorch": {"color": BLACK, "marker": "X"},
    "RP": {"color": VERMILLION, "marker": "o"},
    "RP, detached": {"color": ORANGE, "marker": "v"},
    "LR": {"color": BLUE, "marker": "s"},
    "TP": {"color": GREEN, "marker": "^"},
    "TPX": {"color": PURPLE, "marker": "D"},
    "TP+mesh": {"color": SKY, "marker": "P"},
}


def line_style(name: str, number: int = 0) -> dict[str, Any]:
    """Return colour, marker and line of an estimator, or of the number-th of anything else.

    Gaussian shaping is dashed and hollow in its estimator's colour, the prototype is dotted.
    """
    shaped, peer = name.endswith("+GS"), name.startswith("prototype ")
    base = name.removesuffix("+GS").removeprefix("prototype ")
    style = _ESTIMATORS.get(
        base,
        {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]},
    )
    line = "--" if shaped else ":" if peer else "-"
    face = {"markerfacecolor": "white"} if shaped or peer else {}
    return {**style, **face, "linestyle": line, "markersize": 5, "linewidth": 1.4, "label": name}


def new_figure(width: float, height: float, title: str, note: str) -> Figure:
    """Return an empty figure, in inches, with a title and a line below that says how it was made."""
    # Without pyplot: it would choose a backend, and keep the figure, for the whole process.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(note, fontsize=7.5, color="0.35")
    return figure


def grid(axes: Axes) -> None:
    """Draw faint lines behind the data."""
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Write a picture."""
    figure.savefig(path, dpi=120, pil_kwargs={"optimize": True})
