"""The picture of a training: what came of each trial, beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from proppo_agents.experience.trials import Trial
from proppo_agents.figures.style import BLUE, VERMILLION, grid, new_figure, save


def plot_trials(trials: Sequence[Trial], path: Path) -> None:
    """Draw real returns, and below them real costs beside predicted ones, against the trial.

    Args:
        trials: in their order.
        path: of the PNG that is written.
    """
    figure = new_figure(6.4, 6.0, "Real episodes", "")
    returns, costs = figure.subplots(2, 1, sharex=True)
    index = range(len(trials))
    returns.plot(index, [t.real_return for t in trials], color=BLUE)
    for success, marker, label in (
        (True, "o", "success"),
        (False, "x", "no success"),
        (None, ".", "success not reported"),
    ):
        chosen = [(i, t.real_return) for i, t in enumerate(trials) if t.success is success]
        if chosen:
            returns.plot(*zip(*chosen, strict=True), marker, color=BLUE, label=label)
    returns.set_ylabel("return (the environment's rewards)")
    costs.plot(index, [t.real_cost for t in trials], ".-", color=BLUE, label="real episode")
    predicted = [(i, t.predicted_cost) for i, t in enumerate(trials)]
    predicted = [(i, value) for i, value in predicted if value is not None]
    if predicted:
        costs.plot(
            *zip(*predicted, strict=True), "--", color=VERMILLION, label="predicted by the model"
        )
    costs.set_ylabel("cost (the agent's)")
    costs.set_xlabel("trial (0: random actions)")
    costs.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (returns, costs):
        grid(axes)
        axes.legend()
    save(figure, path)
