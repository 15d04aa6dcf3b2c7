"""Where a double pole's joints are and what energy it has, which its motion is held against."""

from __future__ import annotations

import numpy as np

from proppo_envs.cart_double_pole_physics import CartDoublePoleParameters
from proppo_envs.integration import FloatArray


def joint_position(state: FloatArray, parameters: CartDoublePoleParameters) -> FloatArray:
    """Position of the joint between the poles, from the height of the cart's hinge at the origin.

    Args:
        state: ``[..., 6]``.
        parameters: constants of the system.

    Returns:
        ``[..., 2]``: to the right (m), upwards (m).
    """
    position, inner, length = state[..., 0], state[..., 2], parameters.inner_length
    return np.stack([position - length * np.sin(inner), length * np.cos(inner)], axis=-1)


def tip_position(state: FloatArray, parameters: CartDoublePoleParameters) -> FloatArray:
    """Position of the outer pole's tip, from the height of the cart's hinge at the origin.

    Args:
        state: ``[..., 6]``.
        parameters: constants of the system.

    Returns:
        ``[..., 2]``: to the right (m), upwards (m).
    """
    outer, length = state[..., 4], parameters.outer_length
    along = np.stack([-length * np.sin(outer), length * np.cos(outer)], axis=-1)
    position: FloatArray = joint_position(state, parameters) + along
    return position


def total_energy(state: FloatArray, parameters: CartDoublePoleParameters) -> FloatArray:
    """Kinetic and potential energy T + V, the latter 0 with both poles horizontal.

    Args:
        state: ``[..., 6]``.
        parameters: constants of the system.

    Returns:
        ``[...]`` (J). It is constant without friction and force.
    """
    p = parameters
    velocity, inner, inner_velocity = state[..., 1], state[..., 2], state[..., 3]
    outer, outer_velocity = state[..., 4], state[..., 5]
    a1, a2 = p.inner_moment, p.outer_moment
    kinetic = (
        0.5 * (p.cart_mass + p.inner_mass + p.outer_mass) * velocity**2
        - a1 * velocity * inner_velocity * np.cos(inner)
        - a2 * velocity * outer_velocity * np.cos(outer)
        + 0.5 * p.inner_inertia * inner_velocity**2
        + 0.5 * p.outer_inertia * outer_velocity**2
        + a2 * p.inner_length * inner_velocity * outer_velocity * np.cos(inner - outer)
    )
    energy: FloatArray = kinetic + a1 * p.gravity * np.cos(inner) + a2 * p.gravity * np.cos(outer)
    return energy
