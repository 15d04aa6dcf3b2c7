"""Per-particle gradients the slow and obvious way: each particle is pulled back alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients_one_by_one(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor], parameters: Sequence[Tensor]
) -> Tensor:
    """Return each particle's gradient [P, N] with respect to all N numbers of the parameters."""
    rows = []
    for i in range(len(outputs[0])):
        alone = [torch.zeros_like(cotangent) for cotangent in cotangents]
        for one, cotangent in zip(alone, cotangents, strict=True):
            one[i] = cotangent[i]
        pulled = torch.autograd.grad(
            outputs, parameters, alone, retain_graph=True, allow_unused=True
        )
        pairs = zip(parameters, pulled, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])
        )
    return torch.stack(rows)


def summed_squares(gradients: Tensor, others: Tensor | None = None) -> Tensor:
    """Return the sum of squares of [P, N] around their mean, or of products with others."""
    deviations = gradients - gradients.mean(0)
    if others is None:
        return deviations.square().sum()
    return (deviations * (others - others.mean(0))).sum()
