"""Cross-fitting: each half of the particles is weighed by what the other half tells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_proppo.ranks import Ranks

# Every other particle: a mask's number of particles would have to be waited for.
HALVES = (slice(0, None, 2), slice(1, None, 2))


def centred_by_half(losses: Tensor, ranks: Ranks) -> Tensor:
    """Return losses [P, 1] less the mean of their half, of all ranks' particles."""
    centred = losses.clone()
    # In 64 bits, so that one rank or many make no difference to 32.
    means = torch.stack([losses[half].double().mean(0) for half in HALVES])
    for half, mean in zip(HALVES, ranks.sum(means) / ranks.size, strict=True):
        centred[half] -= mean.to(losses.dtype)
    return centred


def only_part(cotangents: Sequence[Tensor], part: slice | None) -> list[Tensor]:
    """Return cotangents [P, ...] with zeros outside a part of the particles."""
    if part is None:
        return list(cotangents)
    kept = [torch.zeros_like(cotangent) for cotangent in cotangents]
    for rows, cotangent in zip(kept, cotangents, strict=True):
        rows[part] = cotangent[part]
    return kept


def recentring(totals: Sequence[Tensor | None], members: int, particles: int) -> Tensor | float:
    """Return what turns squares about the mean of P numbers into those about the mean of a part.

    The numbers outside the part are zeros.
    """
    squares = [total.double().square().sum() for total in totals if total is not None]
    return torch.stack(squares).sum() * (1 / particles - 1 / members) if squares else 0.0
