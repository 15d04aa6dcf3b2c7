"""What estimators ask of a distribution: its density, its fixed transforms, its support.

Functions of distributions and tensors only; P particles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    TransformedDistribution,
)
from torch.distributions.transforms import ComposeTransform, Transform

from lightning_proppo.mathematics.precision import floating_tensors

_LOG_SQRT_2_PI = 0.5 * math.log(2 * math.pi)


def flatten_transforms(dist: Distribution) -> tuple[Distribution, list[Transform]]:
    """Return the distribution that all randomness comes from, and what is applied to its samples.

    Args:
        dist: transformed (with transformed base distributions, and :class:`Independent` ones
            between, perhaps), or another, which is returned as it is with no transforms. Classes
            that sample, or compute a density, in another way than
            :class:`TransformedDistribution` are not looked into.
    """
    base, transforms = dist, list[Transform]()
    while True:
        inner = base
        while type(inner) is Independent:
            inner = inner.base_dist
        if not isinstance(inner, TransformedDistribution) or any(
            getattr(type(inner), name) is not getattr(TransformedDistribution, name)
            for name in ("sample", "rsample", "log_prob")
        ):
            # Within, Independent only says which axes belong to an event; the whole says it too.
            return (inner if transforms else base), transforms
        own = inner.transforms
        transforms = [*_parts(own if isinstance(own, list) else [own]), *transforms]
        base = inner.base_dist


def _parts(transforms: Sequence[Transform]) -> list[Transform]:
    """Return transforms with composed ones in their parts."""
    return [
        part
        for transform in transforms
        for part in (
            _parts(transform.parts) if type(transform) is ComposeTransform else [transform]
        )
    ]


def apply(transforms: Sequence[Transform], x: Tensor) -> Tensor:
    """Return the image of ``x``."""
    for transform in transforms:
        x = transform(x)
    return x


def with_parameters(transforms: Sequence[Transform], x: Tensor) -> int:
    """Return how many transforms there are up to the last that has parameters to learn.

    Whatever a transform is made of, its image of a constant has a graph if it has parameters.

    Args:
        transforms: in the order of their application.
        x: in the domain of the first.
    """
    count = 0
    with torch.enable_grad():
        for i, transform in enumerate(transforms):
            image = transform(x.detach())
            if image.requires_grad:
                count = i + 1
            x = image.detach()
    return count


def transformed(base: Distribution, transforms: Sequence[Transform]) -> Distribution:
    """Return ``base`` with these transforms; itself without."""
    if not transforms:
        return base
    return TransformedDistribution(base, list(transforms), validate_args=base._validate_args)


def log_density(dist: Distribution, value: Tensor, batch_dims: int) -> Tensor:
    """Return the log-density of ``value``, summed down to so many axes.

    Args:
        dist: the distribution.
        value: of its batch and event shape.
        batch_dims: axes of the result, [P, ...].
    """
    found: Tensor = dist.log_prob(value)
    return found.flatten(batch_dims).sum(-1) if found.dim() > batch_dims else found


def normal_log_density(x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return the log-density of x under N(loc, scale^2), element by element.

    That of :class:`~torch.distributions.Normal`, without the price of making one.
    """
    deviation = (x - loc) / scale
    return -0.5 * (deviation * deviation) - scale.log() - _LOG_SQRT_2_PI


def family(dist: Distribution) -> str:
    """Return what kind of distribution it is, for a message: ``"Independent(Poisson)"``."""
    name = type(dist).__name__
    # Classes of their own name, e.g. LogNormal, say it all.
    if type(dist) in (Independent, TransformedDistribution):
        return f"{name}({family(dist.base_dist)})"  # type: ignore[attr-defined]
    return name


def support_is_discrete(dist: Distribution) -> bool:
    """Return whether ``dist`` is known to have a discrete support."""
    try:
        return bool(getattr(dist.support, "is_discrete", False))
    except NotImplementedError:
        return False


def support_moves(dist: Distribution) -> bool:
    """Return whether the edges of the support are known to depend on what is learnt."""
    try:
        support = dist.support
    except NotImplementedError:
        return False
    return any(tensor.requires_grad for tensor in floating_tensors(support))
