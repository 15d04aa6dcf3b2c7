"""The likelihood-ratio cotangent. Functions of tensors only; P particles."""

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
        ValueError: if the numbers of particles differ.
    """
    particles = losses.shape[0]
    if log_prob.dim() == 0 or log_prob.shape[0] != particles:
        raise ValueError(
            f"there must be one cost for each particle; got {particles} costs for a sample whose "
            f"log_prob has shape {list(log_prob.shape)}. Is this node left from an earlier, "
            "abandoned rollout (call manager.reset() after one), or the batch axis not the first?"
        )
    column = losses.detach().reshape(particles, *[1] * (log_prob.dim() - 1))
    return (column / particles).to(log_prob.dtype).expand(log_prob.shape)
