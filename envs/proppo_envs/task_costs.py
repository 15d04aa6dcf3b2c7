"""Costs as functions of a step, each the torch twin of one environment's reward.

An environment of Gymnasium's computes its reward inside the simulator, where no gradient comes
from. Here each is written again as a function of what an agent sees: the observation before the
step, the action, and the observation after it. ``reward = reward_offset - cost``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from proppo_envs.cart_double_pole import CartDoublePoleSwingUpEnv
from proppo_envs.cartpole import CartPoleSwingUpEnv
from proppo_envs.checks import check_coordinates
from proppo_envs.costs import tip_distance_cost


class StepCost(ABC):
    """The cost of a step: differentiable, batched, of the inputs' dtype.

    A final class is a frozen dataclass. Its fields have the names and the defaults of the
    environment's options that change the reward, and :attr:`unsupported` names those options that
    change it but that it cannot follow.

    Attributes:
        observation_size: D.
        action_size: A.
        unsupported: options of the environment under which this is not its cost.
    """

    observation_size: ClassVar[int]
    action_size: ClassVar[int]
    unsupported: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def reward_offset(self) -> float:
        """What the environment's reward is where the cost is 0."""

    def __call__(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """The costs of steps.

        Args:
            observation: ``[..., D]``, before the step.
            action: ``[..., A]``, as the environment takes it, in its units and bounds.
            next_observation: ``[..., D]``, after the step.

        Returns:
            ``[...]``, ``reward_offset`` minus the environment's reward.

        Raises:
            TypeError: an argument is not a floating-point tensor.
            ValueError: its last axis does not have the size of the environment's space.
        """
        check_coordinates("observation", observation, self.observation_size)
        check_coordinates("action", action, self.action_size)
        check_coordinates("next_observation", next_observation, self.observation_size)
        return self._cost(observation, action, next_observation)

    @abstractmethod
    def _cost(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """The costs ``[...]``; the arguments have been checked."""


@dataclass(frozen=True)
class _TipCost(StepCost):
    """Of poles on a cart: :func:`proppo_envs.tip_distance_cost` after the step.

    Args:
        cost_width: width of the cost (m), or several.
    """

    cost_width: float | Sequence[float] = 0.5

    action_size = 1
    reward_offset = 1.0
    _pole_lengths: ClassVar[tuple[float, ...]]

    def _cost(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        del observation, action
        return tip_distance_cost(
            next_observation, pole_length=self._pole_lengths, width=self.cost_width
        )


@dataclass(frozen=True)
class CartPoleCost(_TipCost):
    """Of the cart-pole, swing-up or balance: :func:`proppo_envs.tip_distance_cost` after the step.

    Args:
        cost_width: width of the cost (m), or several.
    """

    observation_size = 4
    _pole_lengths = CartPoleSwingUpEnv.pole_lengths


@dataclass(frozen=True)
class CartDoublePoleCost(_TipCost):
    """Of the cart with a double pole: :func:`proppo_envs.tip_distance_cost` after the step.

    Args:
        cost_width: width of the cost (m), or several.
    """

    observation_size = 6
    _pole_lengths = CartDoublePoleSwingUpEnv.pole_lengths


@dataclass(frozen=True)
class PendulumCost(StepCost):
    r"""Of Gymnasium's Pendulum-v1, of the state *before* the step.

    .. math:: c = \theta^2 + 0.1\, \dot\theta^2 + 0.001\, u^2

    with the angle theta in [-pi, pi], 0 upright, and the torque u clipped to its bounds of 2 N m.
    The angle is taken from its cosine and sine, which a model may predict off the unit circle; only
    their direction counts, and where both are 0 there is no gradient (it is not a number).
    """

    observation_size = 3
    action_size = 1
    reward_offset = 0.0

    def _cost(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        del next_observation
        cosine, sine, velocity = observation.unbind(-1)
        torque = action[..., 0].clamp(-2.0, 2.0)
        return (
            torch.atan2(sine, cosine).square() + 0.1 * velocity.square() + 0.001 * torque.square()
        )


@dataclass(frozen=True)
class InvertedPendulumCost(StepCost):
    r"""Of MuJoCo's InvertedPendulum-v5: 1 where the pole has fallen after the step, else 0.

    Fallen is an angle of more than 0.2 rad, or a coordinate that is not finite. The episode ends
    there. The cost is flat, its gradient 0: estimators by likelihood ratios learn from its values,
    reparameterization learns nothing; for that, take a smooth cost instead.
    """

    observation_size = 4
    action_size = 1
    unsupported = ("xml_file",)
    reward_offset = 1.0

    def _cost(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        del observation, action
        angle = next_observation[..., 1]
        healthy = next_observation.isfinite().all(dim=-1) & (angle.abs() <= 0.2)
        return _indicator(~healthy, next_observation)


@dataclass(frozen=True)
class InvertedDoublePendulumCost(StepCost):
    r"""Of MuJoCo's InvertedDoublePendulum-v5, of the state after the step.

    .. math:: c = 0.01\, x^2 + (y - 2)^2 + 0.001\, v_1^2 + 0.005\, v_2^2 + r\, [y \le 1]

    with the tip at (x, y) in metres, the joints' angular velocities v_1 and v_2, and r the
    ``healthy_reward``, which ends with the episode when the tip sinks to 1 m.

    It is the environment's under :class:`proppo_envs.inverted_double_pendulum.RewardObservedState`;
    the reward that Gymnasium itself gives is no function of what it observes.

    Args:
        healthy_reward: r.
    """

    healthy_reward: float = 10.0

    observation_size = 9
    action_size = 1
    unsupported = ("xml_file",)

    @property
    def reward_offset(self) -> float:
        """The reward for a tip that rests 2 m above the cart's start."""
        return self.healthy_reward

    def _cost(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        del observation, action
        position, sin1, sin2, cos1, cos2, _, v1, v2, _ = next_observation.unbind(-1)
        # The second angle is measured from the first pole.
        x = position + 0.6 * (sin1 + sin1 * cos2 + cos1 * sin2)
        y = 0.6 * (cos1 + cos1 * cos2 - sin1 * sin2)
        penalty = 0.01 * x.square() + (y - 2.0).square()
        penalty = penalty + 1e-3 * v1.square() + 5e-3 * v2.square()
        return penalty + self.healthy_reward * (y <= 1.0).to(y.dtype)


@dataclass(frozen=True)
class ReacherCost(StepCost):
    r"""Of MuJoCo's Reacher-v5: distance from fingertip to target after the step, and effort.

    .. math:: c = w_d\, |p - q| + w_c\, |a|^2

    The observation holds p - q. At the target itself the distance has no gradient; it is 0 there.

    Args:
        reward_dist_weight: w_d.
        reward_control_weight: w_c.
    """

    reward_dist_weight: float = 1.0
    reward_control_weight: float = 1.0

    observation_size = 10
    action_size = 2
    unsupported = ("xml_file",)
    reward_offset = 0.0

    def _cost(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        del observation
        distance: Tensor = torch.linalg.vector_norm(next_observation[..., 8:10], dim=-1)
        effort = action.square().sum(dim=-1)
        return self.reward_dist_weight * distance + self.reward_control_weight * effort


@dataclass(frozen=True)
class HalfCheetahCost(StepCost):
    r"""Of MuJoCo's HalfCheetah-v5: effort, less the forward velocity over the step.

    .. math:: c = w_c\, |a|^2 - w_f\, (x' - x) / \Delta t

    The position x is observed only with ``exclude_current_positions_from_observation=False``. (The
    velocity in the observation is that of an instant, not that of the reward.)

    Args:
        forward_reward_weight: w_f.
        ctrl_cost_weight: w_c.
        frame_skip: simulation steps of 0.01 s in a step.
    """

    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.1
    frame_skip: int = 5

    observation_size = 18
    action_size = 6
    unsupported = ("xml_file",)
    reward_offset = 0.0

    def _cost(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        velocity = (next_observation[..., 0] - observation[..., 0]) / (0.01 * self.frame_skip)
        effort = action.square().sum(dim=-1)
        return self.ctrl_cost_weight * effort - self.forward_reward_weight * velocity


@dataclass(frozen=True)
class HopperCost(StepCost):
    r"""Of MuJoCo's Hopper-v5: effort, less the forward velocity over the step; and having fallen.

    .. math:: c = w_c\, |a|^2 - w_f\, (x' - x) / \Delta t + r\, [\text{fallen}]

    The position x is observed only with ``exclude_current_positions_from_observation=False``.
    Fallen is a height, an angle, or any coordinate from the third on that is out of its range after
    the step; the episode ends there. Velocities are observed clipped to 10, so that one beyond
    ``healthy_state_range`` goes unseen if that is wider, as it is by default (100).

    Args:
        forward_reward_weight: w_f.
        ctrl_cost_weight: w_c.
        healthy_reward: r, for each step not fallen.
        healthy_state_range: of the coordinates from the third on.
        healthy_z_range: of the height (m).
        healthy_angle_range: of the torso's angle (rad).
        frame_skip: simulation steps of 0.002 s in a step.
    """

    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 1e-3
    healthy_reward: float = 1.0
    healthy_state_range: tuple[float, float] = (-100.0, 100.0)
    healthy_z_range: tuple[float, float] = (0.7, math.inf)
    healthy_angle_range: tuple[float, float] = (-0.2, 0.2)
    frame_skip: int = 4

    observation_size = 12
    action_size = 3
    unsupported = ("xml_file",)

    @property
    def reward_offset(self) -> float:
        """The reward for standing still without effort."""
        return self.healthy_reward

    def _cost(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        velocity = (next_observation[..., 0] - observation[..., 0]) / (0.002 * self.frame_skip)
        effort = action.square().sum(dim=-1)
        healthy = (
            _within(next_observation[..., 2:], self.healthy_state_range).all(dim=-1)
            & _within(next_observation[..., 1], self.healthy_z_range)
            & _within(next_observation[..., 2], self.healthy_angle_range)
        )
        cost = self.ctrl_cost_weight * effort - self.forward_reward_weight * velocity
        return cost + self.healthy_reward * (~healthy).to(cost.dtype)


def _within(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = bounds
    return (low < values) & (values < high)


def _indicator(condition: Tensor, argument: Tensor) -> Tensor:
    """1 or 0, with the gradient 0 by ``argument`` where that is finite, and not without one."""
    zero = torch.where(argument.isfinite(), argument, 0.0).sum(dim=-1) * 0.0
    return condition.to(argument.dtype) + zero
