"""How all figures look: colours that the colour-blind tell apart, a marker for each, no pyplot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

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
OTHER_MARKERS = ("<", ">", "*", "p", "h", "d", "8")
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

    Gaussian shaping is dashed and hollow in its estimator's colour, the prototype is dotted and
    hollow, and what has no look of its own is dashed and dotted.
    """
    base = name.removesuffix("+GS").removeprefix("prototype ")
    style: dict[str, Any] = {"linestyle": "-", "markersize": 5, "linewidth": 1.4, "label": name}
    if base in _ESTIMATORS:
        style |= _ESTIMATORS[base]
    else:
        # Marker and colour go round at different paces, so that 49 look different.
        turn, place = divmod(number, len(COLOURS))
        marker = OTHER_MARKERS[(place + turn) % len(OTHER_MARKERS)]
        style |= {"color": COLOURS[place], "marker": marker, "linestyle": "-."}
    if base != name:
        line = "--" if name.endswith("+GS") else ":"
        style |= {"linestyle": line, "markerfacecolor": "white"}
    return style


def plain_numbers(axis: Axis) -> None:
    """Mark a log axis of few decades at 1, 2 and 5, in plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def new_figure(width: float, height: float, title: str, note: str) -> Figure:
    """Return an empty figure, in inches, with a title, and below it a line on how it was made."""
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
