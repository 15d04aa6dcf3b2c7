"""The double pole's equations of motion and their sign convention."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from proppo_envs import cartpole_physics
from proppo_envs.cart_double_pole_physics import CartDoublePoleParameters, state_derivative
from proppo_envs.integration import FloatArray

from .cart_double_pole_mechanics import joint_position, tip_position, total_energy
from .moving import mover

integrate = mover(state_derivative)
DEFAULT = CartDoublePoleParameters()
FRICTIONLESS = dataclasses.replace(DEFAULT, friction=0.0)
# Unequal everywhere, so that a swapped mass or length shows.
ODD = CartDoublePoleParameters(
    cart_mass=0.7,
    inner_mass=0.3,
    outer_mass=0.4,
    inner_length=0.9,
    outer_length=0.5,
    friction=0.0,
    gravity=5.0,
)


def some_states(count: int) -> FloatArray:
    generator = np.random.default_rng(0)
    scale = np.array([1.0, 3.0, 3.0, 6.0, 3.0, 6.0])
    states: FloatArray = generator.normal(size=(count, 6)) * scale
    return states


def test_the_defaults_are_deisenroths() -> None:
    assert CartDoublePoleParameters(0.5, 0.5, 0.5, 0.6, 0.6, 0.1, 9.82) == DEFAULT


@pytest.mark.parametrize("parameters", [FRICTIONLESS, ODD])
def test_energy_is_conserved_without_friction_and_force(
    parameters: CartDoublePoleParameters,
) -> None:
    states = some_states(20)
    # Steps of 0.25 ms: with those of 0.5 ms the fastest pole, at 50 rad/s, loses 3e-6 J.
    later = integrate(states, 0.0, duration=2.0, substeps=8000, parameters=parameters)
    assert np.abs(later - states).max() > 1.0
    np.testing.assert_allclose(
        total_energy(later, parameters), total_energy(states, parameters), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("parameters", [DEFAULT, dataclasses.replace(ODD, friction=0.4)])
def test_energy_changes_by_the_power_of_force_and_friction(
    parameters: CartDoublePoleParameters,
) -> None:
    states, force = some_states(50), np.linspace(-20.0, 20.0, 50)
    derivative = state_derivative(states, force, parameters)
    step = 1e-6
    forward = total_energy(states + step * derivative, parameters)
    backward = total_energy(states - step * derivative, parameters)
    velocity = states[:, 1]
    power = (force - parameters.friction * velocity) * velocity
    np.testing.assert_allclose((forward - backward) / (2 * step), power, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("parameters", [FRICTIONLESS, ODD])
def test_energy_agrees_with_the_rods_motion_as_joint_and_tip_tell_it(
    parameters: CartDoublePoleParameters,
) -> None:
    """Each point of a rod lies between its ends; the velocities are finite differences."""
    p, states = parameters, some_states(50)
    step = 1e-6

    def points(time: float) -> tuple[FloatArray, FloatArray]:
        """Positions ``[50, N, 2]`` of N equal pieces of either rod."""
        at = states.copy()
        at[:, 0::2] += time * states[:, 1::2]
        fractions = ((np.arange(1000) + 0.5) / 1000)[:, None]
        pivot = np.stack([at[:, 0], np.zeros(len(at))], axis=-1)[:, None]
        joint, tip = joint_position(at, p)[:, None], tip_position(at, p)[:, None]
        return pivot + fractions * (joint - pivot), joint + fractions * (tip - joint)

    energy = 0.5 * p.cart_mass * states[:, 1] ** 2
    rods = zip((p.inner_mass, p.outer_mass), points(-step), points(0.0), points(step), strict=True)
    for mass, before, now, after in rods:
        velocities = (after - before) / (2 * step)
        energy += 0.5 * mass * (velocities**2).sum(-1).mean(-1)
        energy += mass * p.gravity * now[..., 1].mean(-1)
    np.testing.assert_allclose(energy, total_energy(states, p), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parameters", [DEFAULT, dataclasses.replace(ODD, friction=0.4)])
def test_motion_satisfies_lagranges_equations_differentiated_by_torch(
    parameters: CartDoublePoleParameters,
) -> None:
    r"""d/dt dL/dv - dL/dq = forces, with L from the centres of mass, which are placed here anew."""
    p = parameters

    def lagrangian(q: Tensor, v: Tensor) -> Tensor:
        def centres(at: Tensor) -> Tensor:
            inner = torch.stack([-torch.sin(at[1]), torch.cos(at[1])]) * p.inner_length
            outer = torch.stack([-torch.sin(at[2]), torch.cos(at[2])]) * p.outer_length
            cart = torch.stack([at[0], torch.zeros_like(at[0])])
            return torch.stack([cart, cart + 0.5 * inner, cart + inner + 0.5 * outer])

        place, velocity = centres(q), torch.func.jacrev(centres)(q) @ v
        masses = torch.tensor([p.cart_mass, p.inner_mass, p.outer_mass], dtype=q.dtype)
        lengths = torch.tensor([0.0, p.inner_length, p.outer_length], dtype=q.dtype)
        moving = 0.5 * (masses * velocity.square().sum(-1)).sum()
        spinning = (masses * lengths.square() / 24.0 * v.square()).sum()
        return moving + spinning - p.gravity * (masses * place[:, 1]).sum()

    for state, force in zip(some_states(20), np.linspace(-20.0, 20.0, 20), strict=True):
        derivative = torch.from_numpy(state_derivative(state, force, p))
        q, v = torch.from_numpy(state[0::2].copy()), torch.from_numpy(state[1::2].copy())
        by_place, by_velocity = torch.func.jacrev(
            torch.func.grad(lagrangian, argnums=1), argnums=(0, 1)
        )(q, v)
        change = by_place @ derivative[0::2] + by_velocity @ derivative[1::2]
        expected = torch.func.grad(lagrangian)(q, v)
        expected[0] += float(force) - p.friction * v[0]
        torch.testing.assert_close(change, expected, rtol=1e-10, atol=1e-10)


def test_a_frictionless_system_keeps_its_momentum() -> None:
    states = some_states(20)
    later = integrate(states, 0.0, duration=1.0, substeps=2000, parameters=ODD)

    def momentum(at: FloatArray) -> FloatArray:
        joint = at[:, 1] - ODD.inner_length * np.cos(at[:, 2]) * at[:, 3]
        tip = joint - ODD.outer_length * np.cos(at[:, 4]) * at[:, 5]
        result: FloatArray = (
            ODD.cart_mass * at[:, 1]
            + ODD.inner_mass * 0.5 * (at[:, 1] + joint)
            + ODD.outer_mass * 0.5 * (joint + tip)
        )
        return result

    np.testing.assert_allclose(momentum(later), momentum(states), rtol=0, atol=1e-6)


def test_without_the_outer_poles_mass_it_is_the_cart_pole() -> None:
    p = dataclasses.replace(ODD, outer_mass=1e-12, friction=0.3)
    single = cartpole_physics.CartPoleParameters(
        p.cart_mass, p.inner_mass, p.inner_length, p.friction, p.gravity
    )
    states, force = some_states(50), np.linspace(-10.0, 10.0, 50)
    np.testing.assert_allclose(
        state_derivative(states, force, p)[:, :4],
        cartpole_physics.state_derivative(states[:, :4], force, single),
        rtol=1e-8,
        atol=1e-8,
    )


def test_a_positive_force_moves_the_cart_right_and_tips_upright_poles_left() -> None:
    later = integrate(np.zeros(6), 5.0, duration=0.05, substeps=10, parameters=DEFAULT)
    assert later[0] > 0.0
    assert later[1] > 0.0
    assert later[2] > 0.0
    joint, _ = joint_position(later, DEFAULT)
    tip, height = tip_position(later, DEFAULT)
    assert joint < later[0]
    assert tip < later[0]
    assert 1.19 < height < 1.2


@pytest.mark.parametrize(
    ("inner", "outer", "tip"),
    [
        (0.0, 0.0, (1.0, 1.2)),
        (np.pi / 2, 0.0, (0.4, 0.6)),
        (0.0, -np.pi / 2, (1.6, 0.6)),
        (np.pi, np.pi, (1.0, -1.2)),
        (np.pi, 0.0, (1.0, 0.0)),
    ],
)
def test_tip_position(inner: float, outer: float, tip: tuple[float, float]) -> None:
    state = np.array([1.0, 0.0, inner, 0.0, outer, 0.0])
    np.testing.assert_allclose(tip_position(state, DEFAULT), tip, atol=1e-15)


def test_equilibria_stay_and_only_hanging_is_stable() -> None:
    for angles in ((0.0, 0.0), (0.0, np.pi), (np.pi, 0.0), (np.pi, np.pi)):
        rest = np.array([0.3, 0.0, angles[0], 0.0, angles[1], 0.0])
        np.testing.assert_allclose(state_derivative(rest, 0.0, DEFAULT), np.zeros(6), atol=1e-13)
        columns = [
            state_derivative(rest + 1e-6 * unit, 0.0, DEFAULT)
            - state_derivative(rest - 1e-6 * unit, 0.0, DEFAULT)
            for unit in np.eye(6)
        ]
        growth = np.linalg.eigvals(np.stack(columns, axis=1) / 2e-6).real.max()
        assert (growth < 1e-6) == (angles == (np.pi, np.pi))
