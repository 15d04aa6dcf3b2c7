"""What is kept of a trial, and what a sequence of them has come to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One episode of the real environment, beside what the model had predicted.

    Attributes:
        steps: how many gradient steps the policy had had; 0: random actions.
        predicted_return: the model's mean return over the last steps before it, or None where
            there was no model.
        real_return: the sum of the episode's rewards.
        success: whether the environment called it one.
    """

    steps: int
    predicted_return: float | None
    real_return: float
    success: bool

    def __str__(self) -> str:
        """Return it in words."""
        value = self.predicted_return
        predicted = "random actions" if value is None else f"{value:.2f} was predicted"
        end = "success" if self.success else "no success"
        return f"return {self.real_return:.2f} ({predicted}), {end}"

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))


def trials_without_progress(trials: Sequence[Trial], since: int = 0) -> int:
    """Return how many trials in the end had no return above all before; 0 if one was a success.

    Args:
        trials: in their order.
        since: which of them is the first that may count.
    """
    if any(trial.success for trial in trials[since:]):
        return 0
    best = -math.inf
    waited = 0
    for index, trial in enumerate(trials):
        waited = 0 if trial.real_return > best or index < since else waited + 1
        best = max(best, trial.real_return)
    return waited
