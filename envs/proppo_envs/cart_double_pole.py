"""The swing-up of a double pole on a cart as a Gymnasium environment."""

from __future__ import annotations

from typing import Any, ClassVar

from proppo_envs.cart_double_pole_physics import CartDoublePoleParameters, state_derivative
from proppo_envs.cart_env import CartEnv
from proppo_envs.integration import FloatArray


class CartDoublePoleSwingUpEnv(CartEnv):
    r"""Swing two poles, one on the end of the other, up by pushing the cart they hang from.

    ## Description
    A pole hangs from a cart that runs on an unbounded horizontal track, and a second pole from the
    first one's end; both joints turn freely. Pushing the cart to and fro must bring both poles
    upright and keep them there, with the cart at the origin. The system and its constants are
    Deisenroth's (2010): cart 0.5 kg, each pole 0.5 kg (a uniform rod) and 0.6 m long, friction
    0.1 N/(m/s) between cart and track, gravity 9.82 m/s^2. Each step is 0.05 s long, with the force
    held constant. The motion is chaotic: neighbouring states part quickly. Its equations are
    derived in :mod:`proppo_envs.cart_double_pole_physics`.

    ## Action
    ``Box(-1, 1, (1,), float32)``: the force on the cart as a fraction of the limit of 20 N,
    positive to the right. It is continuous. Values beyond the bounds are clipped to them.

    ## Observation
    ``Box(-3.4e38, 3.4e38, (6,), float32)``, in effect unbounded:

    | index | quantity                    | unit  | note                                       |
    |-------|-----------------------------|-------|--------------------------------------------|
    | 0     | cart position               | m     | positive to the right of the origin        |
    | 1     | cart velocity               | m/s   |                                            |
    | 2     | inner pole angle            | rad   | 0 upright, pi hanging; positive leans left |
    | 3     | inner pole angular velocity | rad/s | positive turns counter-clockwise           |
    | 4     | outer pole angle            | rad   | from the vertical, like the inner pole's   |
    | 5     | outer pole angular velocity | rad/s |                                            |

    The angles are not wrapped: they stay continuous when a pole goes round. Every coordinate
    carries independent Gaussian measurement noise, of standard deviation ``observation_noise_std``
    in its own unit, its variance multiplied by ``noise_multiplier``. Inside, the state is float64.

    ## Reward
    :math:`\exp(-d^2 / (2 w^2))`, in [0, 1], where d is the distance (m) from the outer pole's tip
    after the step to its place when balanced over the origin, and w is ``cost_width``. It is one
    minus :func:`proppo_envs.costs.tip_distance_cost` of the true state, free of measurement noise.
    :meth:`cost` is its differentiable twin for agents.

    ## Start
    The cart rests at the origin with both poles hanging (``initial_angle="upright"``: standing),
    plus independent Gaussian deviations of standard deviation ``initial_std`` on every coordinate.
    ``reset(options={"state": array})`` starts at just that state (six numbers) instead.

    ## End
    The environment never terminates. ``gymnasium.make("proppo_envs:CartDoublePoleSwingUp-v0")``
    wraps it so that it is truncated after 100 steps (5 s); the class by itself does not truncate.

    ## Info
    ``reset`` and ``step`` return ``"state"`` (the true state, a float64 array of shape ``(6,)``
    that is the caller's own), ``"tip_distance"`` (d in metres, a float), and ``"success"`` (a
    bool): :func:`proppo_envs.is_success` of the true states that followed the steps of the episode
    so far, hence false before 5 steps.

    All randomness is drawn from ``self.np_random``.

    Args:
        initial_angle: ``"hanging"`` or ``"upright"``, both poles' mean angle at the start.
        initial_std: standard deviation of the first state, in each coordinate's unit: one number
            or one for each coordinate; 0 or more.
        observation_noise_std: standard deviation of the noise on the observation, in each
            coordinate's unit: one number, one for each coordinate, or ``"pipps"``: 0.01 m, 0.1 m/s,
            and for either pole 1 degree and 10 degrees/s; 0 or more.
        noise_multiplier: k, by which the *variance* of the observation's noise is multiplied; 0 or
            more. See :func:`proppo_envs.measurement.measurement_std`.
        cost_width: width w of the cost (m), positive. With several, the cost is the mean of theirs.
        render_mode: ``None``, ``"rgb_array"`` or ``"human"``; the last two need pygame
            (``pip install "lightning-proppo[render]"``).

    Raises:
        ValueError: an argument is not as said here.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["human", "rgb_array"],
        "render_fps": 20,
    }

    parameters: ClassVar[CartDoublePoleParameters] = CartDoublePoleParameters()
    pole_lengths = (parameters.inner_length, parameters.outer_length)
    force_limit = 20.0
    time_step = 0.05
    # Steps of 1.25 ms. In 2,000 episodes of full force, half of them pumping the inner pole, the
    # poles spun at up to 80 rad/s; one step's error was at most 2e-4 (in rad/s, and less in the
    # other coordinates), and at most 9e-5 below 40 rad/s.
    substeps = 40

    def _derivative(self, state: FloatArray, force: float) -> FloatArray:
        return state_derivative(state, force, self.parameters)
