"""The picture of a training: what came of each trial, beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from proppo_agents.experience.trials import Trial
from proppo_agents.figures.style import BLUE, VERMILLION, grid, new_figure, save


def plot_trials(trials: Sequence[Trial], path: Path) -> None:
    """Draw real returns beside predicted ones, against the trial.

    Args:
        trials: in their order.
        path: of the PNG that is written.
    """
    figure = new_figure(6.4, 4.0, "Returns of real episodes", "")
    axes = figure.add_subplot()
    index = range(len(trials))
    axes.plot(index, [t.real_return for t in trials], color=BLUE, label="real episode")
    predicted = [(i, t.predicted_return) for i, t in enumerate(trials)]
    predicted = [(i, value) for i, value in predicted if value is not None]
    if predicted:
        axes.plot(
            *zip(*predicted, strict=True), "--", color=VERMILLION, label="predicted by the model"
        )
    for success, marker in ((True, "o"), (False, "x")):
        chosen = [(i, t.real_return) for i, t in enumerate(trials) if t.success is success]
        if chosen:
            label = "success" if success else "no success"
            axes.plot(*zip(*chosen, strict=True), marker, color=BLUE, label=label)
    axes.set_xlabel("trial (0: random actions)")
    axes.set_ylabel("return")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    drawn = [t.real_return for t in trials] + [t.predicted_return or 0.0 for t in trials]
    if min(drawn, default=0.0) >= 0:
        axes.set_ylim(bottom=0)
    grid(axes)
    axes.legend()
    save(figure, path)
