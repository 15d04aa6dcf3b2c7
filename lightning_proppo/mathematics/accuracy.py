"""How accurate a batch's mean gradient is. Functions of tensors and numbers only; P particles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def trace_of_covariance(squared_deviations: Tensor, particles: int) -> Tensor:
    r"""Return the variance of a sum of particles' contributions, summed over coordinates.

    .. math:: \mathrm{tr}\, \mathrm{Cov}\Big[\sum_i h_i\Big]
              \approx \frac{P}{P - 1} \sum_i |h_i - \bar h|^2

    unbiased for independent contributions. Those to a batch's mean gradient are
    :math:`h_i = g_i / P`.

    Args:
        squared_deviations: the sum over particles.
        particles: P, at least 2.
    """
    return squared_deviations * (particles / (particles - 1))


def squared_signal(squared_norm: float, variance: float) -> float:
    r"""Return an unbiased estimate of :math:`|E \hat g|^2`, which may be negative.

    .. math:: E |\hat g|^2 = |E \hat g|^2 + \mathrm{tr}\, \mathrm{Cov}[\hat g]
    """
    return squared_norm - variance


def signal_to_noise(signal: float, variance: float) -> float:
    r"""Return :math:`|E \hat g|^2 / \mathrm{tr}\, \mathrm{Cov}[\hat g]`.

    Args:
        signal: an estimate of the squared norm of the expected gradient; a negative one counts as
            zero.
        variance: an estimate of the trace of the covariance.

    Returns:
        Zero where either is not finite; infinity for a gradient without noise.
    """
    if not (math.isfinite(signal) and math.isfinite(variance)):
        return 0.0
    if variance <= 0:
        return math.inf if signal > 0 else 0.0
    return max(signal, 0.0) / variance


def standard_errors(squared_norm: float, variance: float) -> float:
    r"""Return :math:`|\hat g| / \sqrt{V}`, which is about one for a gradient that is noise alone.

    Args:
        squared_norm: :math:`|\hat g|^2`.
        variance: :math:`V = \mathrm{tr}\, \mathrm{Cov}[\hat g]`.

    Returns:
        Zero for zero without noise.
    """
    if variance == 0:
        return math.inf if squared_norm > 0 else 0.0
    return math.sqrt(squared_norm / variance)


def particles_needed(particles: int, variance_used: float, variance_other: float) -> float:
    r"""Return how many particles another estimator needs for the accuracy of the one in use.

    .. math:: P' = P \frac{V_{other}}{V_{used}}

    because a mean's variance falls as 1 / P.

    Returns:
        Infinity where the other's variance is not finite, or where the one in use has none; NaN
        where the one in use has a variance that is not finite, or both have none.
    """
    if not math.isfinite(variance_used):
        return math.nan
    if not math.isfinite(variance_other):
        return math.inf
    if variance_used <= 0:
        return math.nan if variance_other <= 0 else math.inf
    return particles * variance_other / variance_used


def variance_of_successive(gradients: Sequence[Sequence[Tensor]]) -> float:
    r"""Return the variance of a gradient, summed over coordinates, from three successive ones.

    .. math:: \frac{1}{6} |\hat g_{t-1} - 2 \hat g_t + \hat g_{t+1}|^2

    which a gradient that changes linearly from step to step does not bias.

    Args:
        gradients: of three steps in order, each a list of tensors of the same shapes.

    Raises:
        ValueError: unless there are three.
    """
    if len(gradients) != 3:
        raise ValueError(f"gradients must be those of three steps; got {len(gradients)}.")
    total = 0.0
    for before, now, after in zip(*gradients, strict=True):
        second = before.double() - 2 * now.double() + after.double()
        total += float(second.square().sum())
    return total / 6


def squared_norm(gradients: Sequence[Tensor]) -> float:
    """Return the sum of squares of all elements, in float64."""
    if not gradients:
        return 0.0
    return float(torch.stack([g.double().square().sum() for g in gradients]).sum())
