"""The cart with a double pole as a Gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from proppo_envs import CART_DOUBLE_POLE_SWING_UP, CartDoublePoleSwingUpEnv
from proppo_envs.cart_double_pole_physics import state_derivative

from .cart_contract import CartContract
from .cart_double_pole_mechanics import tip_position
from .moving import mover

integrate = mover(state_derivative)


class TestContract(CartContract):
    id = f"proppo_envs:{CART_DOUBLE_POLE_SWING_UP}"
    steps = 100
    poles = 2


def exact_env(**options: Any) -> CartDoublePoleSwingUpEnv:
    return CartDoublePoleSwingUpEnv(initial_std=0.0, observation_noise_std=0.0, **options)


def test_an_action_is_a_fraction_of_twenty_newtons_held_for_a_twentieth_of_a_second() -> None:
    env = exact_env()
    state = env.reset(seed=0)[1]["state"]
    for fraction in (0.3, -1.0, 1.0, 0.0):
        state = integrate(
            state, 20.0 * fraction, duration=0.05, substeps=500, parameters=env.parameters
        )
        observation, *_, info = env.step(np.array([fraction]))
        np.testing.assert_allclose(info["state"], state, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(observation, info["state"].astype(np.float32))


def test_the_reward_falls_with_the_distance_of_the_outer_tip() -> None:
    env = exact_env(cost_width=0.7)
    env.reset(options={"state": [0.2, 1.0, 0.4, -1.0, -0.6, 2.0]})
    _, reward, *_, info = env.step(np.zeros(1))
    right, up = tip_position(info["state"], env.parameters)
    squared = right**2 + (up - 1.2) ** 2
    assert info["tip_distance"] == pytest.approx(np.sqrt(squared), rel=1e-12)
    assert reward == pytest.approx(np.exp(-squared / (2 * 0.7**2)), rel=1e-12)


def test_hanging_and_upright_are_where_it_starts() -> None:
    _, hanging = exact_env().reset(seed=0)
    np.testing.assert_array_equal(hanging["state"], [0, 0, np.pi, 0, np.pi, 0])
    assert hanging["tip_distance"] == pytest.approx(2.4)
    env = exact_env(initial_angle="upright")
    _, upright = env.reset(seed=0)
    np.testing.assert_array_equal(upright["state"], np.zeros(6))
    assert env.step(np.zeros(1))[1] == 1.0


def test_success_needs_both_poles() -> None:
    env = exact_env()
    for state, expected in (
        ([0.0] * 6, True),
        ([0.0, 0.0, 0.0, 0.0, np.pi, 0.0], False),
        ([0.0, 0.0, np.pi, 0.0, 0.0, 0.0], False),
        ([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], False),
    ):
        env.reset(options={"state": state})
        verdicts = [env.step(np.zeros(1))[4]["success"] for _ in range(5)]
        assert verdicts == [False] * 4 + [expected]


def test_the_task_can_be_done_within_an_episode() -> None:
    """Sixty pushes swing both poles up, linear feedback on noisy observations then balances them.

    The pushes are those of differential dynamic programming, tracked with two decimals; an error at
    the start grows 1e7 times on the way, so that rounding, of 1e-16, does no harm.
    """
    swing_up = [
        *(1.0, 1.0, 0.98, 0.68, 0.15, -0.72, -0.99, -1.0, -1.0, -0.99, -0.8, 0.1, 0.45, 0.29, 0.04),
        *(0.0, 0.1, 0.19, 0.21, 0.19, 0.14, 0.07, 0.02, -0.02, 0.0, 0.01, 0.05, 0.06, 0.09, 0.1),
        *(0.07, -0.01, -0.17, -0.35, -0.4, -0.32, -0.19, -0.06, 0.1, 0.32, 0.53, 0.57, 0.27, -0.31),
        *(-0.31, -0.31, -0.4, -0.4, -0.29, -0.13, 0.05, 0.23, 0.34, 0.31, 0.17, 0.09, 0.07, 0.11),
        *(0.14, -0.05),
    ]
    gain = np.array([0.24, 0.34, 4.36, -0.05, -5.97, -0.87])
    env = gymnasium.make(TestContract.id, initial_std=0.0)
    observation, info = env.reset(seed=0)
    truncated = False
    step = 0
    while not truncated:
        action = swing_up[step] if step < len(swing_up) else -gain @ observation
        observation, reward, _, truncated, info = env.step(np.array([action]))
        step += 1
    assert step == 100
    assert info["success"]
    assert info["tip_distance"] < 0.1
    assert reward > 0.95


def test_wrong_noise_is_refused() -> None:
    for name in ("initial_std", "observation_noise_std"):
        with pytest.raises(ValueError, match=f"^{name}: expected .* or 6 of them, got"):
            CartDoublePoleSwingUpEnv(**{name: [0.1] * 4})


def test_a_picture_shows_both_poles() -> None:
    pytest.importorskip("pygame")

    def centre(inner: float, outer: float) -> np.ndarray:
        env = CartDoublePoleSwingUpEnv(render_mode="rgb_array")
        env.reset(options={"state": [0.0, 0.0, inner, 0.0, outer, 0.0]})
        image = env.render()
        env.close()
        assert image is not None
        assert image.shape == (510, 600, 3)
        redder = image[..., 0].astype(int) - image[..., 2] > 80
        return np.argwhere(redder).mean(axis=0)

    up, bent, down = centre(0.0, 0.0), centre(0.0, np.pi / 2), centre(np.pi, np.pi)
    # The centre of two poles of 90 pixels each, of which the outer one turns to the left.
    np.testing.assert_allclose(bent - up, [22.5, -22.5], atol=2.0)
    np.testing.assert_allclose(down - up, [180.0, 0.0], atol=4.0)
