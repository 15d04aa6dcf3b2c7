"""Costs of the distance from a target."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Self

from proppo_agents.arguments import check_each
from proppo_agents.costs.base import Cost
from proppo_agents.worlds import World


class _TargetCost(Cost):
    """Of the observation after the step, and of the action.

    The squared difference of an angle from its target is that of the points on the circle,
    2 - 2 cos(x - t), which is about the angle's own near the target.
    """

    of_environment = False
    _target: Tensor
    _weights: Tensor
    _action_weights: Tensor

    def __init__(self, target: Sequence[float], action_weight: float | Sequence[float]) -> None:
        super().__init__()
        self.target = tuple(float(value) for value in target)
        self.action_weight = _finite("action_weight", action_weight)
        self.register_buffer("_target", torch.tensor(self.target), persistent=False)
        self.register_buffer("_weights", torch.ones(len(self.target)), persistent=False)
        self._angles: list[int] = []

    @abstractmethod
    def _weights_of(self, size: int) -> Tensor:
        """Return what squared differences are multiplied by, [D]."""

    def build(self, world: World) -> Self:
        """Prepare for an environment.

        Raises:
            ValueError: if target, widths or weights do not have the size of an observation.
        """
        size = world.spaces.observation_size
        if len(self.target) != size:
            raise ValueError(
                f"target must be {size} numbers, one for each coordinate of the observation; got "
                f"{list(self.target)}."
            )
        self._weights = self._weights_of(size).to(self._target)
        actions = check_each("action_weight", self.action_weight, world.spaces.action_size)
        self.register_buffer("_action_weights", actions.to(self._target), persistent=False)
        self._angles = list(world.spaces.angles)
        with_action = bool((actions != 0).any())
        self.uses = ("action", "next_observation") if with_action else ("next_observation",)
        return self

    def _squares(self, next_observation: Tensor | None) -> Tensor:
        """Return the weighted sum of squared differences [P]."""
        if next_observation is None:
            raise TypeError(f"{type(self).__name__} needs next_observation; got None.")
        difference = next_observation - self._target
        if self._angles:
            # 2 - 2 cos(d) as (2 sin(d / 2))^2: exact near the target too.
            columns = list(difference.unbind(-1))
            for i in self._angles:
                columns[i] = 2 * torch.sin(0.5 * columns[i])
            difference = torch.stack(columns, dim=-1)
        return (difference.square() * self._weights).sum(-1)

    def _with_effort(self, cost: Tensor, action: Tensor | None) -> Tensor:
        """Return the cost [P] and what the action adds to it."""
        if "action" not in self.uses:
            return cost
        if action is None:
            raise TypeError(f"{type(self).__name__} needs action; got None.")
        return cost + (action.square() * self._action_weights).sum(-1)


class QuadraticCost(_TargetCost):
    r"""The quadratic cost of the observation x after the step, and the action u.

    .. math:: c = \sum_d q_d (x_d - t_d)^2 + \sum_a r_a u_a^2

    Angles differ as points on the circle do: by :math:`2 \sin((x_d - t_d) / 2)`.

    Args:
        target: t, [D].
        weights: q, one number or [D], 0 or more.
        action_weight: r, one number or [A], 0 or more; actions are in [-1, 1].

    Raises:
        ValueError: if an argument is not as said here.
    """

    def __init__(
        self,
        target: Sequence[float],
        weights: float | Sequence[float] = 1.0,
        action_weight: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__(target, action_weight)
        self.weights = _finite("weights", weights)

    def _weights_of(self, size: int) -> Tensor:
        return check_each("weights", self.weights, size)

    def forward(
        self,
        observation: Tensor | None = None,
        action: Tensor | None = None,
        next_observation: Tensor | None = None,
    ) -> Tensor:
        """Return the costs [P]."""
        del observation
        return self._with_effort(self._squares(next_observation), action)


class SaturatingCost(_TargetCost):
    r"""PILCO's saturating cost of the observation x after the step: in [0, 1].

    .. math:: c = 1 - \exp\Big(-\tfrac12 \sum_d (x_d - t_d)^2 / w_d^2\Big)

    Angles differ as points on the circle do: by :math:`2 \sin((x_d - t_d) / 2)`. To it comes, where
    asked for, :math:`\sum_a r_a u_a^2` of the action u.

    Args:
        target: t, [D].
        width: w, one number or [D], positive, in the coordinates' units; infinite: a coordinate
            that does not matter, as a number or as the word ``inf``.
        action_weight: r, one number or [A], 0 or more; actions are in [-1, 1].

    Raises:
        ValueError: if an argument is not as said here.
    """

    def __init__(
        self,
        target: Sequence[float],
        # The word, because that is what jsonargparse makes of an infinite number in a list on the
        # command line.
        width: float | Literal["inf"] | Sequence[float | Literal["inf"]] = 1.0,
        action_weight: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__(target, action_weight)
        self.width = _widths(width)

    def _weights_of(self, size: int) -> Tensor:
        return check_each("width", self.width, size).pow(-2)

    def forward(
        self,
        observation: Tensor | None = None,
        action: Tensor | None = None,
        next_observation: Tensor | None = None,
    ) -> Tensor:
        """Return the costs [P]."""
        del observation
        # expm1: near the target 1 - exp(-small) would lose every digit in float32.
        cost = -torch.expm1(-0.5 * self._squares(next_observation))
        return self._with_effort(cost, action)


def _widths(value: Any) -> float | tuple[float, ...]:
    several = isinstance(value, Sequence) and not isinstance(value, str)
    try:
        found = tuple(float(one) for one in (value if several else (value,)))
    except (TypeError, ValueError):
        found = ()
    if not found or not all(one > 0 for one in found):
        raise ValueError(f"width must be positive numbers, or inf; got {value!r}.")
    return found if several else found[0]


def _finite(name: str, value: Any) -> Any:
    values = value if isinstance(value, Sequence) else (value,)
    if not values or not all(math.isfinite(one) and one >= 0 for one in values):
        raise ValueError(f"{name} must be finite numbers, 0 or more; got {value!r}.")
    return tuple(float(one) for one in value) if isinstance(value, Sequence) else float(value)
