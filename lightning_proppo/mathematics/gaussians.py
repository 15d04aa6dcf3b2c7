"""Gaussians fitted to particles. Functions of tensors only; P particles, D dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_proppo.errors import MORE_PARTICLES
from lightning_proppo.mathematics.precision import full_precision

_JITTERS = (0.0, 1e-8, 1e-6, 1e-4)


def fit_gaussian(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [D] and the covariance [D, D] (with Bessel's correction) of x [P, D].

    In 32 bits at least, also under autocast: a covariance in 16 bits is hardly ever positive
    definite.

    Raises:
        ValueError: for fewer than two particles.
    """
    if x.shape[0] < 2:
        raise ValueError(
            "a Gaussian is fitted to at least 2 particles; got a state of shape "
            f"{list(x.shape)}. {MORE_PARTICLES}."
        )
    mean, scatter = gaussian_moments(x)
    return mean, scatter / (x.shape[0] - 1)


def gaussian_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean [D] and the scatter [D, D] about it, a sum of squares, of x [P, D].

    In 32 bits at least, also under autocast.
    """
    with full_precision(x):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = x.mean(0)
        centred = x - mean
        return mean, centred.mT @ centred


def combine_gaussians(means: Tensor, scatters: Tensor, particles: int) -> tuple[Tensor, Tensor]:
    """Return the mean [D] and the covariance [D, D] of the particles of N batches of P each.

    Args:
        means: of each batch, [N, D].
        scatters: about its own mean (:func:`gaussian_moments`), [N, D, D].
        particles: P.

    Raises:
        ValueError: for fewer than two particles in all.
    """
    every = particles * len(means)
    if every < 2:
        raise ValueError(
            f"a Gaussian is fitted to at least 2 particles; got {every}. {MORE_PARTICLES}."
        )
    mean = means.mean(0)
    apart = means - mean
    return mean, (scatters.sum(0) + particles * (apart.mT @ apart)) / (every - 1)


def cholesky(covariance: Tensor) -> Tensor:
    """Return the lower Cholesky factor [D, D], with as little jitter on the diagonal as it takes.

    Raises:
        ValueError: if the covariance is not finite, or not positive definite even with a jitter
            of 1e-4 of its mean diagonal.
    """
    scale = covariance.detach().diagonal().mean()
    eye = torch.eye(covariance.shape[0], dtype=covariance.dtype, device=covariance.device)
    for jitter in _JITTERS:
        candidate = covariance if jitter == 0 else covariance + jitter * scale * eye
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(candidate)
        if not bool(info) and bool(torch.isfinite(factor).all()):
            return factor
    raise ValueError(
        "the covariance of the particles must be finite and positive definite; got a diagonal of "
        f"{covariance.detach().diagonal().tolist()}. Are all particles alike, or some not finite?"
    )


def sample_gaussian(mean: Tensor, covariance: Tensor, particles: int) -> Tensor:
    """Draw reparameterized samples [P, D] of N(mean [D], covariance [D, D])."""
    noise = torch.randn(particles, mean.shape[0], dtype=mean.dtype, device=mean.device)
    with full_precision(mean):
        return mean + noise @ cholesky(covariance).mT


def shaped_statistic(
    centred: Tensor, covariance: Tensor, mean_gradient: Tensor, covariance_gradient: Tensor
) -> Tensor:
    r"""Return the value that Gaussian shaping puts in the place of each particle's loss.

    .. math:: g_i = \frac{dC}{d\mu} \cdot d_i
              + \Big\langle \frac{dC}{d\Sigma}, d_i d_i^T - S \Big\rangle,
              \qquad d_i = x_i - \mu

    With S the mean of :math:`d_i d_i^T`, this is the derivative of the cost's expectation under
    the fitted Gaussian along the particle's weight (Parmas 2018, total stochastic gradients;
    Appendix A.2), so that its likelihood-ratio gradient is the gradient of that expectation.

    Args:
        centred: d, [P, D].
        covariance: S, [D, D].
        mean_gradient: [D].
        covariance_gradient: [D, D].

    Returns:
        [P, 1].
    """
    with full_precision(centred):
        linear = centred @ mean_gradient
        quadratic = ((centred @ covariance_gradient) * centred).sum(1)
        constant = (covariance_gradient * covariance).sum()
        return (linear + quadratic - constant).unsqueeze(1)
