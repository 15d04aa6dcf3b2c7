"""The guard of total propagation: where RP and LR disagree beyond their noise, RP is biased."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_proppo.disagreement import AtParameters, AtSamples, Evidence, Look
from lightning_proppo.engine.backward_pass import active_pass
from lightning_proppo.propagators.weights import Weights
from lightning_proppo.ranks import Ranks


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
    parts = [(a - b).to_dense().reshape(-1) for a, b in zip(lr, rp, strict=True)]
    difference = parts[0] if len(parts) == 1 else torch.cat(parts)
    doubt = _doubt(AtParameters(difference, squares, weights[0][0], particles, ranks))
    return [*weights] if doubt is None else [_leaning(pair, doubt[0]) for pair in weights]


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
    k_lr = weights[0][0]
    # By coordinate unless the weights are of another shape (all coordinates', or a half's).
    apart = k_lr.dim() > 0 and k_lr.shape == lr[0].shape[1:]
    lr_weight = k_lr.reshape(-1) if apart else k_lr.mean().reshape(1)
    doubt = _doubt(AtSamples(rows, x, lr_weight, ranks))
    if doubt is None:
        return [*weights]
    doubt = doubt.view(k_lr.shape) if apart else doubt.amax()
    return [_leaning(pair, doubt) for pair in weights]


def _doubt(evidence: Evidence) -> Tensor | None:
    """Return the running pass's doubt in RP; that of the evidence alone outside of a pass."""
    running = active_pass()
    look = None if running is None else running.look
    return (look or Look()).doubt(evidence)


def _leaning(weights: Weights, doubt: Tensor) -> Weights:
    k_lr, k_rp = weights
    return torch.addcmul(k_lr, k_rp, doubt), torch.addcmul(k_rp, k_rp, doubt, value=-1)


def _side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    flat = [x.flatten(1) if x.dim() > 1 else x.unsqueeze(1) for x in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat, 1)
