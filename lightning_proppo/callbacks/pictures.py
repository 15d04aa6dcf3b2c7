"""Images of variances and weights, time step of the rollout by training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_proppo.callbacks.alarms import SIGNIFICANT

# RP's values may go through all of float64; colours stay within so much of LR's.
_RANGE = 1e6


@dataclass(frozen=True, eq=False)
class Column:
    """What one rollout says, by time step.

    Attributes:
        step: the training step.
        variances: by the estimator's name (RP, LR), [H].
        lr_weight: TP's weight on LR, [H] or empty.
        rows: what H counts, ``"time step"`` or ``"sample"``.
        disagreement: of RP and LR, in standard errors, [H] or empty.
    """

    step: int
    variances: dict[str, Tensor]
    lr_weight: Tensor
    # As in checkpoints that do not say.
    rows: str = "sample"
    disagreement: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))


def draw_columns(columns: Sequence[Column]) -> dict[str, Any]:
    """Draw an image each of RP's variance, LR's variance, TP's weight on LR, and disagreement.

    The *front* is drawn as a line: the last time step at which RP's part of the gradient is noisier
    than LR's. Before it, back-propagation is of no use.

    Args:
        columns: at least one. Those whose rows are not what the last one's are, are left out.

    Returns:
        matplotlib figures by name; those without values are left out.
    """
    from matplotlib.colors import LogNorm, Normalize

    rows = columns[-1].rows
    columns = [column for column in columns if column.rows == rows]
    tables = {
        "variance_RP": _table([c.variances.get("RP") for c in columns]),
        "variance_LR": _table([c.variances.get("LR") for c in columns]),
        "weight_on_LR": _table([c.lr_weight for c in columns]),
        "disagreement": _table([c.disagreement for c in columns]),
    }
    rp, lr = tables["variance_RP"], tables["variance_LR"]
    front = None if rp is None or lr is None else _front(rp, lr)
    logarithmic = LogNorm(*_limits(rp, lr))
    titles = {
        "variance_RP": ("RP", f"variance of a {rows}'s part", logarithmic),
        "variance_LR": ("LR", f"variance of a {rows}'s part", logarithmic),
        "weight_on_LR": ("TP", "weight on LR (the rest is on RP)", Normalize(0, 1)),
        # What is significant is in the upper half.
        "disagreement": (
            "RP against LR",
            "disagreement in standard errors",
            Normalize(0, 2 * SIGNIFICANT),
        ),
    }
    fronted = ("variance_RP", "weight_on_LR")
    steps = np.array([column.step for column in columns])
    return {
        name: _draw(table, steps, rows, front if name in fronted else None, *titles[name])
        for name, table in tables.items()
        if table is not None
    }


def _draw(table: Any, steps: Any, rows: str, front: Any, title: str, label: str, norm: Any) -> Any:
    """Draw one image."""
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    # TensorBoard shows it about as wide as a hand: few, large letters.
    figure = Figure(figsize=(5.0, 4.2), dpi=110, layout="constrained")
    ax = figure.subplots()
    shown = np.where(np.isposinf(table), np.finfo(float).max, table)
    image = ax.pcolormesh(
        _edges(steps), np.arange(len(table) + 1), shown, norm=norm, cmap="cividis"
    )
    if front is not None and np.isfinite(front).any():
        outline = [withStroke(linewidth=3.5, foreground="black")]
        ax.plot(steps, front, color="white", linewidth=1.5, path_effects=outline, label="front")
        ax.legend(loc="upper right", fontsize=10)
    extend = "both" if norm.vmin else "max" if norm.vmax > 1 else "neither"
    bar = figure.colorbar(image, ax=ax, extend=extend)
    bar.set_label(label, fontsize=12)
    ax.set_title(title, fontsize=14)
    ax.set_xlabel("training step", fontsize=12)
    ax.set_ylabel(f"{rows} of the rollout", fontsize=12)
    ax.set_ylim(0, len(table))
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


def _front(rp: Any, lr: Any) -> Any:
    """Return, for each training step, behind which time step RP is noisier; NaN for none."""
    noisier = ~(rp <= lr) & ~np.isnan(lr)
    last = len(rp) - np.argmax(noisier[::-1], axis=0)
    return np.where(noisier.any(axis=0), last, np.nan)


def _edges(steps: Any) -> Any:
    """Return where columns begin and end."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middles[0]], middles, [2 * steps[-1] - middles[-1]]])


def _limits(rp: Any, lr: Any) -> tuple[float, float]:
    """Return the colours' ends, the same for RP and LR."""
    known = [t[np.isfinite(t) & (t > 0)] for t in (rp, lr) if t is not None]
    values = np.concatenate(known) if known else np.ones(0)
    if not len(values):
        return 1e-1, 1e1
    low, high = values.min(), values.max()
    if lr is not None and len(known[-1]):
        middle = np.median(known[-1])
        low, high = max(low, middle / _RANGE), min(high, middle * _RANGE)
    return float(low), float(max(high, 10 * low))
