"""Where a cart-pole's tip is and what energy it has, which its motion is held against."""

from __future__ import annotations

import numpy as np

from proppo_envs.cartpole_physics import CartPoleParameters
from proppo_envs.integration import FloatArray


def tip_position(state: FloatArray, parameters: CartPoleParameters) -> FloatArray:
    """Position of the pole's tip relative to the pivot's height over the origin.

    Args:
        state: ``[..., 4]``.
        parameters: constants of the system.

    Returns:
        ``[..., 2]``: to the right (m), upwards (m).
    """
    position, angle = state[..., 0], state[..., 2]
    length = parameters.pole_length
    return np.stack([position - length * np.sin(angle), length * np.cos(angle)], axis=-1)


def total_energy(state: FloatArray, parameters: CartPoleParameters) -> FloatArray:
    """Kinetic and potential energy T + V, the latter 0 with the pole horizontal.

    Args:
        state: ``[..., 4]``.
        parameters: constants of the system.

    Returns:
        ``[...]`` (J). It is constant without friction and force.
    """
    p = parameters
    velocity, angle, angular_velocity = state[..., 1], state[..., 2], state[..., 3]
    cos = np.cos(angle)
    kinetic = (
        0.5 * (p.cart_mass + p.pole_mass) * velocity**2
        - 0.5 * p.pole_mass * p.pole_length * velocity * angular_velocity * cos
        + p.pole_mass * p.pole_length**2 * angular_velocity**2 / 6.0
    )
    energy: FloatArray = kinetic + 0.5 * p.pole_mass * p.gravity * p.pole_length * cos
    return energy
