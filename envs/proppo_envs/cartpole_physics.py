r"""Motion of a cart with a pole: pure functions of numpy arrays.

Convention
    State ``[..., 4]``: cart position x (m, to the right), cart velocity (m/s), pole angle theta
    (rad), pole angular velocity (rad/s). The angle is 0 when the pole stands upright, grows
    counter-clockwise (a positive angle leans *left*) and is never wrapped; hanging is pi.
    Hence the tip of a pole of length l is at :math:`(x - l \sin\theta,\; l \cos\theta)`.
    A positive force pushes the cart to the right, and with it an upright pole to the left.

Derivation
    The pole is a uniform rod of mass m hinged to a cart of mass M. Its centre of mass, at
    :math:`(x - \tfrac l2 \sin\theta,\; \tfrac l2 \cos\theta)`, has the velocity
    :math:`(\dot x - \tfrac l2 \dot\theta\cos\theta,\; -\tfrac l2 \dot\theta\sin\theta)`, and it
    turns about that centre with moment of inertia :math:`m l^2 / 12`. So

    .. math::
        T &= \tfrac12 (M + m) \dot x^2 - \tfrac12 m l \dot x \dot\theta \cos\theta
             + \tfrac16 m l^2 \dot\theta^2 \\
        V &= \tfrac12 m g l \cos\theta

    Lagrange's equations, with the force u and the friction :math:`-b \dot x` on the cart, read

    .. math::
        (M + m) \ddot x - \tfrac12 m l (\ddot\theta \cos\theta - \dot\theta^2 \sin\theta)
            &= u - b \dot x \\
        \tfrac13 m l^2 \ddot\theta - \tfrac12 m l \ddot x \cos\theta
            - \tfrac12 m g l \sin\theta &= 0

    and solved for the accelerations

    .. math::
        \ddot x &= \frac{u - b \dot x + \tfrac34 m g \sin\theta \cos\theta
                   - \tfrac12 m l \dot\theta^2 \sin\theta}
                  {M + m - \tfrac34 m \cos^2\theta} \\
        \ddot\theta &= \frac{3}{2 l} (\ddot x \cos\theta + g \sin\theta)

    With theta replaced by theta + pi these are the equations of Deisenroth (2010, "Efficient
    Reinforcement Learning using Gaussian Processes"), who measures from hanging.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from proppo_envs.integration import FloatArray


@dataclass(frozen=True)
class CartPoleParameters:
    """Constants of the cart and pole; the defaults are PILCO's.

    Args:
        cart_mass: M (kg).
        pole_mass: m (kg), uniformly along the pole.
        pole_length: l (m).
        friction: b, of the cart on the ground (N per m/s).
        gravity: g (m/s^2).
    """

    cart_mass: float = 0.5
    pole_mass: float = 0.5
    pole_length: float = 0.5
    friction: float = 0.1
    gravity: float = 9.82


def state_derivative(
    state: FloatArray, force: FloatArray | float, parameters: CartPoleParameters
) -> FloatArray:
    """Time derivative of the state, by the equations in this module's docstring.

    Args:
        state: ``[..., 4]``.
        force: on the cart (N), ``[...]`` or one number.
        parameters: constants of the system.

    Returns:
        ``[..., 4]``: velocity (m/s), acceleration (m/s^2), angular velocity (rad/s), angular
        acceleration (rad/s^2).
    """
    p = parameters
    velocity, angle, angular_velocity = state[..., 1], state[..., 2], state[..., 3]
    sin, cos = np.sin(angle), np.cos(angle)
    acceleration = (
        force
        - p.friction * velocity
        + 0.75 * p.pole_mass * p.gravity * sin * cos
        - 0.5 * p.pole_mass * p.pole_length * angular_velocity**2 * sin
    ) / (p.cart_mass + p.pole_mass - 0.75 * p.pole_mass * cos**2)
    angular_acceleration = 1.5 / p.pole_length * (acceleration * cos + p.gravity * sin)
    derivative = np.empty_like(state)
    derivative[..., 0] = velocity
    derivative[..., 1] = acceleration
    derivative[..., 2] = angular_velocity
    derivative[..., 3] = angular_acceleration
    return derivative
