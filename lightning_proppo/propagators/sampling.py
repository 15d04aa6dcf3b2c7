"""Samples with what estimators need of them: density, path, image of fixed transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    Normal,
)
from torch.distributions.transforms import Transform

from lightning_proppo.engine.graph import vector_jacobian_product
from lightning_proppo.mathematics.densities import (
    apply,
    family,
    flatten_transforms,
    log_density,
    support_is_discrete,
    support_moves,
    transformed,
    with_parameters,
)
from lightning_proppo.mathematics.precision import widen


@dataclass(frozen=True, eq=False)
class Image:
    """What fixed transforms make of a sample.

    Attributes:
        leaf: the sample [P, ...], detached.
        value: its image [P, ...], as a function of the leaf.
    """

    leaf: Tensor
    value: Tensor

    @classmethod
    def of(cls, transforms: Sequence[Transform], sample: Tensor, slopes: bool) -> Image:
        """Apply transforms that have no parameters.

        Args:
            transforms: in the order of their application.
            sample: [P, ...].
            slopes: whether :meth:`pull` will be called.
        """
        leaf = sample.detach()
        if slopes and torch.is_grad_enabled():
            leaf.requires_grad_()
        return cls(leaf, apply(transforms, leaf))

    def pull(self, cotangent: Tensor) -> Tensor:
        """Return the cotangent of the sample, given that of the image."""
        (pulled,) = vector_jacobian_product([self.value], [cotangent], [self.leaf])
        return torch.zeros_like(self.leaf) if pulled is None else pulled


@dataclass(frozen=True, eq=False)
class Draw:
    r"""A sample :math:`y = x + t(u)`, where the transform t has no parameters.

    Whatever the costs are, they are a function of u, and LR needs the density of no more than that.
    The density of y would take the inverse of t, which has no answer where t is saturated.

    Attributes:
        sample: y, [P, ...], as the rollout gets it.
        path: u, [P, ...], with its graph if it is reparameterized; y without transforms.
        dist: what u was drawn from.
        point: u, [P, ...], detached; y - x without transforms.
        log_prob: its log-density, [P, ...], as a function of the distribution and of x.
        image: t(u); None without transforms.
    """

    sample: Tensor
    path: Tensor
    dist: Distribution
    point: Tensor
    log_prob: Tensor
    image: Image | None


def draw(dist: Distribution, x: Tensor | None, reparameterized: bool) -> Draw:
    """Draw a sample [P, ...] with its log-density, around ``x`` where it is given.

    Sample and density have 32 bits at least; see
    :func:`~lightning_proppo.mathematics.precision.widen`.

    Args:
        dist: any distribution; with ``rsample`` if ``reparameterized``.
        x: [P, ...], or None.
        reparameterized: whether the sample carries gradients.

    Raises:
        ValueError: if the particles have not each their own noise; if the score of the
            distribution is not the whole of its gradient.
    """
    check_score(dist, x)
    wide = widen(dist)
    moving = x is not None and x.requires_grad and torch.is_grad_enabled()
    with wide.context():
        # The density of x + t(u) as a function of x is that of t(u), so then t must be inverted.
        base, transforms = (wide.dist, []) if moving else flatten_transforms(wide.dist)
        point = base.rsample() if reparameterized else base.sample()
        image = None
        if transforms:
            base, point, image = _transform(base, transforms, point, reparameterized)
        sample = centred_at(x, point if image is None else image.value, dist)
        if not reparameterized:
            sample = sample.detach()
        value = point.detach()
        if x is not None and moving:
            # Exactly the noise, which x + noise - x may not be, and so perhaps no longer in the
            # support; but with the gradient of that.
            value = value + (x.detach() - x)
        log_prob = log_density(base, value, len(dist.batch_shape))
    if moving and not log_prob.requires_grad:
        raise ValueError(
            f"the density of {family(dist)} is flat, so what x does to it happens at its "
            "edges, and no score tells of that; use RP (RPProp) for noise of this distribution."
        )
    path = sample if image is None else point
    return Draw(wide.rounded(sample, x), path, base, point.detach(), log_prob, image)


def _transform(
    base: Distribution, transforms: list[Transform], point: Tensor, reparameterized: bool
) -> tuple[Distribution, Tensor, Image | None]:
    """Apply transforms to a sample of ``base``.

    Returns:
        The distribution with the transforms up to the last that is learnt, its sample, and what the
        others, if there are any, make of that.
    """
    count = with_parameters(transforms, point)
    learnt, fixed = transforms[:count], transforms[count:]
    with torch.set_grad_enabled(reparameterized and torch.is_grad_enabled()):
        if learnt:
            _check_transforms(base)
            base, point = transformed(base, learnt), apply(learnt, point)
        return base, point, Image.of(fixed, point, slopes=reparameterized) if fixed else None


def check_score(dist: Distribution, x: Tensor | None) -> None:
    """Raise if likelihood ratios are known to miss a part of the gradient.

    They are the whole of it only where the support stays as it is. What is not found out here are
    densities that jump at an edge which ``x`` (or a transform's parameter) moves, e.g. that of
    exponential noise around a state.

    Raises:
        ValueError: if the support's edges depend on what is learnt, or discrete noise is added to
            an ``x`` that is.
    """
    inner = dist
    while type(inner) is Independent:
        inner = inner.base_dist
    if type(inner) is Normal or not torch.is_grad_enabled():
        return
    base, transforms = flatten_transforms(dist)
    if support_moves(dist) or (transforms and support_moves(base)):
        raise ValueError(
            f"the support of {family(dist)} depends on parameters that require a gradient, "
            "so that its score is not the whole of its gradient; use RP (RPProp), or a "
            "distribution whose support is fixed (e.g. Beta, or a tanh-squashed Normal, in the "
            "place of Uniform)."
        )
    if x is not None and x.requires_grad and support_is_discrete(dist):
        raise ValueError(
            f"x requires a gradient, and noise of {family(dist)}, which is discrete, has "
            "no score for it; make a distribution whose parameters depend on x and call "
            "manager.sample(dist), or pass x.detach()."
        )


def _check_transforms(base: Distribution) -> None:
    """Raise if transforms with parameters move a discrete support."""
    if support_is_discrete(base):
        raise ValueError(
            f"dist transforms samples of {type(base).__name__}, which are discrete, with "
            "parameters that require a gradient, and its score is not the whole of its gradient; "
            f"sample the {type(base).__name__} and transform what manager.sample returns."
        )


def reparameterized_sample(dist: Distribution, x: Tensor | None) -> Tensor:
    """Draw a sample that carries gradients, [P, ...], around ``x`` where it is given.

    In 32 bits at least; see :func:`~lightning_proppo.mathematics.precision.widen`.

    Raises:
        ValueError: if the particles have not each their own noise.
    """
    wide = widen(dist)
    with wide.context():
        return wide.rounded(centred_at(x, wide.dist.rsample(), dist), x)


def attached_sample(dist: Distribution, x: Tensor | None) -> Tensor:
    """Draw what plain PyTorch draws, [P, ...], around ``x`` where it is given.

    Raises:
        ValueError: if the particles have not each their own noise.
    """
    if type(dist) is Normal:
        # What rsample() computes, from the same random numbers, less the tensors of zeros and ones
        # that it draws them with.
        loc = dist.loc
        noise = torch.empty(loc.shape, dtype=loc.dtype, device=loc.device).normal_()
        return centred_at(x, loc + noise * dist.scale, dist)
    return centred_at(x, dist.rsample(), dist)


def centred_at(x: Tensor | None, noise: Tensor, dist: Distribution) -> Tensor:
    """Return ``noise`` around ``x``, if each particle has noise of its own, on the same device.

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
    if noise.device != x.device:
        raise ValueError(
            f"x and dist_params must be on one device; got {x.device} and {noise.device}. Move "
            "one of them: x.to(device)."
        )
    return x + noise


def _covers(shape: torch.Size, other: torch.Size) -> bool:
    """Whether ``other`` broadcasts to ``shape`` itself."""
    try:
        return bool(torch.broadcast_shapes(shape, other) == shape)
    except RuntimeError:
        return False
