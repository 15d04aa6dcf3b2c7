r"""How well predicted distributions cover what came: functions of tensors.

A model that says mean :math:`m` and standard deviation :math:`s` of a number :math:`x` claims that
:math:`z = (x - m) / s` is about as large as 1. If x is normal, :math:`|z| \le k` in a share of
:math:`\mathrm{erf}(k / \sqrt 2)` of all cases: 95.4 % for k = 2.

P particles, H steps, D coordinates, A action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from proppo_agents.encodings import angle_changes

# These take observations [P, D] and actions [P, A] to the distribution of the next observations,
# and to such, drawn.
Model = Callable[[Tensor, Tensor], Distribution]
Draw = Callable[[Tensor, Tensor], Tensor]


def draw_trajectories(
    draw: Draw, act: Callable[[int, Tensor], Tensor], start: Tensor, horizon: int
) -> Tensor:
    """Draw trajectories from a model.

    Args:
        draw: a step.
        act: takes the step, from 0, and observations [P, D] to actions [P, A].
        start: [P, D], the first observations.
        horizon: H.

    Returns:
        [H + 1, P, D], the start included.
    """
    trajectory = [start]
    for step in range(horizon):
        x = trajectory[-1]
        trajectory.append(draw(x, act(step, x)))
    return torch.stack(trajectory)


def moments(trajectories: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [H, D] over the particles of [H, P, D]."""
    return trajectories.mean(1), trajectories.std(1)


def standardized_errors(real: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return z = (real - mean) / std of the same shape as these.

    Where there is no error, z is 0, also for a deviation of 0. Where a prediction is not finite, z
    is infinite: it covers nothing.
    """
    error = real - mean
    z = torch.where(error == 0, torch.zeros_like(error), error / std)
    known = mean.isfinite() & std.isfinite()
    return torch.where(known, z, torch.full_like(z, math.inf))


def share_inside(z: Tensor, deviations: float = 2.0) -> Tensor:
    """Return the share [D] of standardized errors [N, D] within so many deviations."""
    return (z.abs() <= deviations).to(z).mean(0)


def expected_share(deviations: float = 2.0) -> float:
    """Return the share inside that a model has which tells the truth of something normal."""
    return math.erf(deviations / math.sqrt(2))


def too_few_inside(z: Tensor, deviations: float = 2.0, level: float = 0.01) -> Tensor:
    """Return for which coordinates [D] a true normal model is unlikely to have so few inside.

    An exact binomial test, for errors that are independent of each other, as those of single steps
    are.

    Args:
        z: standardized errors [N, D].
        deviations: how far inside reaches.
        level: at most this share of true models is found wrong.
    """
    count = len(z)
    share = expected_share(deviations)
    weights = [
        math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(count + 1)
    ]
    # at_most[k]: the probability of k or fewer inside.
    at_most = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    inside = (z.abs() <= deviations).sum(0)
    return at_most[inside.cpu()] < level


def root_mean_square(z: Tensor) -> Tensor:
    """Return the root mean square [D] of standardized errors [N, D].

    About 1 if the deviations are right; larger if the model is too sure of itself, smaller if it
    is not sure enough.
    """
    return z.square().mean(0).sqrt()


def one_step_errors(
    model: Model, observations: Tensor, actions: Tensor, angles: Sequence[int] = ()
) -> Tensor:
    """Return standardized errors [H, D] of the predictions of each next observation.

    Each starts at what was really observed, so that errors do not add up.

    Args:
        model: whose distributions are normal.
        observations: [H + 1, D], of one episode.
        actions: [H, A].
        angles: coordinates whose errors are taken the shorter way round (rad).

    Raises:
        TypeError: if a distribution is not normal.
    """
    predicted = model(observations[:-1], actions)
    if not isinstance(predicted, Normal):
        raise TypeError(f"model must return a Normal; got {type(predicted).__name__}.")
    error = angle_changes(observations[1:] - predicted.mean, angles)
    return standardized_errors(error, predicted.mean * 0, predicted.stddev)


def unwrapped(observations: Tensor, angles: Sequence[int]) -> Tensor:
    """Return observations [H, D] with angles that go on where the circle was closed.

    Args:
        observations: of one episode, with less than half a turn (rad) in each step.
        angles: the coordinates that are angles.
    """
    if not angles:
        return observations
    chosen = list(angles)
    shorter = angle_changes(observations.diff(dim=0), angles)[:, chosen]
    result = observations.clone()
    result[1:, chosen] = observations[0, chosen] + shorter.cumsum(0)
    return result
