r"""Motion of a cart with a double pole: pure functions of numpy arrays.

Convention
    State ``[..., 6]``: cart position x (m, to the right), cart velocity (m/s), angle theta_1 (rad)
    and angular velocity (rad/s) of the inner pole, angle theta_2 and angular velocity of the outer
    pole. Both angles are measured from the vertical, not from the other pole: 0 is upright, they
    grow counter-clockwise (a positive angle leans *left*) and are never wrapped; hanging is pi.
    Hence the joint between the poles is at
    :math:`(x - l_1 \sin\theta_1,\; l_1 \cos\theta_1)`, and the tip of the outer pole at
    :math:`(x - l_1 \sin\theta_1 - l_2 \sin\theta_2,\; l_1 \cos\theta_1 + l_2 \cos\theta_2)`.
    A positive force pushes the cart to the right.

Derivation
    The inner pole, a uniform rod of mass m_1 and length l_1, is hinged to a cart of mass M, and the
    outer pole, a uniform rod of mass m_2 and length l_2, to the inner pole's end. The joints have
    no friction. The energies of the centres of mass and of the rotations about them,
    :math:`m_i l_i^2 / 12` being the moments of inertia, add up to

    .. math::
        T &= \tfrac12 (M + m_1 + m_2) \dot x^2
             - a_1 \dot x \dot\theta_1 \cos\theta_1 - a_2 \dot x \dot\theta_2 \cos\theta_2 \\
          &\quad + \tfrac12 (\tfrac13 m_1 + m_2) l_1^2 \dot\theta_1^2
             + \tfrac16 m_2 l_2^2 \dot\theta_2^2
             + a_2 l_1 \dot\theta_1 \dot\theta_2 \cos(\theta_1 - \theta_2) \\
        V &= a_1 g \cos\theta_1 + a_2 g \cos\theta_2

    with :math:`a_1 = (\tfrac12 m_1 + m_2) l_1` and :math:`a_2 = \tfrac12 m_2 l_2`. Lagrange's
    equations, with the force u and the friction :math:`-b \dot x` on the cart, are linear in the
    accelerations:

    .. math::
        (M + m_1 + m_2) \ddot x - a_1 \cos\theta_1 \ddot\theta_1 - a_2 \cos\theta_2 \ddot\theta_2
            &= u - b \dot x - a_1 \dot\theta_1^2 \sin\theta_1 - a_2 \dot\theta_2^2 \sin\theta_2 \\
        -a_1 \cos\theta_1 \ddot x + (\tfrac13 m_1 + m_2) l_1^2 \ddot\theta_1
            + a_2 l_1 \cos(\theta_1 - \theta_2) \ddot\theta_2
            &= a_1 g \sin\theta_1 - a_2 l_1 \dot\theta_2^2 \sin(\theta_1 - \theta_2) \\
        -a_2 \cos\theta_2 \ddot x + a_2 l_1 \cos(\theta_1 - \theta_2) \ddot\theta_1
            + \tfrac13 m_2 l_2^2 \ddot\theta_2
            &= a_2 g \sin\theta_2 + a_2 l_1 \dot\theta_1^2 \sin(\theta_1 - \theta_2)

    The system is the cart-double pendulum of Deisenroth (2010, "Efficient Reinforcement Learning
    using Gaussian Processes", appendix).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from proppo_envs.integration import FloatArray


@dataclass(frozen=True)
class CartDoublePoleParameters:
    """Constants of the cart and its two poles; the defaults are Deisenroth's (2010).

    Args:
        cart_mass: M (kg).
        inner_mass: m_1 (kg), uniformly along the pole at the cart.
        outer_mass: m_2 (kg), uniformly along the other.
        inner_length: l_1 (m).
        outer_length: l_2 (m).
        friction: b, of the cart on the ground (N per m/s).
        gravity: g (m/s^2).
    """

    cart_mass: float = 0.5
    inner_mass: float = 0.5
    outer_mass: float = 0.5
    inner_length: float = 0.6
    outer_length: float = 0.6
    friction: float = 0.1
    gravity: float = 9.82

    @property
    def inner_moment(self) -> float:
        """a_1 of this module's docstring (kg m)."""
        return (0.5 * self.inner_mass + self.outer_mass) * self.inner_length

    @property
    def outer_moment(self) -> float:
        """a_2 of this module's docstring (kg m)."""
        return 0.5 * self.outer_mass * self.outer_length

    @property
    def inner_inertia(self) -> float:
        """Of the inner pole and the outer one's mass about the cart's hinge (kg m^2)."""
        return (self.inner_mass / 3.0 + self.outer_mass) * self.inner_length**2

    @property
    def outer_inertia(self) -> float:
        """Of the outer pole about the joint between the poles (kg m^2)."""
        return self.outer_mass * self.outer_length**2 / 3.0


def state_derivative(
    state: FloatArray, force: FloatArray | float, parameters: CartDoublePoleParameters
) -> FloatArray:
    """Time derivative of the state, by the equations in this module's docstring.

    Args:
        state: ``[..., 6]``.
        force: on the cart (N), ``[...]`` or one number.
        parameters: constants of the system.

    Returns:
        ``[..., 6]``: velocity (m/s), acceleration (m/s^2), and for either pole angular velocity
        (rad/s) and angular acceleration (rad/s^2).
    """
    p = parameters
    velocity, inner, inner_velocity = state[..., 1], state[..., 2], state[..., 3]
    outer, outer_velocity = state[..., 4], state[..., 5]
    a1, a2 = p.inner_moment, p.outer_moment
    coupling = a2 * p.inner_length
    difference = inner - outer

    mass = np.empty((*state.shape[:-1], 3, 3))
    mass[..., 0, 0] = p.cart_mass + p.inner_mass + p.outer_mass
    mass[..., 0, 1] = mass[..., 1, 0] = -a1 * np.cos(inner)
    mass[..., 0, 2] = mass[..., 2, 0] = -a2 * np.cos(outer)
    mass[..., 1, 1] = p.inner_inertia
    mass[..., 1, 2] = mass[..., 2, 1] = coupling * np.cos(difference)
    mass[..., 2, 2] = p.outer_inertia

    forces = np.empty((*state.shape[:-1], 3, 1))
    forces[..., 0, 0] = (
        force
        - p.friction * velocity
        - a1 * inner_velocity**2 * np.sin(inner)
        - a2 * outer_velocity**2 * np.sin(outer)
    )
    forces[..., 1, 0] = a1 * p.gravity * np.sin(inner) - coupling * outer_velocity**2 * np.sin(
        difference
    )
    forces[..., 2, 0] = a2 * p.gravity * np.sin(outer) + coupling * inner_velocity**2 * np.sin(
        difference
    )
    derivative = np.empty_like(state)
    derivative[..., 0::2] = state[..., 1::2]
    derivative[..., 1::2] = np.linalg.solve(mass, forces)[..., 0]
    return derivative
