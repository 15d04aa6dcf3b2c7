"""What an episode holds is what was seen, done and earned, whatever an environment reuses."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from proppo_agents.experience.episodes import collect_episode

STEPS = 3


class Reusing(gymnasium.Env[Any, Any]):
    """Counts up in one array; doubles the action in place."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self) -> None:
        self.x = np.zeros(2)
        self.reward = np.zeros(())

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x[:] = 0
        return self.x, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.x += 1
        self.reward[...] = 10 * self.x[0]
        action *= 2
        end = self.x[0] == STEPS
        return self.x, self.reward, False, bool(end), {}


def test_an_environment_may_reuse_its_arrays_and_write_into_the_action() -> None:
    # It writes into what it is given, too.
    found = collect_episode(Reusing(), lambda x: x.mul_(0.125)[:, :1].clone().float())
    assert found.observations.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert found.actions.tolist() == [[0.0], [0.125], [0.25]]
    assert found.rewards.tolist() == [10, 20, 30]


def test_a_policy_may_return_one_tensor_again_and_again() -> None:
    action = torch.zeros(1, 1)

    def policy(observation: torch.Tensor) -> torch.Tensor:
        return action.copy_(0.25 * observation[:, :1])

    assert collect_episode(Reusing(), policy).actions.tolist() == [[0.0], [0.25], [0.5]]
