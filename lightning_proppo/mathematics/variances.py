"""Variances of per-particle gradients, and weights made of them. Functions of tensors only.

P particles; a per-particle gradient is [P, ...].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def expand(data: Tensor, batch_size: int) -> Tensor:
    """Give a tensor a leading particle axis without copying it.

    Through the result, autograd yields gradients particle by particle.

    Args:
        data: [...].
        batch_size: P.

    Returns:
        [P, ...].

    Raises:
        TypeError: if ``data`` is no tensor or ``batch_size`` no int.
        ValueError: for less than one particle.
    """
    if not isinstance(data, Tensor):
        raise TypeError(f"data must be a tensor; got {data!r}.")
    if not isinstance(batch_size, int):
        raise TypeError(f"batch_size must be an int; got {batch_size!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
    return data.expand((batch_size, *data.shape))


def _as_list(x: Any) -> list[Any]:
    return list(x) if isinstance(x, (list, tuple)) else [x]


def _centred(gradients: Sequence[Tensor]) -> list[Tensor]:
    return [g - g.mean(dim=0, keepdim=True) for g in gradients]


def _largest(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.abs().amax() if t.numel() else t.sum() for t in tensors]).amax()


def inverse_variance_weighting(
    x1: Tensor | Sequence[Tensor],
    x2: Tensor | Sequence[Tensor],
    scalar_estimate: bool = True,
    with_covariance: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Weigh two estimators by the inverse of their summed variance (Appendix A.2).

    .. math:: k_1 = \frac{V_2}{V_1 + V_2}, \qquad
              V = \sum_d \sum_i (g_{i,d} - \bar g_d)^2

    Args:
        x1: per-particle gradients of the first estimator, [P, ...], or several such.
        x2: those of the second, of the same shapes.
        scalar_estimate: one weight for all; False for a weight for each coordinate (only where
            ``x1`` and ``x2`` are one tensor each).
        with_covariance: weights of least variance where the estimators are correlated, as those
            of the same samples are; see :func:`weights_from_variances`.

    Returns:
        The weights k_1 and k_2 in the dtype of the gradients, which are finite and sum to one. An
        estimator whose variance is not finite has weight zero; if neither's is, the first has
        weight one. Two variances of zero give one half each.

    Raises:
        ValueError: for what is no gradient; if the shapes differ; for weights by coordinate of
            several tensors.
    """
    first, second = _as_list(x1), _as_list(x2)
    k1, k2 = wide_weights(first, second, scalar_estimate, with_covariance)
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in (*first, *second)))
    return k1.to(dtype), k2.to(dtype)


def wide_weights(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    scalar_estimate: bool = True,
    with_covariance: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return what :func:`inverse_variance_weighting` does of lists of gradients, in float64."""
    for tensor in (*first, *second):
        if not isinstance(tensor, Tensor) or tensor.dim() == 0 or not tensor.is_floating_point():
            raise ValueError(
                "x1 and x2 must be per-particle gradients [P, ...], floating point, or lists of "
                f"such; got {tensor!r} among them."
            )
    shapes = [list(t.shape) for t in first], [list(t.shape) for t in second]
    if shapes[0] != shapes[1] or not first:
        raise ValueError(f"x1 and x2 must have the same shapes; got {shapes[0]} and {shapes[1]}.")
    if not scalar_estimate and len(first) > 1:
        raise ValueError(
            f"scalar_estimate=False weighs one tensor's coordinates; got {len(first)} tensors."
        )
    if not with_covariance and all(t.dtype.itemsize <= 4 for t in (*first, *second)):
        # Squares of 32-bit numbers do not overflow in 64 bits.
        return weights_from_variances(
            *(_squared_deviations(each, scalar_estimate) for each in (first, second))
        )
    return _scaled_weights(first, second, scalar_estimate, with_covariance)


def _squared_deviations(gradients: Sequence[Tensor], scalar_estimate: bool) -> Tensor:
    """Return the sums of squared deviations, of all coordinates or by coordinate, in float64."""
    sums = []
    for gradient in gradients:
        wide = gradient.double()
        deviations = wide - wide.mean(0, keepdim=True)
        squares = deviations * deviations
        sums.append(squares.sum() if scalar_estimate else squares.sum(0))
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()


def deviation_products(
    first: Sequence[Tensor], second: Sequence[Tensor], scalar_estimate: bool = True
) -> Tensor:
    r"""Return summed products of deviations, in float64: of all coordinates, or of each.

    .. math:: \sum_i (f_i - \bar f)(s_i - \bar s)

    Args:
        first: per-particle gradients f, [P, ...] each.
        second: s, of the same shapes.
        scalar_estimate: sum over all coordinates, []; False (for one tensor): [...].
    """
    if second is first:
        return _squared_deviations(first, scalar_estimate)
    sums = []
    for a, b in zip(first, second, strict=True):
        a, b = a.double(), b.double()
        products = (a - a.mean(0, keepdim=True)) * (b - b.mean(0, keepdim=True))
        sums.append(products.sum() if scalar_estimate else products.sum(0))
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()


def _scaled_weights(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    scalar_estimate: bool,
    with_covariance: bool,
) -> tuple[Tensor, Tensor]:
    """Return the weights without squares that overflow."""
    d1, d2 = _centred(first), _centred(second)
    if not scalar_estimate:
        c1, c2 = d1[0].abs().amax(0), d2[0].abs().amax(0)
    else:
        c1, c2 = _largest(d1), _largest(d2)
    # One scale for both keeps the squares from overflowing and leaves their ratio alone.
    scale = torch.maximum(torch.nan_to_num(c1, 0.0, 0.0), torch.nan_to_num(c2, 0.0, 0.0))
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    d1, d2 = [d / scale for d in d1], [d / scale for d in d2]
    pairs = [(d1, d1), (d2, d2)] + ([(d1, d2)] if with_covariance else [])
    if scalar_estimate:
        products = [
            torch.stack([(a * b).sum() for a, b in zip(*pair, strict=True)]).sum() for pair in pairs
        ]
    else:
        products = [(a[0] * b[0]).sum(0) for a, b in pairs]
    return weights_from_variances(*products)


def not_negative(variance: Tensor) -> Tensor:
    """Return a difference of sums of squares as a variance.

    Rounding may make a small difference of large numbers negative, which counts as zero. What was
    subtracted may be infinite (a total that overflowed in 32 bits, where the squares in 64 did
    not). What is not finite, of either sign or no number, is infinite.
    """
    return variance.nan_to_num(torch.inf, torch.inf, torch.inf).clamp_min(0.0)


def weights_from_variances(
    v1: Tensor, v2: Tensor, covariance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Return the weights of least variance for two (non-negative) variances of any equal shape.

    .. math:: k_1 = \frac{V_2 - C}{V_1 + V_2 - 2C}

    limited to [0, 1].

    Args:
        v1: the variance of the first estimator; below zero counts as zero.
        v2: that of the second.
        covariance: C; None counts as zero, which gives inverse-variance weights.

    Returns:
        Finite weights that sum to one; see :func:`inverse_variance_weighting`.
    """
    a, b = (not_negative(v if v.dtype == torch.float64 else v.double()) for v in (v1, v2))
    if covariance is not None:
        # Rounding of large variances must not make a covariance that cannot be. With an estimator
        # that has no variance nothing is correlated, also where the other's is infinite.
        bound = (a.sqrt() * b.sqrt()).nan_to_num(nan=0.0, posinf=torch.inf)
        c = torch.nan_to_num(covariance.double(), 0.0, 0.0, 0.0).clamp(-bound, bound)
        a, b = (a - c).clamp_min(0.0), (b - c).clamp_min(0.0)
    # Of 0 / 0 half, and of infinity / infinity one.
    k1 = torch.nan_to_num((a / b + 1.0).reciprocal(), 0.5).masked_fill(b == torch.inf, 1.0)
    return k1, 1.0 - k1


def scaled(k: Tensor, x: Tensor) -> Tensor:
    """Return ``k * x``, where a weight of zero silences values that are not finite."""
    # In the precision of x: a weight that vanishes there would make NaN of an infinity.
    k = k.to(x.dtype)
    return torch.where(k == 0, 0.0, k * x)


def mix(
    k1: Tensor, x1: Sequence[Tensor | None], k2: Tensor, x2: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Return ``k1 * x1 + k2 * x2`` for each pair of tensors.

    A weight of zero silences values that are not finite; ``None`` counts as zero. What is sparse
    stays so, unless the other of its pair is not.
    """
    of_dtype: dict[torch.dtype, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
    mixed: list[Tensor | None] = []
    for a, b in zip(x1, x2, strict=True):
        some = b if a is None else a
        if some is None:
            mixed.append(None)
            continue
        sparse = [x.layout == torch.sparse_coo for x in (a, b) if x is not None]
        if all(sparse):
            mixed.append(_mix_sparse([(k, x) for k, x in ((k1, a), (k2, b)) if x is not None]))
            continue
        if any(sparse):
            a, b = (None if x is None else x.to_dense() for x in (a, b))
        if some.dtype not in of_dtype:
            of_a, of_b = k1.to(some.dtype), k2.to(some.dtype)
            # A weight that vanishes in this precision would make NaN of an infinity.
            of_dtype[some.dtype] = of_a, of_b, of_a == 0, of_b == 0
        of_a, of_b, none1, none2 = of_dtype[some.dtype]
        if a is None or b is None:
            none, k = (none1, of_a) if b is None else (none2, of_b)
            mixed.append(torch.where(none, 0.0, k * some))
        else:
            # What is silenced counts as the other; with few copies, as these may be large.
            heard_a, heard_b = torch.where(none1, b, a), torch.where(none2, a, b)
            mixed.append(heard_b.mul_(of_b).addcmul_(heard_a, of_a))
    return mixed


def _mix_sparse(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum of ``k * x`` over the parts, whose x are sparse; see :func:`scaled`."""
    # Not coalesced, which would wait for the device.
    return torch.sparse_coo_tensor(
        torch.cat([x._indices() for _, x in parts], 1),
        torch.cat([scaled(k, x._values()) for k, x in parts]),
        parts[0][1].shape,
        check_invariants=False,
    )
