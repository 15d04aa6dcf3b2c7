r"""Statistics of all ranks' particles, from what each rank knows of its own.

N ranks, P particles on each, n numbers that are compared. What one rank lacks of the others is
exchanged in a single collective for each function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_proppo.mathematics.gaussians import combine_gaussians, fit_gaussian, gaussian_moments
from lightning_proppo.mathematics.precision import full_precision
from lightning_proppo.mathematics.variances import (
    deviation_products,
    not_negative,
    weights_from_variances,
    wide_weights,
)
from lightning_proppo.ranks import ALONE, Ranks, sum_together

# So many numbers are gathered at the end of a rollout.
_AT_LEAST = 4
_ADVICE = (
    "Give each rank batches of one size (drop_last=True) and rollouts of one length, or make the "
    "manager with sync=False, which leaves each rank its own statistics."
)


def pooled_variances(
    within: Sequence[Tensor],
    totals: Sequence[Sequence[Tensor | None]],
    particles: int,
    ranks: Ranks,
) -> list[Tensor]:
    r"""Return summed variances about the mean of all ranks' particles, from those about a rank's.

    .. math:: \sum_r \sum_i |g_{ri} - \bar g|^2
              = \sum_r \sum_i |g_{ri} - \bar g_r|^2 + \sum_r \frac{|G_r|^2}{P}
              - \frac{|\sum_r G_r|^2}{N P}, \qquad G_r = \sum_i g_{ri} = P \bar g_r

    One all-reduce of 2K + K n numbers in float64.

    Args:
        within: K scalars, :math:`\sum_i |g_{ri} - \bar g_r|^2`.
        totals: G, in parts of any shapes, K times; None counts as zero, where it is None in every
            one of the K.
        particles: P.
        ranks: the ranks.

    Returns:
        K float64 scalars.
    """
    if ranks.size == 1:
        return list(within)
    sums = _rows(totals, within[0].device)
    between = [torch.dot(own, own) / particles for own in sums]
    pooled = _pooled(list(within), between, sums, ranks, particles, _squares)
    return [not_negative(total) for total in pooled]


def pooled_products(
    within: Sequence[Tensor | None],
    totals: Sequence[Sequence[Tensor | None]],
    particles: int,
    ranks: Ranks,
) -> list[Tensor]:
    r"""Return two summed variances and the summed covariance over all ranks' particles.

    As :func:`pooled_variances`; ``within`` is both variances and the covariance, ``totals`` those
    of both estimators.
    """
    known = [product for product in within if product is not None]
    if ranks.size == 1:
        return known
    sums = _rows(totals, known[0].device)
    between = [product / particles for product in _products(sums)]
    return _not_negative(_pooled(known, between, sums, ranks, particles, _products))


def pooled_weights(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    ranks: Ranks,
    scalar_estimate: bool = True,
    with_covariance: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weigh two estimators by inverse variance over all ranks' particles.

    Arguments and returned weights are those of
    :func:`~lightning_proppo.mathematics.variances.wide_weights`, whose gradients are a rank's own.
    """
    if ranks.size == 1:
        return wide_weights(first, second, scalar_estimate, with_covariance)
    particles = first[0].shape[0]
    pairs = [(first, first), (second, second)] + ([(first, second)] if with_covariance else [])
    within = [deviation_products(a, b, scalar_estimate) for a, b in pairs]
    sums = [torch.cat([g.double().sum(0).reshape(-1) for g in own]) for own in (first, second)]

    def products(sums: Sequence[Tensor]) -> list[Tensor]:
        found = [a * b for a, b in _pairs(sums, with_covariance)]
        return [p.sum() if scalar_estimate else p.reshape(first[0].shape[1:]) for p in found]

    between = [product / particles for product in products(sums)]
    pooled = _pooled(within, between, sums, ranks, particles, products)
    return weights_from_variances(*_not_negative(pooled))


def fit_gaussian_over(x: Tensor, ranks: Ranks = ALONE) -> tuple[Tensor, Tensor]:
    """Fit a Gaussian to the particles of all ranks.

    As :func:`~lightning_proppo.mathematics.gaussians.fit_gaussian`, of x [P, D] on each rank. The
    result's graph leads to the rank's own particles only. One all-gather of D + D^2 numbers.

    Raises:
        ValueError: for fewer than two particles in all; if the ranks have different numbers of
            them (on every rank).
    """
    if ranks.size == 1:
        return fit_gaussian(x)
    mean, scatter = gaussian_moments(x)
    with full_precision(x):
        own = torch.cat([mean.double(), scatter.double().reshape(-1)])
        particles, rows = gather_in_step(own, x.shape[0], ranks)
        check_same("particles", particles)
        means, scatters = rows.split([len(mean), scatter.numel()], dim=1)
        # This rank's own moments keep their graph.
        means, scatters = [*means.to(mean.dtype)], [*scatters.to(mean.dtype)]
        means[ranks.rank], scatters[ranks.rank] = mean, scatter.reshape(-1)
        return combine_gaussians(
            torch.stack(means), torch.stack(scatters).reshape(-1, *scatter.shape), x.shape[0]
        )


def gather_in_step(
    x: Tensor, particles: int, ranks: Ranks, ends: bool = False
) -> tuple[list[int], Tensor]:
    """Gather numbers, of a rollout's sample or at its end, on ranks that may not be in step.

    Ranks that record rollouts of different length meet at different places, with as many numbers
    as they have there. Collectives of different size are not an error but wait for ever, or end the
    process. So the end of a rollout gathers as many as its last sample did, and the first number
    says which of the two it is.

    Args:
        x: float64, [n].
        particles: P, at least 1.
        ranks: the ranks.
        ends: whether this is the end of the rollout.

    Returns:
        Every rank's number of particles, and their numbers [N, n].

    Raises:
        ValueError: on every rank, if some are at the end and others are not.
    """
    first = torch.full((1,), -particles if ends else particles, dtype=x.dtype, device=x.device)
    own = torch.cat([first, x])
    size = max(len(own), ranks.gathered if ends else _AT_LEAST)
    rows = ranks.gather(torch.nn.functional.pad(own, (0, size - len(own))))
    ranks.gathered = size
    counts = [int(count) for count in rows[:, 0].tolist()]
    if len({count < 0 for count in counts}) > 1:
        at_end, before = (
            next(rank for rank, count in enumerate(counts) if (count < 0) is end)
            for end in (True, False)
        )
        raise ValueError(
            "every rank must have the same number of samples and costs in a rollout; rank "
            f"{at_end} is at the end of its rollout where rank {before} is not. {_ADVICE}"
        )
    return [abs(count) for count in counts], rows[:, 1 : 1 + len(x)]


def check_same(what: str, counts: Sequence[int]) -> None:
    """Raise unless all ranks have the same number of something.

    Args:
        what: its name, in the plural.
        counts: the numbers, by rank.

    Raises:
        ValueError: naming the numbers.
    """
    if len(set(counts)) > 1:
        raise ValueError(
            f"every rank must have the same number of {what}; got "
            f"{', '.join(f'{count} on rank {rank}' for rank, count in enumerate(counts))}. "
            f"{_ADVICE}"
        )


def _rows(totals: Sequence[Sequence[Tensor | None]], device: torch.device) -> list[Tensor]:
    """Lay the parts of each set's total side by side, in float64: [n] for each of the K sets."""
    parts: list[list[Tensor]] = [[] for _ in totals]
    for each in zip(*totals, strict=True):
        some = next((total for total in each if total is not None), None)
        if some is None:
            continue
        for own, total in zip(parts, each, strict=True):
            total = torch.zeros_like(some) if total is None else total
            dense = total.to_dense() if total.layout != torch.strided else total
            own.append(dense.reshape(-1).double())
    empty = torch.zeros(0, dtype=torch.float64, device=device)
    return [torch.cat(own) if own else empty for own in parts]


def _pairs(sums: Sequence[Tensor], with_covariance: bool) -> list[tuple[Tensor, Tensor]]:
    first, second = sums
    return [(first, first), (second, second)] + ([(first, second)] if with_covariance else [])


def _not_negative(products: list[Tensor]) -> list[Tensor]:
    """Return two variances, which rounding may have made negative, and what follows them."""
    return [*(not_negative(variance) for variance in products[:2]), *products[2:]]


def _squares(sums: Sequence[Tensor]) -> list[Tensor]:
    return [torch.dot(own, own) for own in sums]


def _products(sums: Sequence[Tensor]) -> list[Tensor]:
    return [torch.dot(a, b) for a, b in _pairs(sums, with_covariance=True)]


def _pooled(
    within: list[Tensor],
    between: list[Tensor],
    sums: list[Tensor],
    ranks: Ranks,
    particles: int,
    products: Callable[[Sequence[Tensor]], list[Tensor]],
) -> list[Tensor]:
    local = [a.double() + b for a, b in zip(within, between, strict=True)]
    reduced = sum_together([*local, *sums], ranks)
    squares, totals = reduced[: len(local)], reduced[len(local) :]
    every = particles * ranks.size
    return [a - b / every for a, b in zip(squares, products(totals), strict=True)]
