"""Gymnasium's pendulum, and its cost."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch

from proppo_envs import find_task

from .environment_contract import EnvironmentContract


class TestContract(EnvironmentContract):
    id = "Pendulum-v1"
    steps = 200
    headings = ("Action", "Observation", "Reward", "Starting State", "Episode Truncation")
    allowed_warnings = ("we recommend using a symmetric and normalized space",)

    def place(self, env: gymnasium.Env, generator: np.random.Generator) -> None:
        # Several turns, and the whole range of velocities.
        env.unwrapped.state = generator.uniform([-9.0, -8.0], [9.0, 8.0])  # type: ignore[attr-defined]

    def observe(self, env: gymnasium.Env) -> np.ndarray:
        angle, velocity = env.unwrapped.state  # type: ignore[attr-defined]
        return np.array([np.cos(angle), np.sin(angle), velocity])


def test_torques_beyond_the_bounds_cost_what_the_bounds_do() -> None:
    cost = find_task("Pendulum-v1").cost()
    upright = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(3, 3)
    torques = torch.tensor([[2.0], [-7.0], [0.5]], dtype=torch.float64)
    expected = torch.tensor([0.004, 0.004, 0.00025], dtype=torch.float64)
    torch.testing.assert_close(cost(upright, torques, upright), expected)


def test_only_the_direction_of_cosine_and_sine_counts() -> None:
    cost = find_task("Pendulum-v1").cost()
    observation = torch.tensor([[-0.6, 0.8, 1.0], [-0.3, 0.4, 1.0]], dtype=torch.float64)
    first, second = cost(observation, torch.zeros(2, 1), observation).tolist()
    assert first == second
