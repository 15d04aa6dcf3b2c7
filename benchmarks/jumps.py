"""Rollouts whose costs or dynamics jump, each with one parameter, and their true gradients.

A problem is a function of the parameter [] and of ``draw(loc, scale)``, which returns a sample
[P] of a normal distribution. It returns the summed cost [P] of each particle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Draw(Protocol):
    """Returns a normal sample [P] around a location [P]."""

    def __call__(self, loc: Tensor, scale: float) -> Tensor:
        """Draw."""
        ...


@dataclass(frozen=True)
class Problem:
    """A rollout with one parameter.

    Attributes:
        name: as the table has it.
        parameter: where the gradient is taken.
        costs: the rollout, from parameter, zeros [P] and ``draw``.
        markov: whether costs depend on the past through each sample alone, as sharing assumes.
    """

    name: str
    parameter: float
    costs: Callable[[Tensor, Tensor, Draw], Tensor]
    markov: bool = False


def step_cost(theta: Tensor, zeros: Tensor, draw: Draw) -> Tensor:
    """A cost that steps at zero."""
    x = draw(zeros + theta, 0.5)
    return (x > 0).to(x) + 0.1 * x


def step_after_chain(theta: Tensor, zeros: Tensor, draw: Draw) -> Tensor:
    """A linear chain that pays once it ends beyond one."""
    x = zeros
    for _ in range(10):
        x = draw(0.9 * x + theta, 0.2)
    return (x > 1).to(x) + 0 * x


def wall(theta: Tensor, zeros: Tensor, draw: Draw) -> Tensor:
    """A linear chain that a wall throws back."""
    x = zeros
    for _ in range(10):
        x = draw(torch.where(x > 0.5, torch.full_like(x, 0.2), 0.9 * x) + theta, 0.2)
    return (x - 1).square()


def coulomb_friction(theta: Tensor, zeros: Tensor, draw: Draw) -> Tensor:
    """A block that is pushed against dry friction, started at rest."""
    x = v = zeros
    for _ in range(20):
        v = draw(v + 0.1 * (theta - torch.sign(v)), 0.1)
        x = x + 0.1 * v
    return (x - 1).square()


def relay(theta: Tensor, zeros: Tensor, draw: Draw) -> Tensor:
    """A drifting state that a relay pulls back above a threshold."""
    x = zeros
    total = zeros
    for _ in range(15):
        x = draw(x + 0.2 * (theta - 2 * (x > 0.5).to(x)), 0.1)
        total = total + 0.1 * (x - 1).square()
    return total


def tube(theta: Tensor, zeros: Tensor, draw: Draw) -> Tensor:
    """A regulator that is paid while the state is inside a tube."""
    x = zeros
    total = zeros
    for _ in range(10):
        x = draw((1 - theta) * x, 0.3)
        total = total - (x.abs() < 0.3).to(x) + 0 * x
    return total


def ball_at_floor(theta: Tensor, zeros: Tensor, draw: Draw) -> Tensor:
    """A ball thrown down at a floor, which it leaves with 0.8 of its speed."""
    z, v = zeros + 0.5, draw(zeros + theta, 0.2)
    for _ in range(15):
        v = draw(v - 0.5 * 0.1, 0.05)
        z = draw(z + 0.1 * v, 0.02)
        hit = z < 0
        z, v = torch.where(hit, -z, z), torch.where(hit, -0.8 * v, v)
    return (z - 1).square()


def clipped_action(theta: Tensor, zeros: Tensor, draw: Draw) -> Tensor:
    """A noisy action that the actuator clips, with the clip left out of the derivative."""
    x = zeros
    for _ in range(5):
        action = draw(zeros + theta, 0.5)
        x = draw(x + 0.4 * (action + (action.clamp(-1, 1) - action).detach()), 0.1)
    return (x - 2).square()


def quantized_sensor(theta: Tensor, zeros: Tensor, draw: Draw) -> Tensor:
    """A regulator whose sensor rounds to halves."""
    x = draw(zeros + 1.5, 0.3)
    total = zeros
    for _ in range(10):
        x = draw(x - theta * torch.round(2 * x) / 2, 0.15)
        total = total + x.square()
    return total


def stick_slip(theta: Tensor, zeros: Tensor, draw: Draw) -> Tensor:
    """A block dragged by a spring whose end moves; it sticks until the pull is strong enough."""
    x = v = end = zeros
    for _ in range(20):
        end = draw(end + 0.1 * theta, 0.05)
        pull = 2.0 * (end - x)
        sticks = (v.abs() < 0.1) & (pull.abs() < 0.8)
        slides = v + 0.2 * (pull - 0.5 * torch.sign(v) - 0.2 * v)
        v = draw(torch.where(sticks, 0.0 * v, slides), 0.05)
        x = draw(x + 0.1 * v, 0.02)
    return (x - 1).square()


def terminating_episode(theta: Tensor, zeros: Tensor, draw: Draw) -> Tensor:
    """Each step costs until a goal is reached, which pays a bonus and ends the episode."""
    x, alive, total = zeros, zeros + 1, zeros
    for _ in range(15):
        x = draw(x + 0.1 * theta, 0.15)
        reached = (x > 1).to(x)
        total = total + alive * (0.1 - 2 * reached) + 0 * x
        alive = alive * (1 - reached)
    return total


def hopping_mass(theta: Tensor, zeros: Tensor, draw: Draw) -> Tensor:
    """A mass on a springy leg that thrusts while it touches the ground and moves up, 25 steps."""
    z, v = zeros + 0.3, zeros
    for _ in range(25):
        touches = z < 0
        thrust = torch.where(touches & (v > 0), theta.expand_as(z), torch.zeros_like(z))
        spring = torch.where(touches, -30 * z, torch.zeros_like(z))
        v = draw(v + 0.1 * (spring + thrust - 2.0), 0.1)
        z = draw(z + 0.1 * v, 0.02)
    return (z - 0.5).square()


PROBLEMS = (
    Problem("step in a cost", 0.3, step_cost, markov=True),
    Problem("step after a chain", 0.1, step_after_chain, markov=True),
    Problem("wall", 0.2, wall, markov=True),
    Problem("Coulomb friction", 0.8, coulomb_friction),
    Problem("relay in the loop", 0.8, relay),
    Problem("tube", 0.3, tube),
    Problem("ball at a floor", -0.6, ball_at_floor),
    Problem("clipped action", 0.8, clipped_action),
    Problem("quantized sensor", 0.5, quantized_sensor),
    Problem("stick-slip", 0.5, stick_slip),
    Problem("terminating episode", 0.6, terminating_episode),
    Problem("hopping mass", 4.0, hopping_mass),
)


def truth(
    problem: Problem, step: float = 0.02, particles: int = 4_000_000, chunk: int = 200_000
) -> tuple[float, float]:
    """Return the gradient and its standard error, by central differences with common noise.

    The noise enters as ``loc + scale * eps`` with the same ``eps`` on both sides. The differences
    at ``step`` and at twice that are extrapolated (Richardson).
    """
    values = []
    for number in range(particles // chunk):
        differences = []
        for width in (step, 2 * step):
            sides = []
            for side in (1, -1):
                generator = torch.Generator().manual_seed(number)

                def draw(loc: Tensor, scale: float, g: torch.Generator = generator) -> Tensor:
                    return loc + scale * torch.randn(loc.shape, generator=g, dtype=loc.dtype)

                theta = torch.tensor(problem.parameter + side * width, dtype=torch.float64)
                zeros = torch.zeros(chunk, dtype=torch.float64)
                sides.append(problem.costs(theta, zeros, draw).mean())
            differences.append((sides[0] - sides[1]) / (2 * width))
        values.append((4 * differences[0] - differences[1]) / 3)
    found = torch.stack(values)
    return found.mean().item(), (found.std() / math.sqrt(len(found))).item()
