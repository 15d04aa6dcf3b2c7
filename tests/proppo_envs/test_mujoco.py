"""Gymnasium's MuJoCo environments, and their costs."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from proppo_envs import Task, find_task
from proppo_envs.inverted_double_pendulum import RewardObservedState

from .environment_contract import EnvironmentContract

mujoco = pytest.importorskip("mujoco", reason='needs pip install "lightning-proppo[mujoco]"')


@pytest.fixture(autouse=True)
def _off_screen_and_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # MuJoCo writes its warnings into a file in the working directory.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", "egl"))


class MujocoContract(EnvironmentContract):
    """The contract; a subclass gives the spread of states around the environment's first one."""

    headings = ("Action", "Observation", "Reward", "Starting State", "Episode End")
    allowed_warnings = (
        "A Box observation space m.*imum value is -?infinity",
        "we recommend using a symmetric and normalized space",
    )
    skip_render_check = True
    steps = 1000
    position_std: ClassVar[tuple[float, ...]]
    velocity_std: ClassVar[float] = 1.0

    def need_a_renderer(self) -> None:
        env: Any = gymnasium.make(self.id, render_mode="rgb_array").unwrapped
        env.reset(seed=0)
        try:
            env.render()
        except Exception as error:  # of many types: which, depends on what of OpenGL is missing
            pytest.skip(f"MuJoCo cannot draw off-screen here: {error!r}")
        finally:
            env.close()

    def place(self, env: gymnasium.Env, generator: np.random.Generator) -> None:
        inner: Any = env.unwrapped
        positions = inner.init_qpos + self.position_std * generator.standard_normal(inner.model.nq)
        inner.set_state(positions, self.velocity_std * generator.standard_normal(inner.model.nv))

    def observe(self, env: gymnasium.Env) -> np.ndarray:
        observation: np.ndarray = env.unwrapped._get_obs()  # type: ignore[attr-defined]
        return observation

    def test_observed_steps_have_their_costs(self, task: Task, env: gymnasium.Env) -> None:
        cost = task.cost()
        before, _ = env.reset(seed=0)
        env.action_space.seed(0)
        for _ in range(20):
            action = env.action_space.sample().astype(np.float64)
            after, reward, terminated, *_ = env.step(action)
            step = (torch.from_numpy(part) for part in (before, action, after))
            assert cost.reward_offset - float(cost(*step)) == pytest.approx(reward, abs=1e-10)
            before = after
            if terminated:
                break

    def test_another_model_is_refused(self, task: Task) -> None:
        with pytest.raises(ValueError, match="holds only for the default xml_file, got 'x'"):
            task.cost(xml_file="x")
        with pytest.raises(ValueError, match="holds only for the default xml_file, got 'x'"):
            task.make(xml_file="x")


class TestInvertedPendulum(MujocoContract):
    id = "InvertedPendulum-v5"
    position_std = (0.3, 0.2)

    def test_the_gradient_is_zero(self, task: Task, env: gymnasium.Env) -> None:
        *step, _ = self.some_steps(env, 20)
        after = step[2].requires_grad_()
        after.data[0, 3] = float("nan")
        costs = task.cost()(*step)
        assert costs[0] == 1.0
        (gradient,) = torch.autograd.grad(costs.sum(), after)
        assert not gradient.any()


class TestInvertedDoublePendulum(MujocoContract):
    id = "InvertedDoublePendulum-v5"
    position_std = (0.3, 0.6, 0.6)
    velocity_std = 8.0

    def observe(self, env: gymnasium.Env) -> np.ndarray:
        assert isinstance(env, RewardObservedState)
        return env._unclipped(super().observe(env))

    def test_it_is_gymnasiums_formula_at_the_state_after_the_step(
        self, task: Task, env: gymnasium.Env
    ) -> None:
        inner: Any = env.unwrapped
        cost = task.cost()
        generator = np.random.default_rng(0)
        fallen = []
        for seed in range(200):
            env.reset(seed=seed)
            self.place(env, generator)
            observation, reward, *_ = env.step(generator.uniform(-1.0, 1.0, 1))
            mujoco.mj_kinematics(inner.model, inner.data)
            x, _, y = inner.data.site_xpos[0]
            expected, _ = inner._get_rew(x, y, bool(y <= 1))
            assert reward == pytest.approx(expected, abs=1e-11)
            after = torch.from_numpy(observation)
            assert cost.reward_offset - float(cost(after, torch.zeros(1), after)) == reward
            fallen.append(y <= 1)
        assert 0 < sum(fallen) < len(fallen)

    def test_gymnasiums_checker_passes_with_the_wrapper_too(self, env: gymnasium.Env) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for allowed in (*self.allowed_warnings, "The environment .* is different from the unw"):
                warnings.filterwarnings("ignore", message=f".*{allowed}")
            check_env(RewardObservedState(env.unwrapped), skip_render_check=True)

    def test_its_reward_is_almost_gymnasiums(self, task: Task, env: gymnasium.Env) -> None:
        """As long as nothing is clipped, only the place of the tip differs."""
        plain = gymnasium.make(self.id)
        for each in (plain, env):
            each.reset(seed=0)
        for _ in range(5):
            results = [each.step(np.full(1, 0.01)) for each in (plain, env)]
            np.testing.assert_allclose(results[0][0], results[1][0], rtol=0, atol=1e-12)
            assert results[0][1] == pytest.approx(results[1][1], abs=1e-4)

    def test_the_velocities_are_not_clipped(self, env: gymnasium.Env) -> None:
        inner: Any = env.unwrapped
        env.reset(seed=0)
        inner.set_state(np.zeros(3), np.array([0.0, 30.0, -40.0]))
        observation, *_ = env.step(np.zeros(1))
        assert np.abs(observation[5:8]).max() > 15.0
        np.testing.assert_array_equal(observation[5:8], inner.data.qvel)

    def test_the_healthy_reward_can_be_chosen(self, task: Task) -> None:
        env = task.make(healthy_reward=3.0)
        cost = task.cost(healthy_reward=3.0)
        assert cost.reward_offset == 3.0
        *step, rewards = self.some_steps(env, 50)
        torch.testing.assert_close(3.0 - cost(*step), rewards, rtol=1e-12, atol=1e-12)


class TestReacher(MujocoContract):
    id = "Reacher-v5"
    steps = 50
    position_std = (2.0, 1.0, 0.1, 0.1)

    def test_the_gradient_at_the_target_is_zero(self, task: Task) -> None:
        after = torch.zeros(1, 10, requires_grad=True)
        cost = task.cost()(torch.zeros(1, 10), torch.zeros(1, 2), after)
        (gradient,) = torch.autograd.grad(cost.sum(), after)
        assert torch.equal(gradient, torch.zeros(1, 10))

    def test_the_weights_can_be_chosen(self, task: Task) -> None:
        weights = {"reward_dist_weight": 2.0, "reward_control_weight": 0.3}
        *step, rewards = self.some_steps(task.make(**weights), 20)
        costs = task.cost(**weights)(*step)
        torch.testing.assert_close(-costs, rewards, rtol=1e-12, atol=1e-12)


class RunnerContract(MujocoContract):
    """Of those that are rewarded for running forward."""

    weights: ClassVar[dict[str, Any]]

    def test_without_its_position_there_is_no_cost(self, task: Task) -> None:
        name = "exclude_current_positions_from_observation"
        with pytest.raises(ValueError, match=f"needs {name}=False, got True"):
            task.make(**{name: True})
        plain = gymnasium.make(self.id)
        observation = torch.from_numpy(plain.reset(seed=0)[0])
        action = torch.zeros(task.action_size)
        with pytest.raises(ValueError, match=r"^observation: expected shape \[\.\.\., 1[28]\]"):
            task.cost()(observation, action, observation)

    def test_the_weights_can_be_chosen(self, task: Task) -> None:
        cost = task.cost(**self.weights)
        *step, rewards = self.some_steps(task.make(**self.weights), 50)
        torch.testing.assert_close(
            cost.reward_offset - cost(*step), rewards, rtol=1e-11, atol=1e-11
        )

    def test_angles_are_those_of_the_hinges_without_a_stop(
        self, task: Task, env: gymnasium.Env
    ) -> None:
        model = env.unwrapped.model  # type: ignore[attr-defined]
        hinge = model.jnt_type == int(mujoco.mjtJoint.mjJNT_HINGE)
        free = hinge & ~model.jnt_limited.astype(bool)
        assert task.angles == tuple(model.jnt_qposadr[free].tolist())


class TestHalfCheetah(RunnerContract):
    id = "HalfCheetah-v5"
    position_std = (1.0, 0.2, 1.0, *(0.3,) * 6)
    weights: ClassVar[dict[str, Any]] = {
        "forward_reward_weight": 2.0,
        "ctrl_cost_weight": 0.5,
        "frame_skip": 2,
    }


class TestHopper(RunnerContract):
    id = "Hopper-v5"
    position_std = (1.0, 0.4, 0.15, *(0.3,) * 3)
    weights: ClassVar[dict[str, Any]] = {
        "forward_reward_weight": 2.0,
        "ctrl_cost_weight": 0.5,
        "healthy_reward": 0.7,
        "healthy_state_range": (-3.0, 2.5),
        "healthy_z_range": (0.9, 1.6),
        "healthy_angle_range": (-0.1, 0.3),
        "frame_skip": 2,
    }


def test_hinges_with_a_stop_are_no_angles_to_encode() -> None:
    env: Any = find_task("InvertedPendulum-v5").make().unwrapped
    assert env.model.jnt_limited.all()
