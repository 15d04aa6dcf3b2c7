"""The noise of a gradient, told by those of successive optimizer steps alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lightning_proppo.mathematics.accuracy import squared_norm, variance_of_successive

# A second difference takes so many steps.
STEPS = 3


class SuccessiveEstimate(NamedTuple):
    r"""What three successive gradients say of the last.

    Attributes:
        variance: :math:`\mathrm{tr}\, \mathrm{Cov}[\hat g]`.
        squared_norm: :math:`|\hat g|^2`.
        not_finite: how many of its elements are not finite.
    """

    variance: float
    squared_norm: float
    not_finite: int


class SuccessiveGradients:
    """The gradients of the last steps, by the optimizer's place among the Trainer's."""

    def __init__(self) -> None:
        self._kept: dict[int, list[list[Tensor]]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, place: int, gradients: Sequence[Tensor]) -> None:
        """Add an optimizer's gradients, which must not be written into, at a step."""
        # A checkpoint's may be on another device.
        before = [
            [old.to(new.device) for old, new in zip(step, gradients, strict=True)]
            for step in self._kept.get(place, [])
        ]
        self._kept[place] = [*before, list(gradients)][-STEPS:]

    def forget(self) -> None:
        """Forget all steps."""
        self._kept = {}

    def estimate(self) -> SuccessiveEstimate | None:
        """Return what they say, of all optimizers that have made three steps; None without."""
        found = [steps for steps in self._kept.values() if len(steps) == STEPS]
        if not found:
            return None
        return SuccessiveEstimate(
            sum(variance_of_successive(steps) for steps in found),
            sum(squared_norm(steps[-1]) for steps in found),
            sum(int((~g.isfinite()).sum()) for steps in found for g in steps[-1]),
        )

    def state_dict(self) -> dict[int, list[list[Tensor]]]:
        """Return the gradients."""
        return dict(self._kept)

    def load_state_dict(self, state: Mapping[int, Any]) -> None:
        """Take gradients back."""
        self._kept = dict(state)
