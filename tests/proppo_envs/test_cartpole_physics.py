"""The cart-pole's equations of motion and their sign convention."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from proppo_envs.cartpole_physics import CartPoleParameters, state_derivative
from proppo_envs.integration import FloatArray

from .cartpole_mechanics import tip_position, total_energy
from .moving import mover

integrate = mover(state_derivative)
DEFAULT = CartPoleParameters()
FRICTIONLESS = dataclasses.replace(DEFAULT, friction=0.0)
# Unequal everywhere, so that a swapped mass or a lost length shows.
ODD = CartPoleParameters(cart_mass=0.7, pole_mass=0.3, pole_length=0.9, friction=0.0, gravity=5.0)


def some_states(count: int) -> FloatArray:
    generator = np.random.default_rng(0)
    states: FloatArray = generator.normal(size=(count, 4)) * np.array([1.0, 3.0, 3.0, 8.0])
    return states


def test_the_defaults_are_pilcos() -> None:
    assert CartPoleParameters(0.5, 0.5, 0.5, 0.1, 9.82) == DEFAULT


@pytest.mark.parametrize("parameters", [FRICTIONLESS, ODD])
def test_energy_is_conserved_without_friction_and_force(parameters: CartPoleParameters) -> None:
    states = some_states(20)
    later = integrate(states, 0.0, duration=2.0, substeps=4000, parameters=parameters)
    assert np.abs(later - states).max() > 1.0
    np.testing.assert_allclose(
        total_energy(later, parameters), total_energy(states, parameters), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("parameters", [DEFAULT, dataclasses.replace(ODD, friction=0.4)])
def test_energy_changes_by_the_power_of_force_and_friction(parameters: CartPoleParameters) -> None:
    states, force = some_states(50), np.linspace(-10.0, 10.0, 50)
    derivative = state_derivative(states, force, parameters)
    step = 1e-6
    forward = total_energy(states + step * derivative, parameters)
    backward = total_energy(states - step * derivative, parameters)
    velocity = states[:, 1]
    power = (force - parameters.friction * velocity) * velocity
    np.testing.assert_allclose((forward - backward) / (2 * step), power, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("parameters", [FRICTIONLESS, ODD])
def test_energy_agrees_with_the_rods_motion_as_the_tip_position_tells_it(
    parameters: CartPoleParameters,
) -> None:
    """Each point of the rod lies between pivot and tip; its velocity is differentiated here.

    A tip position with the wrong sign of its sine moves the rod's mass the wrong way and fails.
    """
    p, states = parameters, some_states(50)
    step = 1e-6

    def moved(time: float) -> FloatArray:
        result: FloatArray = states.copy()
        result[:, 0] += time * states[:, 1]
        result[:, 2] += time * states[:, 3]
        return result

    def points(time: float) -> FloatArray:
        """Positions ``[50, N, 2]`` of N equal pieces of the rod."""
        fractions = (np.arange(1000) + 0.5) / 1000
        at = moved(time)
        pivot = np.stack([at[:, 0], np.zeros(len(at))], axis=-1)
        tip = tip_position(at, p)
        return pivot[:, None] + fractions[:, None] * (tip - pivot)[:, None]

    velocities = (points(step) - points(-step)) / (2 * step)
    rod = 0.5 * p.pole_mass * (velocities**2).sum(-1).mean(-1)
    height = p.pole_mass * p.gravity * points(0.0)[..., 1].mean(-1)
    cart = 0.5 * p.cart_mass * states[:, 1] ** 2
    np.testing.assert_allclose(cart + rod + height, total_energy(states, p), rtol=1e-5, atol=1e-5)


def test_a_frictionless_system_keeps_its_momentum() -> None:
    states = some_states(20)
    later = integrate(states, 0.0, duration=1.0, substeps=2000, parameters=ODD)

    def momentum(at: FloatArray) -> FloatArray:
        tip_velocity = at[:, 1] - ODD.pole_length * np.cos(at[:, 2]) * at[:, 3]
        centre_velocity = 0.5 * (at[:, 1] + tip_velocity)
        result: FloatArray = ODD.cart_mass * at[:, 1] + ODD.pole_mass * centre_velocity
        return result

    np.testing.assert_allclose(momentum(later), momentum(states), rtol=0, atol=1e-6)


def test_a_positive_force_moves_the_cart_right_and_tips_an_upright_pole_left() -> None:
    later = integrate(np.zeros(4), 5.0, duration=0.1, substeps=10, parameters=DEFAULT)
    assert later[0] > 0.0
    assert later[1] > 0.0
    assert later[2] > 0.0
    right, up = tip_position(later, DEFAULT)
    assert right < later[0]
    assert 0.0 < up < DEFAULT.pole_length


@pytest.mark.parametrize(
    ("angle", "tip"),
    [
        (0.0, (1.0, 0.5)),
        (np.pi / 2, (0.5, 0.0)),
        (np.pi, (1.0, -0.5)),
        (-np.pi / 2, (1.5, 0.0)),
    ],
)
def test_tip_position(angle: float, tip: tuple[float, float]) -> None:
    state = np.array([1.0, 0.0, angle, 0.0])
    np.testing.assert_allclose(tip_position(state, DEFAULT), tip, atol=1e-15)


def test_equilibria_stay_and_only_hanging_returns() -> None:
    for angle, sign in ((0.0, 1.0), (np.pi, -1.0)):
        rest = np.array([0.3, 0.0, angle, 0.0])
        np.testing.assert_allclose(state_derivative(rest, 0.0, DEFAULT), np.zeros(4), atol=1e-14)
        pushed = rest + np.array([0.0, 0.0, 0.01, 0.0])
        assert np.sign(state_derivative(pushed, 0.0, DEFAULT)[3]) == sign


def test_agrees_with_the_equations_of_deisenroth() -> None:
    """His angle is measured from hanging, so the sines and cosines change their signs."""
    p, states, force = DEFAULT, some_states(50), np.linspace(-10.0, 10.0, 50)
    big, m, length, b, g = p.cart_mass, p.pole_mass, p.pole_length, p.friction, p.gravity
    velocity, omega = states[:, 1], states[:, 3]
    sin, cos = np.sin(states[:, 2] + np.pi), np.cos(states[:, 2] + np.pi)
    mass = 4 * (big + m) - 3 * m * cos**2
    acceleration = (
        2 * m * length * omega**2 * sin + 3 * m * g * sin * cos + 4 * force - 4 * b * velocity
    ) / mass
    angular = (
        -3 * m * length * omega**2 * sin * cos
        - 6 * (big + m) * g * sin
        - 6 * (force - b * velocity) * cos
    ) / (length * mass)
    derivative = state_derivative(states, force, p)
    np.testing.assert_allclose(derivative[:, 1], acceleration, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(derivative[:, 3], angular, rtol=1e-10, atol=1e-10)
