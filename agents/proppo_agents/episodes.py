"""Acting in an environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

Policy = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Episode:
    """What was seen and done in one episode of H steps, in float64.

    Attributes:
        observations: [H + 1, D].
        actions: [H, A].
        rewards: [H].
        success: whether the environment called it one.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    success: bool

    @property
    def total(self) -> float:
        """The return: the sum of the rewards."""
        return float(self.rewards.sum())

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, as a checkpoint keeps them."""
        return dict(vars(self))


def collect_episode(
    env: gymnasium.Env[Any, Any],
    policy: Policy | None,
    seed: int | None = None,
    broken_off: Callable[[Episode], Any] | None = None,
) -> Episode:
    """Act until the environment ends the episode.

    Args:
        env: with Box spaces; its info may hold ``"success"``.
        policy: takes observations [1, D] to actions [1, A]; None: random actions.
        seed: of the episode's noise and random actions; None: go on with the environment's own.
        broken_off: called with the steps so far, if there are any, when an exception ends the
            episode; the exception goes on.
    """
    if seed is not None:
        env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    observations: list[Any] = [observation]
    actions: list[Any] = []
    rewards: list[float] = []
    ended = False

    def so_far() -> Episode:
        # An interrupt may come between two of these lists.
        steps = len(rewards)
        return Episode(
            observations=torch.as_tensor(np.stack(observations[: steps + 1]), dtype=torch.float64),
            actions=torch.as_tensor(np.stack(actions[:steps]), dtype=torch.float64),
            rewards=torch.tensor(rewards, dtype=torch.float64),
            success=bool(info.get("success", False)),
        )

    try:
        while not ended:
            if policy is None:
                action = env.action_space.sample()
            else:
                with torch.no_grad():
                    action = policy(torch.as_tensor(observation)[None])[0].cpu().numpy()
            action = np.asarray(action, dtype=env.action_space.dtype)
            observation, reward, terminated, truncated, info = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(float(reward))
            ended = terminated or truncated
    # Also where the user ends it: a robot's steps are not to be had again.
    except BaseException:
        if rewards and broken_off is not None:
            broken_off(so_far())
        raise
    return so_far()
