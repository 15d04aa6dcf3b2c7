"""What is kept of a trial, and what a sequence of them has come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proppo_agents.experience.episodes import in_words


@dataclass(frozen=True)
class Trial:
    """One episode of the real environment, beside the model's prediction.

    Attributes:
        steps: how many gradient steps the policy had had; 0: random actions.
        predicted_cost: the model's mean cost of an episode over the last steps before it, or None
            where there was no model.
        real_cost: the sum of the agent's costs over the episode.
        real_return: the sum of the environment's rewards.
        success: whether the environment called it one; None: it does not say.
        early_end: how the episode ended before its time, in words, or None.
    """

    steps: int
    predicted_cost: float | None
    real_cost: float
    real_return: float
    success: bool | None
    early_end: str | None

    def __str__(self) -> str:
        """Return it in words."""
        value = self.predicted_cost
        predicted = "random actions" if value is None else f"{value:.4g} predicted"
        outcome = f"return {self.real_return:.4g}, cost {self.real_cost:.4g} ({predicted})"
        return ", ".join([outcome, *in_words(self.early_end, self.success)])

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))


def is_better(trials: Sequence[Trial], index: int, other: int) -> bool:
    """Whether one trial has come to more than another: by the model's prediction, where they tie.

    Args:
        trials: all there are.
        index: of the trial.
        other: of the one that it is compared with.
    """
    values = _values(trials)
    first, second = (
        (values[i], -math.inf if cost is None else -cost)
        for i, cost in ((i, trials[i].predicted_cost) for i in (index, other))
    )
    return first > second


def trials_without_progress(trials: Sequence[Trial], since: int = 0) -> int:
    """Return how many trials in the end were not above all before; 0 if one was a success.

    Args:
        trials: in their order.
        since: which of them is the first that may count.
    """
    if any(trial.success for trial in trials[since:]):
        return 0
    best = -math.inf
    waited = 0
    for index, value in enumerate(_values(trials)):
        waited = 0 if value > best or index < since else waited + 1
        best = max(best, value)
    return waited


def best_so_far(trials: Sequence[Trial]) -> str:
    """Return what a trial must exceed to be progress, in words."""
    if _are_rewarded(trials):
        return f"no return above {max(trial.real_return for trial in trials):.4g}"
    return f"no cost below {min(trial.real_cost for trial in trials):.4g}"


def _values(trials: Sequence[Trial]) -> list[float]:
    """Return what trials are compared by."""
    if _are_rewarded(trials):
        return [trial.real_return for trial in trials]
    return [-trial.real_cost for trial in trials]


def _are_rewarded(trials: Sequence[Trial]) -> bool:
    # An environment that has no reward gives zeros.
    return any(trial.real_return != 0 for trial in trials)
