"""The environment's own reward, where it is known as a function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from proppo_agents.costs.base import ARGUMENTS, Cost
from proppo_agents.worlds import World


class EnvironmentCost(Cost):
    """What the environment's reward is made of, as a torch function.

    It is the cost that ``proppo_envs.find_task`` knows for it; or else the environment's own method
    ``cost(observation, action)``, which takes tensors [P, D] of observations *after* a step and
    actions [P, A] in its own units to costs [P], where the reward is 1 - cost.
    """

    of_environment = True

    def __init__(self) -> None:
        super().__init__()

    @staticmethod
    def is_known(world: World) -> bool:
        """Whether there is such a function."""
        return world.task is not None or _method(world) is not None

    def build(self, world: World) -> Self:
        """Find the function.

        Raises:
            ValueError: if there is none.
        """
        self._world = world
        method = _method(world)
        if world.task is not None:
            found = world.task.cost(**world.options)
            self._function: Any = found
            self.reward_offset = found.reward_offset
        elif method is not None:
            self._function = lambda observation, action, next_observation: method(
                next_observation, action
            )
            self.reward_offset = 1.0
        else:
            raise ValueError(
                "cost: this environment is no known task and has no method cost(observation, "
                "action); its reward can be learned (cost: LearnedReward), or another cost given."
            )
        self.uses = self._used()
        return self

    def forward(
        self,
        observation: Tensor | None = None,
        action: Tensor | None = None,
        next_observation: Tensor | None = None,
    ) -> Tensor:
        """Return the costs [P]."""
        given = (observation, action, next_observation)
        there = next(value for value in given if value is not None)
        spaces = self._world.spaces
        sizes = (spaces.observation_size, spaces.action_size, spaces.observation_size)
        # Of what the cost does not depend on, anything will do.
        full = [
            there.new_zeros((*there.shape[:-1], size)) if value is None else value
            for value, size in zip(given, sizes, strict=True)
        ]
        full[1] = self._world.own_action(full[1])
        found: Tensor = self._function(*full)
        return found

    def _used(self) -> tuple[str, ...]:
        spaces = self._world.spaces
        sizes = (spaces.observation_size, spaces.action_size, spaces.observation_size)
        # At a point that is no special one.
        tried = [torch.linspace(0.1, 0.3, n).reshape(1, n).requires_grad_() for n in sizes]
        with torch.inference_mode(False), torch.enable_grad():
            total = self(**dict(zip(ARGUMENTS, tried, strict=True))).sum()
            if not total.requires_grad:
                return ARGUMENTS
            found = torch.autograd.grad(total, tried, allow_unused=True)
        return tuple(
            name for name, gradient in zip(ARGUMENTS, found, strict=True) if gradient is not None
        )


def _method(world: World) -> Any:
    method = getattr(world.env.unwrapped, "cost", None)
    return method if callable(method) else None
