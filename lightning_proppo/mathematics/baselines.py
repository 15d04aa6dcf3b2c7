"""Baselines for likelihood-ratio gradients (Appendix D, listing 7)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_proppo.errors import MORE_PARTICLES


def mean_baseline(local_losses: Tensor, node: Any = None) -> Tensor:
    r"""Subtract from each particle's loss the mean of all the others.

    .. math:: L_i - \frac{1}{P - 1} \sum_{j \ne i} L_j
              = \frac{P}{P - 1} (L_i - \bar L)

    The baseline of a particle does not depend on it, so it adds no bias.

    Args:
        local_losses: [P, 1] or [P].
        node: not used.

    Raises:
        TypeError: if the losses are no tensor.
        ValueError: for a single particle, which has no others.
    """
    del node
    if not isinstance(local_losses, Tensor) or local_losses.dim() == 0:
        raise TypeError(f"local_losses must be a tensor [P, 1] or [P]; got {local_losses!r}.")
    particles = local_losses.shape[0]
    if particles < 2:
        raise ValueError(
            "local_losses must have at least 2 particles for a leave-one-out baseline; got shape "
            f"{list(local_losses.shape)}. {MORE_PARTICLES}; or pass baseline=False."
        )
    losses = local_losses.detach()
    return leave_one_out(losses, losses.mean(0, keepdim=True), particles)


def leave_one_out(losses: Tensor, mean: Tensor, particles: int) -> Tensor:
    r"""Subtract from each loss the mean of all the others, given the mean of all.

    .. math:: \frac{P}{P - 1} (L_i - \bar L)

    Args:
        losses: L, of some particles or all, [..., 1].
        mean: :math:`\bar L`, of all particles, [1, 1] or [].
        particles: P, of all; at least 2.
    """
    return (losses - mean) * (particles / (particles - 1))


def no_baseline(local_losses: Tensor, node: Any = None) -> Tensor:
    """Return the losses as they are.

    Args:
        local_losses: [P, 1] or [P].
        node: not used.
    """
    del node
    return local_losses
