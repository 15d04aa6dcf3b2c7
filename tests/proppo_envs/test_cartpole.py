"""The cart-pole as a Gymnasium environment: noise, motion, reward, info, refusals."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

import proppo_envs
from proppo_envs import CARTPOLE_BALANCE, CARTPOLE_SWING_UP, CartPoleSwingUpEnv, is_success
from proppo_envs.cartpole_physics import state_derivative

from .cart_contract import CartContract
from .moving import mover

integrate = mover(state_derivative)

ID = f"proppo_envs:{CARTPOLE_SWING_UP}"


class TestSwingUpContract(CartContract):
    id = ID
    steps = 25
    poles = 1


class TestBalanceContract(CartContract):
    id = f"proppo_envs:{CARTPOLE_BALANCE}"
    steps = 25
    poles = 1


def exact_env(**options: Any) -> CartPoleSwingUpEnv:
    return CartPoleSwingUpEnv(initial_std=0.0, observation_noise_std=0.0, **options)


# The contract of Gymnasium


def test_the_class_itself_never_ends() -> None:
    env = CartPoleSwingUpEnv()
    env.reset(seed=0)
    assert not any(any(env.step(np.ones(1))[2:4]) for _ in range(200))


def test_registering_again_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proppo_envs.register_environments()
        importlib.reload(proppo_envs)
    assert gymnasium.spec(CARTPOLE_SWING_UP).max_episode_steps == 25


def test_a_fresh_process_makes_it_from_the_name_alone() -> None:
    code = (
        "import gymnasium\n"
        f"gymnasium.make({ID!r}).reset(seed=0)\n"
        "import sys\n"
        "assert 'pygame' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_vector_of_environments() -> None:
    envs = gymnasium.make_vec(ID, num_envs=3, vectorization_mode="sync")
    observations, info = envs.reset(seed=0)
    assert observations.shape == info["state"].shape == (3, 4)
    observations, rewards, *_, info = envs.step(envs.action_space.sample())
    assert rewards.shape == info["success"].shape == (3,)
    envs.close()


# Noise


def test_start_and_measurement_have_their_means_and_standard_deviations() -> None:
    env = CartPoleSwingUpEnv(initial_std=0.2, observation_noise_std=0.03)
    env.reset(seed=0)
    count = 4000
    starts, errors = np.empty((count, 4)), np.empty((2 * count, 4))
    for index in range(count):
        observation, info = env.reset()
        starts[index] = info["state"]
        errors[2 * index] = observation - info["state"]
        observation, *_, info = env.step(np.zeros(1))
        errors[2 * index + 1] = observation - info["state"]
    sigmas = 5.0  # for each of 22 numbers: false alarms in one of 80,000 seeds
    np.testing.assert_allclose(
        starts.mean(0), [0, 0, np.pi, 0], rtol=0, atol=sigmas * 0.2 / math.sqrt(count)
    )
    np.testing.assert_allclose(starts.std(0), 0.2, rtol=sigmas / math.sqrt(2 * count))
    np.testing.assert_allclose(errors.mean(0), 0, rtol=0, atol=sigmas * 0.03 / math.sqrt(2 * count))
    np.testing.assert_allclose(errors.std(0), 0.03, rtol=sigmas / math.sqrt(4 * count))
    correlations = np.corrcoef(errors.T) - np.eye(4)
    assert np.abs(correlations).max() < sigmas / math.sqrt(2 * count)


def test_the_defaults_are_pilcos_noise_and_pipps_width() -> None:
    env = CartPoleSwingUpEnv()
    assert (env.initial_std, env.observation_noise_std, env.cost_width) == (0.1, 0.01, 0.5)


def test_measurement_noise_does_not_enter_the_motion() -> None:
    noisy, clear = CartPoleSwingUpEnv(), CartPoleSwingUpEnv(observation_noise_std=0.0)
    for env in (noisy, clear):
        env.reset(seed=3)
    for _ in range(5):
        results = [env.step(np.array([0.7])) for env in (noisy, clear)]
        np.testing.assert_array_equal(results[0][4]["state"], results[1][4]["state"])
        assert results[0][1] == results[1][1]
        assert (results[0][0] != results[1][0]).all()


def test_balance_starts_upright() -> None:
    env = gymnasium.make(f"proppo_envs:{CARTPOLE_BALANCE}", initial_std=0.0)
    np.testing.assert_array_equal(env.reset(seed=0)[1]["state"], np.zeros(4))


@pytest.mark.parametrize(("where", "angle"), [("hanging", np.pi), ("upright", 0.0)])
def test_initial_angle(where: Any, angle: float) -> None:
    observation, info = exact_env(initial_angle=where).reset(seed=0)
    np.testing.assert_array_equal(info["state"], [0.0, 0.0, angle, 0.0])
    np.testing.assert_array_equal(observation, np.array([0.0, 0.0, angle, 0.0], dtype=np.float32))


# Motion


def test_an_action_is_a_fraction_of_ten_newtons_held_for_a_tenth_of_a_second() -> None:
    env = exact_env()
    state = env.reset(seed=0)[1]["state"]
    for fraction in (0.3, -1.0, 1.0, 0.0):
        state = integrate(
            state, 10.0 * fraction, duration=0.1, substeps=1000, parameters=env.parameters
        )
        observation, *_, info = env.step(np.array([fraction]))
        np.testing.assert_allclose(info["state"], state, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(observation, info["state"].astype(np.float32))


def test_the_angle_is_not_wrapped() -> None:
    env = exact_env()
    env.reset(options={"state": [0.0, 0.0, 3.0, 20.0]})
    angles = [env.step(np.zeros(1))[0][2] for _ in range(10)]
    assert angles[-1] > 2 * np.pi
    assert (np.diff(angles) > 0.0).all()


@pytest.mark.parametrize(("beyond", "bound"), [(3.0, 1.0), (-1e30, -1.0)])
def test_actions_beyond_the_bounds_are_clipped(beyond: float, bound: float) -> None:
    states = []
    for action in (beyond, bound):
        env = exact_env()
        env.reset(seed=0)
        states.append(env.step(np.array([action]))[4]["state"])
    np.testing.assert_array_equal(*states)


def test_the_task_can_be_done_within_an_episode() -> None:
    """Seven pushes swing the pole up, linear feedback on noisy observations then balances it."""
    swing_up = [-0.63, -0.63, 0.1, 0.64, 0.85, 0.86, 0.69]
    gain = np.array([-0.33, -0.32, 2.35, 0.38])
    env = gymnasium.make(ID, initial_std=0.0)
    observation, info = env.reset(seed=0)
    verdicts: list[bool] = []
    states: list[np.ndarray] = []
    truncated = False
    while not truncated:
        step = len(states)
        action = swing_up[step] if step < len(swing_up) else -gain @ observation
        observation, _, _, truncated, info = env.step(np.array([action]))
        states.append(info["state"])
        verdicts.append(info["success"])
        assert info["success"] is is_success(states)
    assert not verdicts[10]
    assert verdicts[-1]
    assert info["tip_distance"] < 0.1


# Reward and cost


@pytest.mark.parametrize("width", [0.25, 0.5])
def test_the_reward_is_one_minus_the_cost_of_the_true_state(width: float) -> None:
    env = CartPoleSwingUpEnv(cost_width=width)
    env.reset(seed=0)
    env.action_space.seed(0)
    rewards, states, distances = [], [], []
    for _ in range(25):
        _, reward, *_, info = env.step(env.action_space.sample())
        assert type(reward) is float
        assert 0.0 <= reward <= 1.0
        rewards.append(reward)
        states.append(info["state"])
        distances.append(info["tip_distance"])
    costs = env.cost(torch.tensor(np.array(states)), torch.zeros(25, 1))
    np.testing.assert_allclose(rewards, 1.0 - costs.numpy(), rtol=0, atol=1e-15)
    expected = np.exp(-(np.array(distances) ** 2) / (2 * width**2))
    np.testing.assert_allclose(rewards, expected, rtol=0, atol=1e-15)


def test_the_best_reward_is_one() -> None:
    env = exact_env(initial_angle="upright")
    info = env.reset(seed=0)[1]
    assert info["tip_distance"] == 0.0
    assert env.step(np.zeros(1))[1] == 1.0


def test_the_cost_is_differentiable_and_takes_no_action_into_account() -> None:
    env = CartPoleSwingUpEnv()
    observation = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    costs = env.cost(observation, torch.ones(6, 1))
    assert costs.shape == (6,)
    assert costs.dtype == torch.float32
    (gradient,) = torch.autograd.grad(costs.sum(), observation)
    assert bool((gradient[:, [0, 2]] != 0.0).all())
    assert torch.equal(costs, env.cost(observation))


# Info and options


def test_the_info_is_the_callers_own() -> None:
    env = exact_env()
    info = env.reset(seed=0)[1]
    assert set(info) == {"state", "tip_distance", "success"}
    info["state"][:] = 99.0
    after = env.step(np.zeros(1))[4]["state"]
    assert np.abs(after).max() < 4.0
    after[:] = 99.0
    assert np.abs(env.step(np.zeros(1))[4]["state"]).max() < 4.0


def test_success_needs_five_steps_of_this_episode() -> None:
    env = exact_env(initial_angle="upright")
    for _ in range(2):
        verdicts = [env.reset(seed=0)[1]["success"]]
        verdicts.extend(env.step(np.zeros(1))[4]["success"] for _ in range(6))
        assert verdicts == [False] * 5 + [True] * 2
        assert all(type(verdict) is bool for verdict in verdicts)


def test_success_is_judged_on_the_true_state() -> None:
    env = CartPoleSwingUpEnv(initial_angle="upright", initial_std=0.0, observation_noise_std=9.0)
    env.reset(seed=0)
    verdicts = [env.step(np.zeros(1))[4]["success"] for _ in range(5)]
    assert verdicts[-1]


def test_the_state_can_be_set() -> None:
    env = CartPoleSwingUpEnv(observation_noise_std=0.0)
    wanted = np.array([0.3, -1.0, 20.0, 4.0])
    observation, info = env.reset(seed=0, options={"state": wanted})
    np.testing.assert_array_equal(info["state"], wanted)
    np.testing.assert_array_equal(observation, wanted.astype(np.float32))
    env.step(np.ones(1))
    np.testing.assert_array_equal(wanted, [0.3, -1.0, 20.0, 4.0])
    observation, info = gymnasium.make(ID).reset(seed=0, options={"state": wanted.tolist()})
    np.testing.assert_array_equal(info["state"], wanted)
    assert (observation != wanted.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": np.zeros(3)}, r"options\['state'\]: expected .*\(4,\).* got shape \(3,\)"),
        ({"state": [0, 0, math.nan, 0]}, r"options\['state'\]: expected .* finite .* got \["),
        ({"state": "up"}, r"options\['state'\]: expected .* got dtype"),
        ({"sate": np.zeros(4)}, r"options: expected only the key 'state', got \['sate'\]"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CartPoleSwingUpEnv().reset(options=options)


# Refusals


@pytest.mark.parametrize(
    "action",
    [
        0.5,
        np.zeros(2),
        np.zeros((1, 1)),
        np.array([np.nan]),
        np.array([np.inf]),
        np.array(["1"]),
        np.array([1j]),
        np.array([True]),
        [[0.0], [0.0, 1.0]],
        None,
        torch.zeros(1, requires_grad=True),
    ],
)
def test_wrong_actions_are_refused_and_leave_the_state_alone(action: Any) -> None:
    env = exact_env()
    before = env.reset(seed=0)[1]["state"]
    with pytest.raises(ValueError, match=r"action: expected an array of shape \(1,\) .*, got"):
        env.step(action)
    after = env.step(np.zeros(1))[4]["state"]
    np.testing.assert_allclose(after, before, atol=1e-12)


def test_lists_and_tensors_are_actions_too() -> None:
    env = exact_env()
    results = []
    for action in (np.array([0.5], dtype=np.float32), [0.5], torch.tensor([0.5])):
        env.reset(seed=0)
        results.append(env.step(action)[0])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_step_and_render_need_a_reset() -> None:
    env = CartPoleSwingUpEnv(render_mode="rgb_array")
    with pytest.raises(ResetNeeded, match="step: expected a call of reset"):
        env.step(np.zeros(1))
    with pytest.raises(ResetNeeded, match="render: expected a call of reset"):
        env.render()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_angle": "down"}, r"initial_angle: expected one of \[.*\], got 'down'"),
        ({"initial_std": -0.1}, "initial_std: expected a finite number of 0 or more, .* got -0.1"),
        ({"initial_std": math.inf}, "initial_std: expected"),
        ({"observation_noise_std": math.nan}, "observation_noise_std: expected .*, got nan"),
        ({"observation_noise_std": [0.1] * 3}, "observation_noise_std: expected .* or 4 of them"),
        ({"observation_noise_std": "pips"}, "observation_noise_std: .*'pipps', got 'pips'"),
        ({"noise_multiplier": -1.0}, "noise_multiplier: expected .* 0 or more, got -1.0"),
        ({"cost_width": 0.0}, "cost_width: expected a positive finite number, .* got 0.0"),
        ({"cost_width": [0.5, -1.0]}, "cost_width: expected .* got "),
        ({"cost_width": []}, "cost_width: expected .* got "),
        ({"render_mode": "ansi"}, "render_mode: expected None or one of .*, got 'ansi'"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CartPoleSwingUpEnv(**options)
