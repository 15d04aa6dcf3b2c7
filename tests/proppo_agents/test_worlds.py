"""Environments as an agent takes them, and agents in an environment that nobody here knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from lightning_proppo import PropagationCallback
from lightning_proppo.cli import load_module
from lightning_proppo.installed_lightning import pl
from proppo_agents import PILCO, GPDynamics, LearnedReward, LinearPolicy, QuadraticCost
from proppo_agents.experience.episodes import collect_episode
from proppo_agents.worlds import World, make_world

NAME = "ProppoTestMass-v0"


class Mass(gymnasium.Env[Any, Any]):
    """A mass on a line, pushed by forces in [-3, 1]; the episode ends beyond 1 m."""

    def __init__(self, shape: tuple[int, ...] = (2,), low: float = -3.0, dtype: Any = np.float32):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float64)
        self.action_space = gymnasium.spaces.Box(low, 1.0, (1,), dtype)
        self.taken: list[float] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = 0.1 * self.np_random.standard_normal(2)
        return self.state.reshape(self.observation_space.shape), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken.append(float(action[0]))
        x, v = self.state
        self.state = np.array([x + 0.2 * v, v + 0.2 * float(action[0])])
        ended = bool(abs(self.state[0]) > 1)
        reward = -float(self.state[0] ** 2)
        return self.state.reshape(self.observation_space.shape), reward, ended, False, {}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register(NAME, Mass)
    yield
    del gymnasium.registry[NAME]


def test_actions_are_rescaled() -> None:
    world = make_world(NAME, episode_steps=3)
    assert isinstance(world, World)
    assert (world.spaces.observation_size, world.spaces.action_size) == (2, 1)
    own = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    actions = iter(own)
    episode = collect_episode(world.env, lambda x: next(actions)[None], seed=0)
    assert torch.equal(episode.actions, own)
    expected = [-3.0, -1.0, 1.0]
    assert world.env.unwrapped.taken == pytest.approx(expected)  # type: ignore[attr-defined]
    assert world.own_action(own)[:, 0].tolist() == pytest.approx(expected)


class Jammed(gymnasium.ActionWrapper[Any, Any, Any]):
    """Another two components, whose bounds are equal."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        low, high = (np.array([end, 0.3, 0.0], dtype=np.float32) for end in (-3.0, 1.0))
        self.action_space = gymnasium.spaces.Box(low, high)
        self.given: list[Any] = []

    def action(self, action: Any) -> Any:
        self.given.append(action)
        return action[:1]


def test_a_component_with_equal_bounds_stays_there() -> None:
    gymnasium.register("Jammed-v0", lambda: Jammed(Mass()))
    try:
        world = make_world("Jammed-v0", episode_steps=3)
        actions = torch.tensor([[-1.0, 0.2, 1.0], [0.5, -1.0, 0.0], [1.0, 1.0, -0.4]])
        own = torch.tensor([[-3.0, 0.3, 0.0], [0.0, 0.3, 0.0], [1.0, 0.3, 0.0]])
        left = iter(actions)
        collect_episode(world.env, lambda x: next(left)[None], seed=0)
        env: Any = world.env
        while not isinstance(env, Jammed):
            env = env.env
        assert np.array_equal(env.given, own)
        assert torch.equal(world.own_action(actions), own)
        random = collect_episode(world.env, None, seed=0).actions
        assert bool((random.abs() <= 1).all())
    finally:
        del gymnasium.registry["Jammed-v0"]


def test_episodes_end_after_the_steps_asked_for_or_before() -> None:
    world = make_world(NAME, episode_steps=4)
    assert world.episode_steps == 4
    assert len(collect_episode(world.env, None, seed=0).rewards) == 4
    forward = collect_episode(
        make_world(NAME, episode_steps=100).env, lambda x: torch.ones(1, 1), seed=0
    )
    assert 3 < len(forward.rewards) < 100
    assert float(forward.observations[-1, 0].abs()) > 1


def test_observations_of_several_axes_are_flattened() -> None:
    world = make_world(NAME, {"shape": (1, 2, 1)}, episode_steps=3)
    assert world.spaces.observation_size == 2
    assert collect_episode(world.env, None, seed=0).observations.shape == (4, 2)


def test_a_known_task_brings_its_angles() -> None:
    assert make_world("CartPoleSwingUp-v0").spaces.angles == (2,)
    assert make_world("CartPoleSwingUp-v0", angles=()).spaces.angles == ()
    assert make_world("Pendulum-v1").spaces.encoded_angles == ((1, 0),)
    assert make_world("Pendulum-v1").episode_steps == 200


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"environment": NAME}, "does not say after how many steps an episode ends.*horizon"),
        ({"environment": "CartPole-v1"}, "must be a Box of .A. floating point numbers"),
        (
            {"environment": NAME, "options": {"low": -np.inf}},
            "must have finite bounds",
        ),
        ({"environment": "Pendulum-v1", "episode_steps": 201}, "after 200 steps already"),
        ({"environment": "Pendulum-v1", "episode_steps": 0}, "episode_steps must be at least 1"),
        ({"environment": "Pendulum-v1", "angles": (3,)}, "angles must be distinct coordinates"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make_world(**options)


# -- agents there ----------------------------------------------------------------------------------


def agent(**options: Any) -> PILCO:
    pl.seed_everything(0, verbose=False)
    small = {
        "environment": NAME,
        "horizon": 8,
        "dynamics": GPDynamics(steps=10),
        "policy": LinearPolicy(squash="tanh"),
        "particles": 6,
        "steps": 2,
        "candidates": 2,
    }
    return PILCO(**(small | options))


def train(module: PILCO, folder: Path) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        callbacks=[PropagationCallback("TP")],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(module)
    return trainer


def test_an_environment_needs_its_id_and_a_horizon(tmp_path: Path) -> None:
    module = agent()
    assert isinstance(module.cost, LearnedReward)
    assert module.episode_steps == module.horizon == 8
    train(module, tmp_path)
    assert len(module.trials) == 3
    assert [t.real_return for t in module.trials] == [e.total for e in module.episodes]


def test_costs_are_the_agents_own_and_returns_the_environments(tmp_path: Path) -> None:
    module = agent(cost=QuadraticCost((1.0, 0.0), weights=(1.0, 0.0)))
    train(module, tmp_path)
    for trial, episode in zip(module.trials, module.episodes, strict=True):
        expected = float((episode.observations[1:, 0] - 1).square().sum())
        assert trial.real_cost == pytest.approx(expected, rel=1e-4)
        assert trial.real_return == episode.total


def test_a_checkpoint_holds_all_parts_in_plain_values(tmp_path: Path) -> None:
    module = agent(cost=LearnedReward())
    trainer = train(module, tmp_path)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_module(tmp_path / "a.ckpt")
    assert isinstance(loaded, PILCO)
    assert isinstance(loaded.policy, LinearPolicy)
    assert loaded.policy.squash == "tanh"
    x, u = torch.randn(5, 2), torch.rand(5, 1)
    assert torch.equal(loaded.act(x), module.act(x))
    assert torch.equal(loaded.dynamics(x, u).mean, module.dynamics(x, u).mean)
    assert torch.equal(loaded.cost(x, u, x), module.cost(x, u, x))
    assert torch.equal(loaded.initial.std_value, module.initial.std_value)
    assert loaded.evaluate_policy(1, seed=0)["success"] == [None]


def test_a_description_will_do_for_a_part() -> None:
    module = agent(policy={"class_path": "MLPPolicy", "init_args": {"hidden": [3]}})
    assert module.policy.description()["init_args"]["hidden"] == [3]


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        ({"class_path": "MLPolicy"}, ValueError, "Did you mean 'MLPPolicy'"),
        ({"class_path": "proppo_agents.MLPolicy"}, ValueError, "Did you mean 'MLPPolicy'"),
        ({"class_path": "proppo_agents.GPDynamics"}, ValueError, "is no Policy"),
        (
            {"class_path": "MLPPolicy", "init_args": {"hiden": [3]}},
            TypeError,
            "Did you mean 'hidden'",
        ),
        ({"class_path": "MLPPolicy", "args": {}}, TypeError, "unknown option 'args'"),
        (3, TypeError, "policy must be a Policy, or a dict .* got int"),
    ],
)
def test_a_wrong_description_is_refused(given: Any, kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        agent(policy=given)


def test_episodes_longer_than_the_horizon_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least an episode's 10 steps; got 8.*episode_steps"):
        agent(episode_steps=10)
