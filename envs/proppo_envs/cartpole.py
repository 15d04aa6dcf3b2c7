"""The cart-pole swing-up task of PILCO as a Gymnasium environment."""

from __future__ import annotations

from typing import Any, ClassVar

from proppo_envs.cart_env import CartEnv
from proppo_envs.cartpole_physics import CartPoleParameters, state_derivative
from proppo_envs.integration import FloatArray


class CartPoleSwingUpEnv(CartEnv):
    r"""Swing a hanging pole up, and balance it over the origin, by pushing its cart.

    ## Description
    A pole hangs from a cart that runs on an unbounded horizontal track. Pushing the cart to and
    fro must bring the pole upright and keep it there, with the cart at the origin. The system and
    its constants are PILCO's (Deisenroth and Rasmussen, 2011): cart 0.5 kg, pole 0.5 kg (a uniform
    rod) and 0.5 m long, friction 0.1 N/(m/s) between cart and track, gravity 9.82 m/s^2. Each step
    is 0.1 s long, with the force held constant. The equations of motion are derived in
    :mod:`proppo_envs.cartpole_physics`.

    ## Action
    ``Box(-1, 1, (1,), float32)``: the force on the cart as a fraction of the limit of 10 N,
    positive to the right. It is continuous. Values beyond the bounds are clipped to them.

    ## Observation
    ``Box(-3.4e38, 3.4e38, (4,), float32)``, in effect unbounded:

    | index | quantity              | unit  | note                                             |
    |-------|-----------------------|-------|--------------------------------------------------|
    | 0     | cart position         | m     | positive to the right of the origin              |
    | 1     | cart velocity         | m/s   |                                                  |
    | 2     | pole angle            | rad   | 0 upright, pi hanging; positive leans left       |
    | 3     | pole angular velocity | rad/s | positive turns counter-clockwise                 |

    The angle is not wrapped: it stays continuous when the pole goes round, so that differences
    between successive observations are smooth. Every coordinate carries independent Gaussian
    measurement noise, of standard deviation ``observation_noise_std`` in its own unit, its variance
    multiplied by ``noise_multiplier``. Inside, the state is float64; float32 observations fit
    networks of torch's default dtype, and their rounding is far below the noise.

    ## Reward
    :math:`\exp(-d^2 / (2 w^2))`, in [0, 1], where d is the distance (m) from the pole's tip after
    the step to its place when balanced over the origin, and w is ``cost_width``. It is one minus
    :func:`proppo_envs.costs.tip_distance_cost` of the true state, free of measurement noise.
    :meth:`cost` is its differentiable twin for agents.

    ## Start
    The cart rests at the origin with the pole hanging (``initial_angle="upright"``: standing, which
    is what ``gymnasium.make("proppo_envs:CartPoleBalance-v0")`` gives),
    plus independent Gaussian deviations of standard deviation ``initial_std`` on every coordinate.
    ``reset(options={"state": array})`` starts at just that state (four numbers) instead.

    ## End
    The environment never terminates. ``gymnasium.make("proppo_envs:CartPoleSwingUp-v0")`` wraps
    it so that it is truncated after 25 steps (2.5 s); the class by itself does not truncate.

    ## Info
    ``reset`` and ``step`` return ``"state"`` (the true state, a float64 array of shape ``(4,)``
    that is the caller's own), ``"tip_distance"`` (d in metres, a float), and ``"success"`` (a
    bool): :func:`proppo_envs.is_success` of the true states that followed the steps of the episode
    so far, hence false before 5 steps.

    All randomness is drawn from ``self.np_random``.

    Args:
        initial_angle: ``"hanging"`` or ``"upright"``, the pole's mean angle at the start.
        initial_std: standard deviation of the first state, in each coordinate's unit: one number
            or one for each coordinate; 0 or more.
        observation_noise_std: standard deviation of the noise on the observation, in each
            coordinate's unit: one number, one for each coordinate, or ``"pipps"``: 0.01 m, 0.1 m/s,
            1 degree and 10 degrees/s, as in PIPPS (Parmas et al., 2018); 0 or more.
        noise_multiplier: k, by which the *variance* of the observation's noise is multiplied; 0 or
            more. PIPPS takes 1, 4, 16, 25, and others; see
            :func:`proppo_envs.measurement.measurement_std`.
        cost_width: width w of the cost (m), positive. PIPPS takes 0.5, PILCO 0.25. With several,
            the cost is the mean of theirs.
        render_mode: ``None``, ``"rgb_array"`` or ``"human"``; the last two need pygame
            (``pip install "lightning-proppo[render]"``).

    Raises:
        ValueError: an argument is not as said here.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["human", "rgb_array"],
        "render_fps": 10,
    }

    parameters: ClassVar[CartPoleParameters] = CartPoleParameters()
    pole_lengths = (parameters.pole_length,)
    force_limit = 10.0
    time_step = 0.1
    # Steps of 5 ms. In 20,000 episodes of full force, half of them pumping the pole, it spun at up
    # to 35 rad/s; there one step's error was at most 2.5e-4 rad/s, and less in the other
    # coordinates: far below the measurement noise, which it was not with 10 substeps.
    substeps = 20

    def _derivative(self, state: FloatArray, force: float) -> FloatArray:
        return state_derivative(state, force, self.parameters)
