"""Quasi-random noise for the particles of a rollout. Functions of tensors only; P particles."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from lightning_proppo.mathematics.mixtures import principal_order


@torch.no_grad()
def quasi_random_normal(loc: Tensor) -> Tensor:
    """Draw standard normal noise that is spread evenly over the particles (Array-RQMC).

    The particles are put in order by their locations, and get the points of a scrambled Sobol
    sequence in D + 1 dimensions, which are ordered by their first coordinate; the others become
    noise. So particles that are near each other get noise unlike each other's, and an average over
    the batch has a smaller error, at best of order P^(-3/2) instead of P^(-1/2) (L'Ecuyer et al.
    2008, "A randomized quasi-Monte Carlo simulation method for Markov chains"). Each particle's own
    noise is exactly standard normal: averages stay unbiased. Particles depend on each other,
    though, so that a leave-one-out baseline has a bias of O(1/P).

    Args:
        loc: where the noise will be added, [P, ...]; at most 21,200 numbers for each particle.

    Returns:
        Of the shape of ``loc``.

    Raises:
        ValueError: for more dimensions than Sobol sequences have.
    """
    flat = loc.reshape(loc.shape[0], -1)
    particles, dimensions = flat.shape
    if dimensions >= SobolEngine.MAXDIM:
        raise ValueError(
            f"quasi-random noise has fewer than {SobolEngine.MAXDIM} dimensions; got a sample of "
            f"shape {list(loc.shape)}."
        )
    points = SobolEngine(dimensions + 1, scramble=True).draw(particles, dtype=torch.float64)
    uniform = points[points[:, 0].argsort(), 1:].to(loc.device)
    # The first point may be zero, whose noise would be infinite.
    sorted_noise = torch.special.ndtri(uniform.clamp(2.0**-33, 1 - 2.0**-33)).to(loc.dtype)
    noise = torch.empty_like(sorted_noise)
    noise[principal_order(flat)] = sorted_noise
    return noise.reshape(loc.shape)
