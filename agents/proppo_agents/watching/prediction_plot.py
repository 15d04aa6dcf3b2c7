"""The picture of predicted and real trajectories."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from proppo_agents.figures.style import BLACK, BLUE, SKY, VERMILLION, grid, new_figure
from proppo_agents.watching.calibration import (
    expected_share,
    moments,
    root_mean_square,
    share_inside,
    too_few_inside,
)
from proppo_agents.watching.predictions import Prediction

_DRAWN = 12
# So many times the real trajectory's range is shown; a band that explodes is cut off.
_ROOM = 2.0


def draw_prediction(
    prediction: Prediction, title: str, names: Sequence[str] | None = None
) -> Figure:
    """Draw each coordinate's real trajectory over the predicted band of 2 standard deviations.

    Real points outside the band are marked, and so are coordinates whose one-step predictions have
    so few inside that a true model would with a probability below 1 %.

    Args:
        prediction: what is drawn.
        title: of the figure.
        names: of the coordinates, with units; None: numbers.
    """
    size = prediction.real.shape[1]
    columns = min(size, 2 if size <= 4 else 4)
    rows = math.ceil(size / columns)
    one_step = float(share_inside(prediction.one_step_errors).mean())
    rollout = float(share_inside(prediction.rollout_errors).mean())
    rms = float(root_mean_square(prediction.one_step_errors).mean())
    height = 2.4 * rows + 1.6
    figure = new_figure(
        width=3.4 * columns + 0.6,
        height=height,
        # Below its two lines, room for the legend.
        title=f"{title}\ninside 2σ: rollout {rollout:.0%}, one step {one_step:.0%}\n",
        note=f"A normal distribution has {expected_share():.0%} inside. One-step errors over their "
        f"predicted deviation: {rms:.2g} (rms),\nwhich is 1 if the model tells the truth, more if "
        "it is too sure, less if it is not sure enough.",
    )
    too_sure = too_few_inside(prediction.one_step_errors)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for index, each in enumerate(axes.flat):
        if index >= size:
            each.set_visible(False)
            continue
        _draw_coordinate(each, prediction, index)
        lies = bool(too_sure[index])
        each.set_title(
            _name(prediction, index, names) + (", too sure" if lies else ""),
            fontsize=9,
            color=VERMILLION if lies else BLACK,
        )
        if index >= size - columns:
            each.set_xlabel("step")
            each.tick_params(labelbottom=True)
    figure.legend(
        handles=_legend(),
        loc="upper center",
        bbox_to_anchor=(0.5, 1 - 0.42 / height),
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return figure


def _draw_coordinate(axes: Axes, prediction: Prediction, index: int) -> None:
    real = prediction.real[:, index].cpu().numpy()
    drawn = prediction.trajectories[:, :_DRAWN, index].cpu().numpy()
    mean, std = (m[:, index].cpu().numpy() for m in moments(prediction.trajectories))
    steps = np.arange(len(real))
    low, high = mean - 2 * std, mean + 2 * std
    finite = np.isfinite(low) & np.isfinite(high)
    axes.fill_between(steps, low, high, where=finite.tolist(), color=SKY, alpha=0.35, linewidth=0)
    axes.plot(steps, drawn, color=BLUE, alpha=0.25, linewidth=0.6)
    axes.plot(steps[finite], mean[finite], color=BLUE, linewidth=1.4)
    axes.plot(steps, real, color=BLACK, linewidth=1.2, marker="o", markersize=2.5)
    outside = np.concatenate([[False], prediction.rollout_errors[:, index].abs().cpu() > 2])
    axes.plot(steps[outside], real[outside], "o", color=VERMILLION, markersize=4.5)
    bottom, top = real.min(), real.max()
    room = _ROOM * max(top - bottom, 1e-9)
    shown = np.concatenate([low[finite], high[finite], real])
    pad = 0.05 * (top - bottom)
    axes.set_ylim(
        max(shown.min(), bottom - room) - pad,
        max(min(shown.max(), top + room) + pad, bottom + 1e-9),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid(axes)


def _name(prediction: Prediction, index: int, names: Sequence[str] | None) -> str:
    name = f"coordinate {index}" if names is None else names[index]
    if names is None and index in prediction.angles:
        name += ", angle (rad)"
    rollout = float(share_inside(prediction.rollout_errors)[index])
    one_step = float(share_inside(prediction.one_step_errors)[index])
    return f"{name}\n{rollout:.0%} inside, one step {one_step:.0%}"


def _legend() -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=BLACK, marker="o", markersize=3, label="real"),
        Line2D([], [], color=VERMILLION, marker="o", linestyle="", label="real, outside the band"),
        Line2D([], [], color=BLUE, label="predicted: mean, and some rollouts"),
        Patch(color=SKY, alpha=0.35, label="predicted: mean ± 2σ"),
    ]
