"""The guard of total propagation: where RP and LR disagree beyond their noise, RP is biased."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_proppo.disagreement import AtParameters, AtSamples, Look
from lightning_proppo.engine.backward_pass import active_pass
from lightning_proppo.propagators.weights import Weights
from lightning_proppo.ranks import Ranks

# Products of coordinates and features that are remembered of a sample; beyond, the past is left
# out.
PRODUCTS = 1024


def guarded_at_parameters(
    weights: Sequence[Weights],
    lr: Sequence[Tensor],
    rp: Sequence[Tensor],
    squares: Tensor,
    particles: int,
    ranks: Ranks,
) -> list[Weights]:
    """Return weights that lean to LR where RP is biased, by gradients at parameters.

    Args:
        weights: on LR and on RP, [] each; one pair, or one for each half of the particles.
        lr: LR's gradients on this rank, [...] each.
        rp: RP's, of the same shapes.
        squares: the sum of their squared deviations over all ranks' particles, [].
        particles: P, of all ranks.
        ranks: the ranks.
    """
    parts = [(a.to_dense() - b.to_dense()).reshape(-1) for a, b in zip(lr, rp, strict=True)]
    difference = parts[0] if len(parts) == 1 else torch.cat(parts)
    evidence = AtParameters(difference, squares, weights[0][0], particles, ranks)
    return _leaning(weights, _look().doubt(evidence))


def guarded_at_samples(
    weights: Sequence[Weights],
    lr: Sequence[Tensor],
    rp: Sequence[Tensor],
    past: Sequence[Tensor],
    ranks: Ranks,
) -> list[Weights]:
    """Return weights that lean to LR where RP is biased, by per-particle gradients at samples.

    Args:
        weights: on LR and on RP, as in :func:`guarded_at_parameters`; or one pair with a weight for
            each coordinate of the only gradient.
        lr: LR's gradients, [P, ...] each.
        rp: RP's, of the same shapes.
        past: the samples before this one, [P, ...] each.
        ranks: the ranks.
    """
    rows = _side_by_side([a - b for a, b in zip(lr, rp, strict=True)])
    x = _side_by_side([leaf.detach() for leaf in past]).to(rows.dtype) if past else rows[:, :0]
    if rows.shape[1] * (1 + x.shape[1]) > PRODUCTS:
        x = x[:, :0]
    k_lr = weights[0][0]
    apart = _coordinatewise(weights, lr[0].shape[1:])
    lr_weight = k_lr.reshape(-1) if apart else k_lr.mean().reshape(1)
    return _leaning(weights, _look().doubt(AtSamples(rows, x, lr_weight, ranks)), apart)


def guarded_between(
    weights: Sequence[Weights], coordinates: Sequence[int] | None = None
) -> list[Weights]:
    """Return weights that were kept from another sample, leaning to LR as its neighbours' do.

    Args:
        weights: on LR and on RP, as in :func:`guarded_at_parameters`, or for each coordinate.
        coordinates: the shape of a particle's sample, where weights may be by coordinate.
    """
    apart = coordinates is not None and _coordinatewise(weights, coordinates)
    return _leaning(weights, _look().doubt_between(), apart)


def _coordinatewise(weights: Sequence[Weights], coordinates: Sequence[int]) -> bool:
    """Return whether there is a weight for each coordinate of a sample."""
    k_lr = weights[0][0]
    return k_lr.dim() > 0 and tuple(k_lr.shape) == tuple(coordinates)


def _look() -> Look:
    """Return what the running pass knows of RP's bias; nothing outside of one."""
    running = active_pass()
    return Look() if running is None or running.look is None else running.look


def _leaning(
    weights: Sequence[Weights], doubt: Tensor | None, apart: bool = False
) -> list[Weights]:
    """Hand a share of RP's weights to LR: each coordinate's own, or else the largest."""
    if doubt is None:
        return [*weights]
    k_lr = weights[0][0]
    share = (doubt.view(k_lr.shape) if apart else doubt.amax()).to(k_lr.device)
    return [
        (torch.addcmul(k_lr, k_rp, share), torch.addcmul(k_rp, k_rp, share, value=-1))
        for k_lr, k_rp in weights
    ]


def _side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    flat = [x.flatten(1) if x.dim() > 1 else x.unsqueeze(1) for x in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat, 1)
