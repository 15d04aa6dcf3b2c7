"""What holds for every environment with poles on a cart."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch

from proppo_envs import Task
from proppo_envs.cart_env import CartEnv

from .environment_contract import EnvironmentContract


class CartContract(EnvironmentContract):
    """The tests; a subclass says which environment, and how many poles there are.

    Attributes:
        poles: how many.
    """

    poles: ClassVar[int]

    def place(self, env: gymnasium.Env, generator: np.random.Generator) -> None:
        scale = np.array([0.5, 1.0] + [3.0, 4.0] * self.poles)
        env.reset(options={"state": scale * generator.standard_normal(2 + 2 * self.poles)})

    def observe(self, env: gymnasium.Env) -> np.ndarray:
        state: np.ndarray = env.unwrapped._state.copy()  # type: ignore[attr-defined]
        return state

    def test_the_environments_own_cost_is_the_tasks(self, task: Task, env: gymnasium.Env) -> None:
        observation, action, after, _ = self.some_steps(env, 20)
        own = env.unwrapped.cost(after)  # type: ignore[attr-defined]
        assert torch.equal(own, task.cost()(observation, action, after))

    @pytest.mark.parametrize("width", [0.25, [0.1, 0.4]])
    def test_the_cost_follows_the_width(self, task: Task, width: float | list[float]) -> None:
        env = task.make(cost_width=width)
        *step, rewards = self.some_steps(env, 20)
        costs = task.cost(cost_width=width, render_mode="rgb_array")(*step)
        torch.testing.assert_close(1.0 - costs, rewards, rtol=1e-12, atol=1e-12)

    def test_a_turn_of_a_pole_changes_no_cost(self, task: Task, env: gymnasium.Env) -> None:
        observation, action, after, _ = self.some_steps(env, 20)
        costs = task.cost()(observation, action, after)
        assert task.angles == tuple(range(2, 2 + 2 * self.poles, 2))
        for angle in task.angles:
            turned = after.clone()
            turned[:, angle] += 2.0 * np.pi
            torch.testing.assert_close(task.cost()(observation, action, turned), costs)

    def test_it_can_be_copied_and_pickled_in_the_middle_of_an_episode(self, task: Task) -> None:
        pytest.importorskip("pygame")
        env = task.make(render_mode="rgb_array")
        env.reset(seed=0)
        env.render()
        twins = [env, copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
        results = [twin.step(np.array([0.5]))[0] for twin in twins]
        np.testing.assert_array_equal(results[0], results[1])
        np.testing.assert_array_equal(results[0], results[2])

    def test_pipps_noise_has_the_root_of_k_times_its_deviations(self, task: Task) -> None:
        """5 sigma for each of 2 + 2 N deviations: false alarms in one of 3e5 seeds."""
        base = np.array([0.01, 0.1] + [np.pi / 180, np.pi / 18] * self.poles)
        env = task.make(observation_noise_std="pipps", noise_multiplier=16).unwrapped
        assert isinstance(env, CartEnv)
        env.reset(seed=0)
        count = 2000
        errors = []
        for _ in range(count):
            observation, info = env.reset()
            errors.append(observation - info["state"])
        np.testing.assert_allclose(np.std(errors, axis=0), 4 * base, rtol=5 / np.sqrt(2 * count))

    def test_noise_of_each_coordinate_of_its_own(self, task: Task) -> None:
        size = 2 + 2 * self.poles
        std = [0.0] * size
        std[-1] = 0.5
        env = task.make(observation_noise_std=std, initial_std=[0.0] * (size - 1) + [0.3])
        observation, info = env.reset(seed=0)
        exact = info["state"].astype(np.float32)
        np.testing.assert_array_equal(observation[:-1], exact[:-1])
        assert observation[-1] != exact[-1]
        assert info["state"][-1] != 0.0
        assert not info["state"][[0, 1]].any()
