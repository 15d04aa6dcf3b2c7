"""Integration of the carts' motion: its order, its start, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from proppo_envs import cart_double_pole_physics, cartpole_physics
from proppo_envs.integration import FloatArray

from .moving import mover


@dataclass(frozen=True)
class System:
    """What is integrated.

    Attributes:
        derivative: of the state, by state, force and parameters.
        parameters: of the motion.
        duration: of a step of the environment, in seconds.
        force: the largest, in newtons.
        scale: of some states' coordinates.
    """

    derivative: Callable[[FloatArray, Any, Any], FloatArray]
    parameters: Any
    duration: float
    force: float
    scale: tuple[float, ...]

    def states(self, count: int) -> FloatArray:
        generator = np.random.default_rng(0)
        found: FloatArray = generator.normal(size=(count, len(self.scale))) * self.scale
        return found

    def forces(self, count: int) -> FloatArray:
        return np.linspace(-self.force, self.force, count)

    def move(self, state: FloatArray, force: Any, duration: float, substeps: int) -> FloatArray:
        return mover(self.derivative)(
            state, force, duration=duration, substeps=substeps, parameters=self.parameters
        )


SYSTEMS = {
    "cart-pole": System(
        cartpole_physics.state_derivative,
        cartpole_physics.CartPoleParameters(),
        0.1,
        10.0,
        (1.0, 3.0, 3.0, 8.0),
    ),
    "cart with a double pole": System(
        cart_double_pole_physics.state_derivative,
        cart_double_pole_physics.CartDoublePoleParameters(),
        0.05,
        20.0,
        (1.0, 3.0, 3.0, 6.0, 3.0, 6.0),
    ),
}
every_system = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)


@every_system
def test_it_is_of_fourth_order(system: System) -> None:
    states, forces = system.states(20), system.forces(20)

    def error(substeps: int) -> float:
        fine = system.move(states, forces, system.duration, 2000)
        coarse = system.move(states, forces, system.duration, substeps)
        return float(np.abs(coarse - fine).max())

    assert error(20) < 1e-4
    assert 12.0 < error(20) / error(40) < 20.0


@every_system
def test_the_flow_starts_with_the_derivative(system: System) -> None:
    states, forces, step = system.states(20), system.forces(20), 1e-6
    change = system.move(states, forces, step, 1) - system.move(states, forces, -step, 1)
    expected = system.derivative(states, forces, system.parameters)
    np.testing.assert_allclose(change / (2 * step), expected, rtol=1e-6, atol=1e-6)


@every_system
def test_it_is_pure_and_batched(system: System) -> None:
    states, forces = system.states(3), np.array([1.0, -2.0, 3.0])
    before = states.copy()
    together = system.move(states, forces, system.duration, 3)
    np.testing.assert_array_equal(states, before)
    for index in range(3):
        alone = system.move(states[index], forces[index], system.duration, 3)
        np.testing.assert_allclose(alone, together[index], rtol=1e-13)


@every_system
def test_it_refuses_no_substeps(system: System) -> None:
    with pytest.raises(ValueError, match="substeps: expected at least 1, got 0"):
        system.move(system.states(1)[0], 0.0, system.duration, 0)
