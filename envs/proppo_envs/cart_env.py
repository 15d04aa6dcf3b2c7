"""What the environments with poles on a cart have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from proppo_envs.costs import tip_distance_cost, tip_distance_squared
from proppo_envs.integration import FloatArray, runge_kutta
from proppo_envs.measurement import each_coordinate, measurement_std
from proppo_envs.rendering import CartRenderer
from proppo_envs.success import SUCCESS_STEPS, is_success

_INITIAL_ANGLES = {"hanging": math.pi, "upright": 0.0}


class CartEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]], ABC):
    """A cart on an unbounded track with poles on it, to be pushed until they stand.

    The state is the cart's position and velocity, and for each pole, outwards, its angle from the
    vertical and its angular velocity. A final class says how the state moves, and documents the
    rest in Gymnasium's format; it inherits the arguments.

    Args:
        initial_angle: ``"hanging"`` or ``"upright"``, the poles' mean angle at the start.
        initial_std: standard deviation of the first state, in each coordinate's unit: one number
            or one for each coordinate; 0 or more.
        observation_noise_std: standard deviation of the noise on the observation, in each
            coordinate's unit: one number, one for each coordinate, or ``"pipps"``: 0.01 m, 0.1 m/s,
            1 degree and 10 degrees/s, as in PIPPS (Parmas et al., 2018); 0 or more.
        noise_multiplier: k, by which the *variance* of the observation's noise is multiplied; 0 or
            more. See :func:`proppo_envs.measurement.measurement_std`.
        cost_width: width w of the cost (m), positive. PIPPS takes 0.5, PILCO 0.25. With several,
            the cost is the mean of theirs.
        render_mode: ``None``, ``"rgb_array"`` or ``"human"``; the last two need pygame
            (``pip install "lightning-proppo[render]"``).

    Raises:
        ValueError: an argument is not as said here.
    """

    force_limit: ClassVar[float]
    time_step: ClassVar[float]
    substeps: ClassVar[int]
    pole_lengths: ClassVar[tuple[float, ...]]

    def __init__(
        self,
        *,
        initial_angle: Literal["hanging", "upright"] = "hanging",
        initial_std: float | Sequence[float] = 0.1,
        observation_noise_std: float | Sequence[float] | Literal["pipps"] = 0.01,
        noise_multiplier: float = 1.0,
        cost_width: float | Sequence[float] = 0.5,
        render_mode: str | None = None,
    ) -> None:
        if initial_angle not in _INITIAL_ANGLES:
            raise ValueError(
                f"initial_angle: expected one of {sorted(_INITIAL_ANGLES)}, got {initial_angle!r}"
            )
        poles = len(self.pole_lengths)
        size = 2 + 2 * poles
        self._initial_std = each_coordinate("initial_std", initial_std, size)
        self._measurement_std = measurement_std(observation_noise_std, noise_multiplier, poles)
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
        self.initial_std = initial_std
        self.observation_noise_std = observation_noise_std
        self.noise_multiplier = float(noise_multiplier)
        self.cost_width = (
            [float(width) for width in cost_width]
            if isinstance(cost_width, Sequence)
            else float(cost_width)
        )
        self.render_mode = render_mode
        # The track has no end; Gymnasium's checker warns of infinite bounds.
        largest = float(np.finfo(np.float32).max)
        self.observation_space = gymnasium.spaces.Box(-largest, largest, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._state: FloatArray | None = None
        self._recent: deque[FloatArray] = deque(maxlen=SUCCESS_STEPS)
        self._renderer: CartRenderer | None = None

    @abstractmethod
    def _derivative(self, state: FloatArray, force: float) -> FloatArray:
        """The state's derivative ``(D,)`` by time under a force (N)."""

    def cost(self, observation: Tensor, action: Tensor | None = None) -> Tensor:
        """One minus the reward, as a differentiable function of the state after the step.

        Args:
            observation: ``[P, D]`` (any leading axes), in the units of the observation.
            action: ``[P, 1]``; the cost does not depend on it.

        Returns:
            ``[P]``, in [0, 1], of the observation's dtype.

        Raises:
            TypeError: ``observation`` is not a floating-point tensor.
            ValueError: its last axis does not have the size D.
        """
        del action
        return tip_distance_cost(observation, pole_length=self.pole_lengths, width=self.cost_width)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seeds ``self.np_random``; ``None`` goes on with the present generator.
            options: ``{"state": array}`` with D finite numbers starts at just that state.

        Returns:
            The observation ``(D,)`` and the info described with the class.

        Raises:
            ValueError: an option is unknown, or the state is not D finite numbers.
        """
        super().reset(seed=seed)
        unknown = sorted(str(key) for key in (options or {}) if key != "state")
        if unknown:
            raise ValueError(f"options: expected only the key 'state', got {unknown}")
        size = len(self._initial_std)
        if options and options.get("state") is not None:
            state = _finite_array("options['state']", options["state"], (size,))
        else:
            state = self._initial_std * self.np_random.standard_normal(size)
            state[2::2] += _INITIAL_ANGLES[self.initial_angle]
        self._state = state
        self._recent.clear()
        if self.render_mode == "human":
            self.render()
        return self._observe(state), self._info(state)

    def step(
        self, action: ArrayLike
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Push the cart for one time step.

        Args:
            action: ``(1,)``, the force as a fraction of its limit, clipped to [-1, 1].

        Returns:
            The observation ``(D,)``, the reward, ``False`` (never terminated), ``False`` (never
            truncated here), and the info described with the class.

        Raises:
            ValueError: ``action`` is not one finite number in an array of shape ``(1,)``.
            gymnasium.error.ResetNeeded: the environment has not been reset yet.
        """
        if self._state is None:
            raise ResetNeeded("step: expected a call of reset() first, got none")
        fraction = _finite_array("action", action, (1,)).clip(-1.0, 1.0)
        force = self.force_limit * float(fraction[0])
        state = runge_kutta(
            lambda at: self._derivative(at, force),
            self._state,
            duration=self.time_step,
            substeps=self.substeps,
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
                f"render() was called on a {type(self).__name__} without a render mode; pass "
                'render_mode="rgb_array" or "human" to gymnasium.make or to the class.'
            )
            return None
        if self._state is None:
            raise ResetNeeded("render: expected a call of reset() first, got none")
        if self._renderer is None:
            self._renderer = CartRenderer(
                pole_lengths=self.pole_lengths,
                frames_per_second=self.metadata["render_fps"],
                caption=type(self).__name__.removesuffix("Env"),
            )
        position, angles = float(self._state[0]), self._state[2::2].tolist()
        if self.render_mode == "human":
            self._renderer.show(position, angles)
            return None
        return self._renderer.image(position, angles)

    def close(self) -> None:
        """Close the window, if there is one. It may be called twice."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _observe(self, state: FloatArray) -> NDArray[np.float32]:
        # Drawn also where the standard deviation is 0, so that it alone does not change what the
        # generator gives to later episodes.
        noise = self._measurement_std * self.np_random.standard_normal(len(state))
        return (state + noise).astype(np.float32)

    def _info(self, state: FloatArray) -> dict[str, Any]:
        squared = tip_distance_squared(torch.from_numpy(state), pole_length=self.pole_lengths)
        return {
            "state": state.copy(),
            "tip_distance": math.sqrt(float(squared)),
            "success": is_success(np.array(self._recent).reshape(-1, len(state))),
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
