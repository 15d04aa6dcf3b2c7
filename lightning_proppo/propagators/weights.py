"""Weights on LR and RP: compared at the sample itself, kept from what is not finite, applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_proppo.containers import Listed
from lightning_proppo.engine.graph import vector_jacobian_product
from lightning_proppo.mathematics.densities import log_density
from lightning_proppo.mathematics.precision import full_precision
from lightning_proppo.mathematics.variances import mix, scaled
from lightning_proppo.pooling import pooled_weights
from lightning_proppo.propagators.halves import HALVES
from lightning_proppo.propagators.pathways import Pathway
from lightning_proppo.ranks import active_ranks

# On LR and on RP: one each, or one for each coordinate of a sample.
Weights = tuple[Tensor, Tensor]


def rows_at_node(node: Any, lr: Pathway) -> Tensor:
    r"""Return LR's gradient with respect to the sample's location, [P, ...].

    In general with :math:`\nabla_{loc} \log p(x) = -\nabla_x \log p(x)`, exact for location
    families.
    """
    first = lr.independent[0]
    if "noise" in node:
        return first
    point = node["point"].detach().requires_grad_()
    with torch.enable_grad(), full_precision(point):
        log_prob = log_density(node["dist"], point, first.dim())
    (score,) = vector_jacobian_product([log_prob], [first], [point])
    return torch.zeros_like(point) if score is None else -score  # None: a density that is flat


def weights_at_node(node: Any, lr: Pathway, first: Tensor, second: Tensor) -> Weights:
    """Weigh at the sample itself: LR's gradient with respect to its location against RP's.

    Args:
        node: the sample's.
        lr: LR's way.
        first: :func:`rows_at_node`.
        second: RP's, [P, ...].
    """
    ranks = active_ranks()
    coordinatewise = "noise" in node or lr.independent[0].shape == second.shape
    options = {
        "scalar_estimate": not coordinatewise,
        "with_covariance": node["weighting"] == "covariance",
    }
    if node["weighting"] != "cross-fitted":
        return pooled_weights([first], [second], ranks, **options)
    even, odd = HALVES
    k_lr, k_rp = (
        torch.empty(
            second.shape if coordinatewise else first.shape[:1],
            dtype=torch.float64,
            device=second.device,
        )
        for _ in range(2)
    )
    for own, other in ((even, odd), (odd, even)):
        k_lr[own], k_rp[own] = pooled_weights([first[other]], [second[other]], ranks, **options)
    if not coordinatewise:
        k_lr, k_rp = (k.reshape(-1, *[1] * (second.dim() - 1)) for k in (k_lr, k_rp))
    return k_lr, k_rp


def check_weights(weights: Any, like: Tensor) -> Weights:
    """Return what a ``var_weighting_func`` returned as two tensors."""
    pair = tuple(weights) if isinstance(weights, (tuple, list)) else ()
    if len(pair) != 2 or not all(
        isinstance(w, (int, float)) or (isinstance(w, Tensor) and w.numel() == 1) for w in pair
    ):
        raise ValueError(
            "var_weighting_func must return two weights, for LR and for RP, each a number or a "
            f"tensor of one; got {weights!r}."
        )
    first, second = (
        torch.as_tensor(w, dtype=like.dtype, device=like.device).reshape(()) for w in pair
    )
    return first, second


def shielded(weights: Weights, gradients: Sequence[Tensor | None]) -> Weights:
    """Leave all to LR where RP's gradients, at any of the segment's leaves, are not finite.

    Weights need not have told: they may be kept from another node, or made of the other half of the
    particles; and variances at parameters may be finite where what is sent further back is not.
    """
    sums = [gradient.sum() for gradient in gradients if gradient is not None]
    if not sums:
        return weights
    # A sum that overflows tells of gradients that are of no use either.
    spoilt = sum(sums[1:], sums[0]).isfinite().logical_not_()
    return weights[0].masked_fill(spoilt, 1.0), weights[1].masked_fill(spoilt, 0.0)


def shielded_at_node(weights: Weights, rp: Pathway, by_half: bool) -> Weights:
    """Leave to LR what of RP's cotangents [P, ...] is not finite, by coordinate as weights are.

    Args:
        weights: [], or [...] for each coordinate; with a first axis of particles ``by_half``.
        rp: RP's way.
        by_half: whether each half of the particles has weights of its own.
    """
    k_lr, k_rp = weights
    total = sum(rp.cotangents[1:], rp.cotangents[0])
    if by_half:
        spoilt = torch.empty_like(total, dtype=torch.bool)
        for half in HALVES:
            spoilt[half] = total[half].sum(0).isfinite().logical_not_()
        # One weight for all coordinates has axes of one element.
        single = [axis for axis in range(1, k_rp.dim()) if k_rp.shape[axis] != total.shape[axis]]
        for axis in single:
            spoilt = spoilt.any(axis, keepdim=True)
    else:
        spoilt = (total.sum(0) if k_rp.dim() else total.sum()).isfinite().logical_not_()
    return k_lr.masked_fill(spoilt, 1.0), k_rp.masked_fill(spoilt, 0.0)


def mixed_cotangents(weights: Weights, lr: Pathway, rp: Pathway) -> dict[str, Any]:
    """Send the tensors of both ways with weighted cotangents, to be pulled back together."""
    # Compared by identity: tensors' own equality is a tensor.
    if [id(output) for output in lr.outputs] == [id(output) for output in rp.outputs]:
        mixed = mix(weights[0], lr.cotangents, weights[1], rp.cotangents)
        return {"outputs": Listed(*lr.outputs), "grads": Listed(*mixed)}
    k_lr, k_rp = weights
    outputs = [*lr.outputs, *rp.outputs]
    grads = [
        # A weight for each half of the particles may have axes of one element to spare.
        scaled(k.reshape(k.shape[: cotangent.dim()]), cotangent).expand(cotangent.shape)
        for k, way in ((k_lr, lr), (k_rp, rp))
        for cotangent in way.cotangents
    ]
    return {"outputs": Listed(*outputs), "grads": Listed(*grads)}


def mean_lr_weight(weights: Sequence[Weights]) -> Tensor:
    """Return the mean weight on LR [] of one pair of weights, or of one for each half."""
    means = [k_lr.mean() if k_lr.dim() else k_lr for k_lr, _ in weights]
    return means[0].float() if len(means) == 1 else torch.stack(means).mean().float()
