"""Likelihood-ratio cotangents. Functions of tensors only; P particles."""

from __future__ import annotations

from torch import Tensor


def lr_cotangent(losses: Tensor, log_prob: Tensor) -> Tensor:
    r"""Return the cotangent of ``log_prob`` for the likelihood-ratio gradient (Eq. 4).

    .. math:: \frac{1}{P} \sum_i (L_i - b_i) \nabla \log p(x_i)

    Args:
        losses: :math:`L_i - b_i`, [P, 1] or [P].
        log_prob: [P, ...]; the log-density is the sum over all axes but the first.

    Returns:
        Of the shape of ``log_prob``.

    Raises:
        ValueError: if the numbers of particles, or the devices, differ.
    """
    return _mean_losses(losses, log_prob).to(log_prob.dtype).expand(log_prob.shape)


def normal_loc_cotangent(losses: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    r"""Return the likelihood-ratio cotangent of a normal distribution's location.

    .. math:: \frac{1}{P} (L_i - b_i) \nabla_m \log \mathcal N(x_i; m, s^2)
              = \frac{1}{P} (L_i - b_i) \frac{\varepsilon_i}{s}, \qquad x = m + s \varepsilon

    Args:
        losses: :math:`L_i - b_i`, [P, 1] or [P].
        scale: s, [P, ...].
        noise: :math:`\varepsilon`, of the same shape.

    Returns:
        Of the same shape.

    Raises:
        ValueError: if the numbers of particles, or the devices, differ.
    """
    return _mean_losses(losses, noise).to(noise.dtype) * (noise / scale.detach())


def normal_scale_cotangent(losses: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    r"""Return the likelihood-ratio cotangent of a normal distribution's scale.

    .. math:: \frac{1}{P} (L_i - b_i) \frac{\varepsilon_i^2 - 1}{s}

    Arguments and errors are those of :func:`normal_loc_cotangent`.
    """
    return _mean_losses(losses, noise).to(noise.dtype) * ((noise * noise - 1) / scale.detach())


def _mean_losses(losses: Tensor, like: Tensor) -> Tensor:
    """Return losses / P, as many axes as ``like``."""
    particles = losses.shape[0]
    if like.dim() == 0 or like.shape[0] != particles:
        raise ValueError(
            f"there must be one cost for each particle; got {particles} costs for a sample whose "
            f"log_prob has shape {list(like.shape)}. Is this node left from an earlier, abandoned "
            "rollout (call manager.reset() after one), or the batch axis not the first?"
        )
    if losses.device != like.device:
        raise ValueError(
            f"costs and samples must be on one device; got costs on {losses.device} and a sample "
            f"on {like.device}. Move the costs: costs.to(x.device)."
        )
    if losses.dim() != like.dim() or losses.dim() != 2:
        losses = losses.reshape(particles, *[1] * (like.dim() - 1))
    return losses.detach() / particles
