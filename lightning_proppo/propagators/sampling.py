"""What all sampling propagators share: the distribution, and the options that describe it.

Every sampling propagator takes a sample in one of two forms. ``manager.sample(dist)`` draws from
``dist``. The paper's ``manager.forward(x, dist_class=..., dist_params=...)`` adds noise from the
distribution described to ``x``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

DistParams = Mapping[str, Any] | Sequence[Any] | Callable[[Any], Mapping[str, Any]]


def make_distribution(
    x: Any, dist: Any, dist_class: Any, dist_params: DistParams | None, estimator: str
) -> Distribution:
    """Return the distribution that the options describe.

    Args:
        x: the state that noise is added to, or None with ``dist``.
        dist: a distribution; or None.
        dist_class: a distribution's class, with ``dist_params``.
        dist_params: its arguments: a mapping, a sequence, or a function of ``x`` that returns a
            mapping.
        estimator: who asks, for error messages.

    Raises:
        TypeError: if neither form is complete, both are mixed, or no distribution comes of it.
    """
    if dist is not None:
        if dist_class is not None or dist_params is not None:
            raise TypeError(f"{estimator}: give either dist, or dist_class and dist_params.")
        if not isinstance(dist, Distribution):
            raise TypeError(
                f"dist must be a torch.distributions.Distribution; got {type(dist).__name__}."
            )
        return dist
    if dist_class is None or dist_params is None:
        missing = "dist_class" if dist_class is None else "dist_params"
        raise TypeError(
            f"{estimator} samples: call manager.sample(dist), or manager.forward(x, "
            f"dist_class=..., dist_params=...); {missing} is missing."
        )
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be the tensor to add noise to; got {type(x).__name__}.")
    if not callable(dist_class):
        raise TypeError(
            f"dist_class must be a class of torch.distributions, e.g. Normal; got {dist_class!r}."
        )
    if callable(dist_params):
        dist_params = dist_params(x)
    if isinstance(dist_params, Mapping):
        made = dist_class(**dist_params)
    elif isinstance(dist_params, (tuple, list)):
        made = dist_class(*dist_params)
    else:
        raise TypeError(
            "dist_params must be a mapping, a tuple, a list, or a function of x that returns a "
            f"mapping; got {type(dist_params).__name__}."
        )
    if not isinstance(made, Distribution):
        raise TypeError(
            "dist_class must make a torch.distributions.Distribution; got a "
            f"{type(made).__name__} from it."
        )
    return made


def require_rsample(dist: Distribution, estimator: str) -> None:
    """Raise unless samples of ``dist`` can be differentiated.

    Raises:
        TypeError: naming the estimator that would work.
    """
    if not dist.has_rsample:
        raise TypeError(
            f"{estimator} differentiates through samples, but {type(dist).__name__} has no "
            "rsample; use LR (LRProp) for this distribution."
        )


def reparameterized_sample(dist: Distribution, x: Tensor | None) -> Tensor:
    """Draw a sample that carries gradients, [P, ...], around ``x`` where it is given.

    Raises:
        ValueError: if the particles have not each their own noise.
    """
    return centred_at(x, dist.rsample(), dist)


def plain_sample(dist: Distribution, x: Tensor | None) -> Tensor:
    """Draw a sample without gradients, [P, ...], around ``x`` where it is given.

    Raises:
        ValueError: if the particles have not each their own noise.
    """
    with torch.no_grad():
        return centred_at(x, dist.sample(), dist)


def centred_at(x: Tensor | None, noise: Tensor, dist: Distribution) -> Tensor:
    """Return ``noise`` around ``x``, if each particle has noise of its own.

    Particles that share their noise would make a leave-one-out baseline and the variances of
    gradients meaningless, without any other sign.
    """
    if noise.dim() <= len(dist.event_shape):
        name = "dist" if x is None else "dist_params"
        raise ValueError(
            f"{name} must have particles first, so that samples are [P, ...]; got a "
            f"{type(dist).__name__} of batch shape {list(dist.batch_shape)} whose samples are "
            f"{list(noise.shape)}. Expand its parameters, or the distribution: dist.expand([P])."
        )
    if x is None:
        return noise
    if noise.shape != x.shape and not _covers(noise.shape, x.shape):
        raise ValueError(
            f"dist_params must give each particle and coordinate of x, shape {list(x.shape)}, "
            f"noise of its own; got noise of shape {list(noise.shape)}. Expand the parameters, "
            "e.g. torch.full_like(x, scale)."
        )
    return x + noise


def _covers(shape: torch.Size, other: torch.Size) -> bool:
    """Whether ``other`` broadcasts to ``shape`` itself."""
    try:
        return torch.broadcast_shapes(shape, other) == shape
    except RuntimeError:
        return False


def log_density(dist: Distribution, sample: Tensor, x: Tensor | None) -> Tensor:
    """Return the log-density of a fixed sample as a function of the distribution and ``x``."""
    sample = sample.detach()
    return dist.log_prob(sample if x is None else sample - x)
