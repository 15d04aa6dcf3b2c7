"""The image of variances by time step and training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Column:
    """What one rollout says, by time step.

    Attributes:
        step: the training step.
        variances: by the estimator's name (RP, LR), [H].
        lr_weight: TP's weight on LR, [H] or empty.
    """

    step: int
    variances: dict[str, Tensor]
    lr_weight: Tensor


def draw_fronts(columns: Sequence[Column]) -> Any:
    """Draw variances and weights, time step by training step, with a colour for each value.

    Args:
        columns: at least one.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rp, lr = (_table([c.variances.get(name) for c in columns]) for name in ("RP", "LR"))
    weight = _table([c.lr_weight if len(c.lr_weight) else None for c in columns])
    steps = np.array([column.step for column in columns])
    panels = [(t, n) for t, n in ((rp, "RP: variance"), (lr, "LR: variance")) if t is not None]
    shown = np.concatenate([t[np.isfinite(t) & (t > 0)] for t, _ in panels] or [np.ones(1)])
    shown = shown if len(shown) else np.ones(1)
    count = len(panels) + (weight is not None)
    figure = Figure(figsize=(4.2 * max(count, 1) + 0.6, 3.8), layout="constrained")
    axes = figure.subplots(1, max(count, 1), sharex=True, sharey=True, squeeze=False)[0]
    edges = _edges(steps)
    norm = LogNorm(*_limits(shown, lr))
    image = None
    for ax, (table, title) in zip(axes, panels, strict=False):
        table = np.where(np.isposinf(table), norm.vmax * 10, table)
        image = ax.pcolormesh(edges, np.arange(len(table) + 1), table, norm=norm, cmap="cividis")
        ax.set_title(title)
    if image is not None:
        figure.colorbar(
            image,
            ax=list(axes[: len(panels)]),
            extend="both",
            label="variance of what the sample adds",
        )
    if weight is not None:
        ax = axes[len(panels)]
        image = ax.pcolormesh(
            edges, np.arange(len(weight) + 1), weight, vmin=0, vmax=1, cmap="cividis"
        )
        ax.set_title("TP: weight on LR")
        figure.colorbar(image, ax=ax, label="0: all RP, 1: all LR")
    for ax in axes:
        ax.set_xlabel("training step")
    axes[0].set_ylabel("time step of the rollout")
    return figure


def _table(columns: Sequence[Tensor | None]) -> Any:
    """Return values [H, steps], NaN where there are none; None without any."""
    known = [c for c in columns if c is not None and len(c)]
    if not known:
        return None
    table = np.full((max(len(c) for c in known), len(columns)), np.nan)
    for k, column in enumerate(columns):
        if column is not None:
            table[: len(column), k] = column.numpy()
    return table


def _edges(steps: Any) -> Any:
    """Return where columns begin and end."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middles[0]], middles, [2 * steps[-1] - middles[-1]]])


def _limits(shown: Any, lr: Any) -> tuple[float, float]:
    """Return the colours' ends: around LR's values, for RP's may go through all of float64."""
    if lr is None or not (np.isfinite(lr) & (lr > 0)).any():
        return float(shown.min()), float(max(shown.max(), shown.min() * 10))
    finite = lr[np.isfinite(lr) & (lr > 0)]
    low, high = np.quantile(finite, 0.05) / 1e6, np.quantile(finite, 0.95) * 1e6
    return float(max(low, shown.min())), float(min(high, max(shown.max(), finite.max() * 10)))
