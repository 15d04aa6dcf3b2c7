"""MuJoCo's inverted double pendulum, rewarded for what it observes."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from proppo_envs.task_costs import InvertedDoublePendulumCost


class RewardObservedState(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Makes the reward of InvertedDoublePendulum-v5 a function of the observation after the step.

    As Gymnasium has it, the reward is not: the velocities in it are observed clipped to 10, which a
    few random actions exceed, and the tip is where MuJoCo's integrator has it in the last stage of
    its step, not where the step ends (1e-5 in the reward at 3 rad/s, 4e-4 at 12 rad/s). Under this
    wrapper the observation holds the velocities as they are, and the reward is that of Gymnasium's
    formula at the observed state. Whether the episode ends is left to Gymnasium.

    Args:
        env: InvertedDoublePendulum-v5, with whichever wrappers.
        healthy_reward: that of ``env``.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], healthy_reward: float = 10.0) -> None:
        RecordConstructorArgs.__init__(self, healthy_reward=healthy_reward)
        gymnasium.Wrapper.__init__(self, env)
        self._cost = InvertedDoublePendulumCost(healthy_reward)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start an episode; as Gymnasium has it, but for the observed velocities."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._unclipped(observation), info

    def step(self, action: Any) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Take a step; as Gymnasium has it, but for the observed velocities and the reward."""
        observation, _, terminated, truncated, info = self.env.step(action)
        observation = self._unclipped(observation)
        after = torch.from_numpy(observation)
        cost = self._cost(after, torch.zeros(1, dtype=after.dtype), after)
        return observation, self._cost.reward_offset - float(cost), terminated, truncated, info

    def _unclipped(self, observation: NDArray[np.float64]) -> NDArray[np.float64]:
        velocities = self.env.unwrapped.data.qvel  # type: ignore[attr-defined]
        return np.concatenate([observation[:5], velocities, observation[8:]])
