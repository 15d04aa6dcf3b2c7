r"""Whether two estimators of one gradient disagree beyond their noise. Functions of tensors only.

RP misses what happens at a jump; LR does not. Both estimate the same gradient from the same
particles, so that the mean of their difference D is RP's bias. What is tested and remembered is
the difference in units of its standard error about zero, :math:`u`: without a bias :math:`|u|^2` is
about one, and it is at most P.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# |u|^2 beyond which a difference is significant: 3 standard errors where LR costs no variance, and
# 5 where its variance is thousands of times RP's. See :func:`limit`.
LEAST, MOST = 3.0**2, 5.0**2
# Numbers that a difference is remembered by.
SKETCH = 64


def limit(lr_weight: Tensor, tests: int, particles: int | None = None) -> Tensor:
    r"""Return the value of :math:`|u|^2` beyond which a difference is no chance.

    .. math:: \min(3^2 - 2 \log k,\; 5^2) + 2 \log(\text{tests})

    A false alarm makes RP's variance LR's, which is :math:`1 / k` times as much for a small weight
    k on LR. It is as rare, about :math:`e^{-z^2/2}`, so that false alarms add a hundredth to the
    variance. With few particles the limit is that of a t-test with :math:`\nu = P - 1`,
    :math:`t^2 = \nu (e^{z^2 / \nu} - 1)`, or :math:`|u|^2 = P (1 - e^{-z^2 / \nu})`.

    Args:
        lr_weight: k, of any shape.
        tests: how many differences are tested at a joint level.
        particles: P; None for averages over gradients.
    """
    ends = [square + 2 * math.log(tests) for square in (LEAST, MOST)]
    if particles is not None:
        ends = [
            particles * -math.expm1(-square / (particles - 1)) if particles > 1 else math.inf
            for square in ends
        ]
    return (ends[0] - 2 * lr_weight.log()).clamp_max(ends[1])


def squared_error(differences: Tensor, squares: Tensor, particles: int) -> Tensor:
    r"""Return the squared standard error of a difference's length.

    .. math:: \sum_i |d_i - \bar d|^2 + \frac{|D|^2}{P}, \qquad D = \sum_i d_i

    Args:
        differences: D, [T, n].
        squares: the sum of squared deviations of both estimators, [T]; their covariance is left
            out, which makes it too large where they are correlated, as they usually are.
        particles: P.

    Returns:
        [T].
    """
    return squares + differences.square().sum(-1) / particles


def differences_by_feature(rows: Tensor, past: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return differences by coordinate and feature of the past, and their squared standard errors.

    .. math:: D_{af} = \sum_i d_{ia} \varphi_{if}, \qquad
              \sum_i d_{ia}^2 \varphi_{if}^2, \qquad \varphi = (1, x - \bar x)

    A bias that depends on the state may have mean zero over the particles, e.g. where a task is
    symmetric; times a function of the past it has not. Both results add up over ranks.

    Args:
        rows: differences of both estimators, d, [T, P, n].
        past: x, what came before the sample, [T, P, F].
        mean: :math:`\bar x`, [T, F].

    Returns:
        [T, n, 1 + F] each.
    """
    features = torch.nn.functional.pad(past - mean.unsqueeze(1), (1, 0), value=1.0)
    return rows.mT @ features, rows.square().mT @ features.square()


def fold(values: Tensor, signs: Tensor) -> Tensor:
    r"""Return a random projection that keeps scalar products on average (a count sketch).

    Args:
        values: [..., n].
        signs: :math:`\pm 1`, [n].

    Returns:
        [..., SKETCH].
    """
    padded = torch.nn.functional.pad(values * signs, (0, -values.shape[-1] % SKETCH))
    return padded.reshape(*values.shape[:-1], -1, SKETCH).sum(-2)


def doubt(bias: Tensor, gradients: int) -> Tensor:
    r"""Return the share of RP's weight to hand to LR because RP is biased.

    .. math:: q = \frac{M b^2}{1 + M b^2}

    With inverse-variance weights, and b in units of the noise :math:`\sqrt{V_{LR} + V_{RP}}`, LR's
    weight becomes :math:`(V_{RP} + M b^2) / (V_{LR} + V_{RP} + M b^2)`, for the least mean squared
    error of an average over M gradients: noise averages out, a bias does not.

    Args:
        bias: :math:`b^2`, of any shape.
        gradients: M.
    """
    scaled = bias * gradients
    return scaled / (scaled + 1.0)
