"""What is kept of a trial."""

from __future__ import annotations

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
