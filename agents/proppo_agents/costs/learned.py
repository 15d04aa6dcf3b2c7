"""A reward that is learned from what the environment gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from proppo_agents.costs.base import Cost
from proppo_agents.encodings import encode_angles
from proppo_agents.experience.episodes import Episode
from proppo_agents.parts import make_part
from proppo_agents.regression import ExactGP, Regressor
from proppo_agents.worlds import World


class LearnedReward(Cost):
    """Learns the reward of a step from observation, action and the observation after it.

    The cost is minus the mean that is predicted, in the environment's units; how sure the model is
    of it plays no part. Far from all data a Gaussian process predicts the mean reward, which keeps
    a policy from going there for the reward's sake only where others are better.

    Args:
        regressor: what learns; None: exact Gaussian processes, for up to about 1,000 steps.
    """

    of_environment = True

    def __init__(self, regressor: Regressor | None = None) -> None:
        super().__init__()
        given: Any = ExactGP() if regressor is None else regressor
        self.regressor = make_part("regressor", given, Regressor)  # type: ignore[type-abstract]

    def build(self, world: World) -> Self:
        """Prepare for an environment."""
        self._angles = world.spaces.angles
        return self

    def fit(self, episodes: Sequence[Episode]) -> None:
        """Learn from all steps of the episodes."""
        inputs = torch.cat(
            [self._inputs(e.observations[:-1], e.actions, e.observations[1:]) for e in episodes]
        )
        rewards = torch.cat([e.rewards for e in episodes])
        self.regressor.fit(inputs, rewards.unsqueeze(1))

    def forward(
        self,
        observation: Tensor | None = None,
        action: Tensor | None = None,
        next_observation: Tensor | None = None,
    ) -> Tensor:
        """Return the costs [P]."""
        if observation is None or action is None or next_observation is None:
            raise TypeError("LearnedReward needs observation, action and next_observation.")
        mean, _ = self.regressor.predict(self._inputs(observation, action, next_observation))
        return -mean[:, 0]

    def _inputs(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        parts = (
            encode_angles(observation, self._angles),
            action,
            encode_angles(next_observation, self._angles),
        )
        return torch.cat(parts, dim=-1)
