"""Normally distributed samples, whose gradients enter at location and scale in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from lightning_proppo.errors import check_choice
from lightning_proppo.mathematics.densities import (
    flatten_transforms,
    normal_log_density,
    with_parameters,
)
from lightning_proppo.mathematics.precision import is_narrow, widen
from lightning_proppo.mathematics.quasi import quasi_random_normal
from lightning_proppo.propagators.sampling import Image, centred_at

NOISES = ("independent", "quasi-random")


@dataclass(frozen=True, eq=False)
class NormalDraw:
    r"""A sample :math:`x = m + s \varepsilon` and what it was made from, [P, ...] each.

    Attributes:
        sample: x, detached, as the rollout gets it: the others have 32 bits at least, this one
            perhaps 16.
        loc: m, with its graph.
        scale: s, with its graph.
        noise: :math:`\varepsilon`.
    """

    sample: Tensor
    loc: Tensor
    scale: Tensor
    noise: Tensor

    def path(self) -> Tensor:
        """Return the sample with its graph."""
        return self.loc + self.noise * self.scale

    def exact(self) -> Tensor:
        """Return the sample, detached, as it was drawn: not rounded, nor changed in place since."""
        return self.path().detach()

    def log_prob(self, batch_dims: int) -> Tensor:
        """Return the log-density of the fixed sample, summed down to so many axes."""
        found = normal_log_density(self.exact(), self.loc, self.scale)
        return found.flatten(batch_dims).sum(-1) if found.dim() > batch_dims else found

    def contents(self) -> dict[str, Tensor]:
        """Return what a node keeps of it, beside its output."""
        return {"loc": self.loc, "scale": self.scale, "noise": self.noise}

    @classmethod
    def of(cls, node: Any) -> NormalDraw:
        """Return what a node has kept."""
        image = node.get("image")
        sample = node["output"].detach() if image is None else image.leaf.detach()
        return cls(sample, node["loc"], node["scale"], node["noise"])


def normal_base(dist: Distribution) -> Normal | None:
    """Return the normal distribution, of independent coordinates, that ``dist`` is; else None."""
    while isinstance(dist, Independent):
        dist = dist.base_dist
    return dist if type(dist) is Normal else None


def check_noise(noise: str, dist: Distribution) -> None:
    """Raise unless ``noise`` is a kind of noise that ``dist`` can be drawn with.

    Raises:
        TypeError: if the distribution is not normal.
        ValueError: for an unknown name.
    """
    check_choice("noise", noise, NOISES)
    if noise != "independent":
        require_normal(dist, f"noise={noise!r}")


def require_normal(dist: Distribution, option: str) -> None:
    """Raise unless ``dist`` is normal with independent coordinates.

    Raises:
        TypeError: naming the option that asks for it.
    """
    if normal_base(dist) is None:
        raise TypeError(
            f"{option} is for normally distributed samples with independent coordinates (Normal, "
            f"or Independent of one); got {type(dist).__name__}."
        )


def draw_normal(dist: Distribution, x: Tensor | None, noise: str = "independent") -> NormalDraw:
    """Draw a sample [P, ...], around ``x`` where it is given.

    Args:
        dist: normal with independent coordinates.
        x: [P, ...], or None.
        noise: ``"independent"``, or ``"quasi-random"``
            (:func:`~lightning_proppo.mathematics.quasi.quasi_random_normal`).

    Raises:
        TypeError: if ``dist`` is of another family.
        ValueError: if the particles have not each their own noise.
    """
    base = normal_base(dist)
    if base is None:
        raise TypeError(f"dist must be normal; got {type(dist).__name__}.")
    loc, scale = base.loc, base.scale
    narrow = is_narrow(loc) or is_narrow(scale)
    if narrow:
        # What follows are operations on single elements, which autocast leaves in 32 bits.
        wide = widen(base)
        loc, scale = wide.dist.loc, wide.dist.scale
    with torch.no_grad():
        drawn = torch.empty_like(loc).normal_()
        sample = centred_at(x, loc + drawn * scale, dist)
    if x is not None:
        loc = x + loc
    if noise == "quasi-random":
        with torch.no_grad():
            drawn = quasi_random_normal(loc)
            sample = loc + drawn * scale
    return NormalDraw(wide.rounded(sample, x) if narrow else sample, loc, scale, drawn)


def draw_squashed_normal(
    dist: Distribution, x: Tensor | None
) -> tuple[Tensor, Image, NormalDraw] | None:
    """Draw a sample [P, ...] of a normal distribution with fixed transforms, e.g. of tanh.

    Args:
        dist: any distribution.
        x: a constant to add it to, [P, ...], or None.

    Returns:
        The sample, how it was made from the normal one, and that; None where ``dist`` is of another
        kind.

    Raises:
        ValueError: if the particles have not each their own noise.
    """
    if x is not None and x.requires_grad:
        return None
    wide = widen(dist)
    base, transforms = flatten_transforms(wide.dist)
    if not transforms or type(base) is not Normal:
        return None
    with wide.context():
        if with_parameters(transforms, base.loc):
            return None
        normal = draw_normal(base, None)
        image = Image.of(transforms, normal.sample, slopes=True)
        sample = centred_at(x, image.value.detach(), dist)
    return wide.rounded(sample, x), image, normal
