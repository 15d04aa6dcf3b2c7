"""What holds for every environment that the project names; each one's tests inherit it."""

from __future__ import annotations

import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from proppo_envs import Task, find_task


class EnvironmentContract(ABC):
    """The tests; a subclass says which environment, and how to put it into some state.

    Attributes:
        id: as ``gymnasium.make`` takes it.
        steps: after how many an episode is truncated.
        headings: what the class's docstring describes, beginning with these words.
        allowed_warnings: of Gymnasium's checker, as regular expressions.
        skip_render_check: in Gymnasium's checker, which would open a window.
        tolerance: of rewards, absolute, in float64.
    """

    id: ClassVar[str]
    steps: ClassVar[int]
    headings: ClassVar[tuple[str, ...]] = ("Action", "Observation", "Reward", "Start", "End")
    allowed_warnings: ClassVar[tuple[str, ...]] = ()
    skip_render_check: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-12

    @abstractmethod
    def place(self, env: gymnasium.Env, generator: np.random.Generator) -> None:
        """Put ``env``, which has been reset, into a random state that reaches every case."""

    @abstractmethod
    def observe(self, env: gymnasium.Env) -> np.ndarray:
        """The observation of the present state in float64, without noise."""

    def need_a_renderer(self) -> None:
        """Skip the test where pictures cannot be drawn."""
        pytest.importorskip("pygame")

    @pytest.fixture
    def task(self) -> Task:
        return find_task(self.id)

    @pytest.fixture
    def env(self, task: Task) -> Iterator[gymnasium.Env]:
        env = task.make()
        yield env
        env.close()

    def some_steps(
        self, env: gymnasium.Env, count: int = 200
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Observations, actions, next observations and the environment's rewards, in float64."""
        generator = np.random.default_rng(0)
        found = []
        low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
        for seed in range(count):
            env.reset(seed=seed)
            self.place(env, generator)
            before = self.observe(env)
            action = generator.uniform(low, high)
            reward = env.step(action)[1]
            found.append((before, action, self.observe(env), np.float64(reward)))
        stacked = (torch.from_numpy(np.array(part)) for part in zip(*found, strict=True))
        return tuple(stacked)  # type: ignore[return-value]

    # The contract of Gymnasium

    def test_gymnasium_makes_it_by_its_id(self, task: Task, env: gymnasium.Env) -> None:
        assert task.id == self.id
        made = gymnasium.make(self.id)
        assert type(made.unwrapped) is type(env.unwrapped)
        assert made.spec is not None
        assert made.spec.max_episode_steps == self.steps
        made.close()

    def test_gymnasiums_checker_passes(
        self, env: gymnasium.Env, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.need_a_renderer()
        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")  # the checker also opens a window
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for allowed in self.allowed_warnings:
                warnings.filterwarnings("ignore", message=f".*{allowed}")
            check_env(env.unwrapped, skip_render_check=self.skip_render_check)

    def test_it_is_truncated_after_its_steps_if_it_has_not_ended(self, env: gymnasium.Env) -> None:
        env.reset(seed=0)
        env.action_space.seed(0)
        for step in range(1, self.steps + 1):
            *_, terminated, truncated, _ = env.step(0.01 * env.action_space.sample())
            if terminated:
                break
            assert truncated == (step == self.steps)

    def test_its_docstring_says_what_it_is(self, env: gymnasium.Env) -> None:
        text = type(env.unwrapped).__doc__ or ""
        missing = [name for name in self.headings if f"## {name}" not in text]
        assert not missing

    def test_it_renders_pictures_that_change(self, task: Task) -> None:
        self.need_a_renderer()
        env = task.make(render_mode="rgb_array")
        env.reset(seed=0)
        first: Any = env.render()
        self.place(env, np.random.default_rng(1))
        env.step(env.action_space.sample())
        second: Any = env.render()
        env.close()
        for image in (first, second):
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert min(image.shape[:2]) >= 300
            assert image.std() > 1.0
        assert (first != second).any()

    # Randomness

    def episode(self, env: gymnasium.Env, seed: int | None) -> np.ndarray:
        actions = np.random.default_rng(7)
        observations = [env.reset(seed=seed)[0]]
        for _ in range(5):
            action = actions.uniform(-0.1, 0.1, env.action_space.shape)
            observations.append(env.step(action.astype(np.float32))[0])
        return np.array(observations)

    def test_the_seed_decides_the_episode(self, task: Task, env: gymnasium.Env) -> None:
        first, second = self.episode(env, 1), self.episode(env, None)
        again = task.make()
        np.testing.assert_array_equal(first, self.episode(again, 1))
        np.testing.assert_array_equal(second, self.episode(again, None))
        assert (first != second).any()
        assert (first != self.episode(again, 2)).any()

    def test_global_generators_are_neither_used_nor_touched(self, env: gymnasium.Env) -> None:
        first = self.episode(env, 1)
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        np.testing.assert_array_equal(first, self.episode(env, 1))
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tolist() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])

    # The task

    def test_the_task_has_the_environments_sizes(self, task: Task, env: gymnasium.Env) -> None:
        assert env.observation_space.shape == (task.observation_size,)
        assert env.action_space.shape == (task.action_size,)

    def test_the_cost_is_the_environments(self, task: Task, env: gymnasium.Env) -> None:
        cost = task.cost()
        *step, rewards = self.some_steps(env)
        costs = cost(*step)
        torch.testing.assert_close(
            cost.reward_offset - costs, rewards, rtol=self.tolerance, atol=self.tolerance
        )
        assert costs.unique().numel() > 1

    def test_the_cost_is_batched(self, task: Task, env: gymnasium.Env) -> None:
        cost = task.cost()
        *step, _ = self.some_steps(env, 12)
        costs = cost(*step)
        assert costs.shape == (12,)
        torch.testing.assert_close(torch.func.vmap(cost)(*step), costs)
        one_by_one = [cost(*one) for one in zip(*step, strict=True)]
        torch.testing.assert_close(torch.stack(one_by_one), costs)
        blocks = cost(*(part.reshape(3, 2, 2, -1) for part in step))
        torch.testing.assert_close(blocks, costs.reshape(3, 2, 2))
        single = cost(*(part.float() for part in step))
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), costs, rtol=1e-4, atol=1e-4)

    def test_the_cost_is_differentiable(self, task: Task, env: gymnasium.Env) -> None:
        cost = task.cost()
        *step, _ = self.some_steps(env, 12)
        for part in step:
            part.requires_grad_()
        assert cost(*step).requires_grad
        assert torch.autograd.gradcheck(cost, tuple(step))

    def test_the_cost_refuses_what_is_not_a_step(self, task: Task) -> None:
        cost = task.cost()
        sizes = {
            "observation": task.observation_size,
            "action": task.action_size,
            "next_observation": task.observation_size,
        }
        right = {name: torch.zeros(2, size) for name, size in sizes.items()}
        for name, size in sizes.items():
            with pytest.raises(ValueError, match=rf"^{name}: expected shape \[\.\.\., {size}\]"):
                cost(**{**right, name: torch.zeros(2, size + 1)})
            with pytest.raises(TypeError, match=f"^{name}: expected a torch.Tensor, got ndarray"):
                cost(**{**right, name: np.zeros((2, size))})
            with pytest.raises(TypeError, match=f"^{name}: expected a floating-point tensor"):
                cost(**{**right, name: torch.zeros(2, size, dtype=torch.int64)})

    def test_angles_are_coordinates_and_their_sines_and_cosines_fit(
        self, task: Task, env: gymnasium.Env
    ) -> None:
        named = [*task.angles, *(index for pair in task.encoded_angles for index in pair)]
        assert len(set(named)) == len(named)
        assert set(named) <= set(range(task.observation_size))
        observations = self.some_steps(env, 20)[0]
        for sine, cosine in task.encoded_angles:
            length = observations[:, sine].square() + observations[:, cosine].square()
            torch.testing.assert_close(length, torch.ones_like(length))
