"""The cart-pole swing-up task of PILCO as a Gymnasium environment."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from proppo_envs.cartpole_physics import CartPoleParameters, FloatArray, integrate
from proppo_envs.costs import tip_distance_cost, tip_distance_squared
from proppo_envs.rendering import CartPoleRenderer
from proppo_envs.success import SUCCESS_STEPS, is_success

__all__ = ["CartPoleSwingUpEnv", "is_success"]

_INITIAL_ANGLES = {"hanging": math.pi, "upright": 0.0}


class CartPoleSwingUpEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
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
    measurement noise, of standard deviation ``observation_noise_std`` in its own unit. Inside, the
    state is float64; float32 observations fit networks of torch's default dtype, and their
    rounding is far below the noise.

    ## Reward
    :math:`\exp(-d^2 / (2 w^2))`, in [0, 1], where d is the distance (m) from the pole's tip after
    the step to its place when balanced over the origin, and w is ``cost_width``. It is one minus
    :func:`proppo_envs.costs.tip_distance_cost` of the true state, free of measurement noise.
    :meth:`cost` is its differentiable twin for agents.

    ## Start
    The cart rests at the origin with the pole hanging (``initial_angle="upright"``: standing),
    plus independent Gaussian deviations of standard deviation ``initial_std`` on every coordinate.
    ``reset(options={"state": array})`` starts at just that state (four numbers) instead.

    ## End
    The environment never terminates. ``gymnasium.make("proppo_envs:CartPoleSwingUp-v0")`` wraps
    it so that it is truncated after 25 steps (2.5 s); the class by itself does not truncate.

    ## Info
    ``reset`` and ``step`` return ``"state"`` (the true state, a float64 array of shape ``(4,)``
    that is the caller's own), ``"tip_distance"`` (d in metres, a float), and ``"success"`` (a
    bool): :func:`is_success` of the true states that followed the steps of the episode so far,
    hence false before 5 steps.

    All randomness is drawn from ``self.np_random``.

    Args:
        initial_angle: ``"hanging"`` or ``"upright"``, the pole's mean angle at the start.
        initial_std: standard deviation of every coordinate of the first state, in the
            coordinate's unit; 0 or more.
        observation_noise_std: standard deviation of the noise on every coordinate of the
            observation, in the coordinate's unit; 0 or more.
        cost_width: width w of the cost (m), positive. PIPPS (Parmas et al., 2018) takes 0.5,
            PILCO 0.25. With several, the cost is the mean of theirs.
        render_mode: ``None``, ``"rgb_array"`` or ``"human"``; the last two need pygame
            (``pip install "lightning-proppo[render]"``).

    Raises:
        ValueError: an argument is not as said here.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["human", "rgb_array"],
        "render_fps": 10,
    }

    parameters = CartPoleParameters()
    force_limit = 10.0
    time_step = 0.1
    # Steps of 5 ms. In 20,000 episodes of full force, half of them pumping the pole, it spun at up
    # to 35 rad/s; there one step's error was at most 2.5e-4 rad/s, and less in the other
    # coordinates: far below the measurement noise, which it was not with 10 substeps.
    substeps = 20

    def __init__(
        self,
        *,
        initial_angle: Literal["hanging", "upright"] = "hanging",
        initial_std: float = 0.1,
        observation_noise_std: float = 0.01,
        cost_width: float | Sequence[float] = 0.5,
        render_mode: str | None = None,
    ) -> None:
        if initial_angle not in _INITIAL_ANGLES:
            raise ValueError(
                f"initial_angle: expected one of {sorted(_INITIAL_ANGLES)}, got {initial_angle!r}"
            )
        for name, value in (
            ("initial_std", initial_std),
            ("observation_noise_std", observation_noise_std),
        ):
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name}: expected a finite number of 0 or more, got {value!r}")
        widths = cost_width if isinstance(cost_width, Sequence) else (cost_width,)
        if not widths or not all(math.isfinite(width) and width > 0.0 for width in widths):
            raise ValueError(
                "cost_width: expected a positive finite number, or several of them, got "
                f"{cost_width!r}"
            )
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(
                f"render_mode: expected None or one of {self.metadata['render_modes']}, "
                f"got {render_mode!r}"
            )
        self.initial_angle = initial_angle
        self.initial_std = float(initial_std)
        self.observation_noise_std = float(observation_noise_std)
        self.cost_width = (
            [float(width) for width in cost_width]
            if isinstance(cost_width, Sequence)
            else float(cost_width)
        )
        self.render_mode = render_mode
        # The track has no end; Gymnasium's checker warns of infinite bounds.
        largest = float(np.finfo(np.float32).max)
        self.observation_space = gymnasium.spaces.Box(-largest, largest, (4,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._state: FloatArray | None = None
        self._recent: deque[FloatArray] = deque(maxlen=SUCCESS_STEPS)
        self._renderer: CartPoleRenderer | None = None

    def cost(self, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """One minus the reward, as a differentiable function of the state after the step.

        Args:
            observation: ``[P, 4]`` (any leading axes), in the units of the observation.
            action: ``[P, 1]``; the cost does not depend on it.

        Returns:
            ``[P]``, in [0, 1], of the observation's dtype.

        Raises:
            TypeError: ``observation`` is not a floating-point tensor.
            ValueError: its last axis does not have size 4.
        """
        del action
        return tip_distance_cost(
            observation, pole_length=self.parameters.pole_length, width=self.cost_width
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds ``self.np_random``; ``None`` goes on with the present generator.
            options: ``{"state": array}`` with four finite numbers starts at just that state.

        Returns:
            The observation ``(4,)`` and the info described with the class.

        Raises:
            ValueError: an option is unknown, or the state is not four finite numbers.
        """
        super().reset(seed=seed)
        unknown = sorted(str(key) for key in (options or {}) if key != "state")
        if unknown:
            raise ValueError(f"options: expected only the key 'state', got {unknown}")
        if options and options.get("state") is not None:
            state = _finite_array("options['state']", options["state"], (4,))
        else:
            mean = np.array([0.0, 0.0, _INITIAL_ANGLES[self.initial_angle], 0.0])
            state = mean + self.initial_std * self.np_random.standard_normal(4)
        self._state = state
        self._recent.clear()
        if self.render_mode == "human":
            self.render()
        return self._observe(state), self._info(state)

    def step(
        self, action: ArrayLike
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Push the cart for one step of 0.1 s.

        Args:
            action: ``(1,)``, the force as a fraction of its limit, clipped to [-1, 1].

        Returns:
            The observation ``(4,)``, the reward, ``False`` (never terminated), ``False`` (never
            truncated here), and the info described with the class.

        Raises:
            ValueError: ``action`` is not one finite number in an array of shape ``(1,)``.
            gymnasium.error.ResetNeeded: the environment has not been reset yet.
        """
        if self._state is None:
            raise ResetNeeded("step: expected a call of reset() first, got none")
        fraction = _finite_array("action", action, (1,)).clip(-1.0, 1.0)
        state = integrate(
            self._state,
            self.force_limit * float(fraction[0]),
            duration=self.time_step,
            substeps=self.substeps,
            parameters=self.parameters,
        )
        self._state = state
        self._recent.append(state)
        reward = 1.0 - float(self.cost(torch.from_numpy(state)))
        if self.render_mode == "human":
            self.render()
        return self._observe(state), reward, False, False, self._info(state)

    def render(self) -> NDArray[np.uint8] | None:
        """Draw the present state.

        Returns:
            ``"rgb_array"``: an image ``[height, width, 3]`` of uint8. ``"human"``: ``None``, the
            image is in a window. Without a render mode: ``None``, with Gymnasium's warning.

        Raises:
            gymnasium.error.ResetNeeded: the environment has not been reset yet.
            gymnasium.error.DependencyNotInstalled: pygame is missing.
        """
        if self.render_mode is None:
            gymnasium.logger.warn(
                "render() was called on a CartPoleSwingUpEnv without a render mode; pass "
                'render_mode="rgb_array" or "human" to gymnasium.make or to the class.'
            )
            return None
        if self._state is None:
            raise ResetNeeded("render: expected a call of reset() first, got none")
        if self._renderer is None:
            self._renderer = CartPoleRenderer(
                pole_length=self.parameters.pole_length,
                frames_per_second=self.metadata["render_fps"],
            )
        position, angle = float(self._state[0]), float(self._state[2])
        if self.render_mode == "human":
            self._renderer.show(position, angle)
            return None
        return self._renderer.image(position, angle)

    def close(self) -> None:
        """Close the window, if there is one. It may be called twice."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _observe(self, state: FloatArray) -> NDArray[np.float32]:
        # Drawn also where the standard deviation is 0, so that it alone does not change what the
        # generator gives to later episodes.
        noise = self.observation_noise_std * self.np_random.standard_normal(4)
        return (state + noise).astype(np.float32)

    def _info(self, state: FloatArray) -> dict[str, Any]:
        squared = tip_distance_squared(
            torch.from_numpy(state), pole_length=self.parameters.pole_length
        )
        recent = np.array(self._recent).reshape(-1, 4)
        return {
            "state": state.copy(),
            "tip_distance": math.sqrt(float(squared)),
            "success": is_success(recent),
        }


def _finite_array(name: str, value: ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    """A float64 copy of ``value``, or a ValueError that names it."""
    expected = f"{name}: expected an array of shape {shape} of finite numbers"
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # the last: a tensor that needs grad
        raise ValueError(f"{expected}, got {value!r}") from error
    if array.dtype.kind not in "fiu":  # numpy would turn "1" and True into numbers
        raise ValueError(f"{expected}, got dtype {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{expected}, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{expected}, got {array}")
    return np.array(array, dtype=np.float64)
