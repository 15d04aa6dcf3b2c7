"""How a loss reaches the distribution that a sample was drawn from: LR's way and RP's way.

Both ways end in cotangents of tensors that have the distribution's graph. For normal distributions
those tensors are location and scale, the same for both; in general they are the log-density for LR
and the sample for RP.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from lightning_proppo.mathematics.cotangents import (
    lr_cotangent,
    normal_loc_cotangent,
    normal_scale_cotangent,
)
from lightning_proppo.mathematics.mixtures import SharedSamples
from lightning_proppo.propagators.normal import NormalDraw


@dataclass(frozen=True, eq=False)
class Pathway:
    """Tensors [P, ...] and their cotangents.

    Attributes:
        outputs: the tensors.
        cotangents: one for each.
        contributions: what each particle's sample adds to the cotangents, where that is not its
            own row of them; else None.
    """

    outputs: list[Tensor]
    cotangents: list[Tensor]
    contributions: list[Tensor] | None = None

    @property
    def independent(self) -> list[Tensor]:
        """Cotangents with independent rows, to estimate variances from."""
        return self.cotangents if self.contributions is None else self.contributions


def outputs_of(ways: Iterable[Pathway]) -> list[Tensor]:
    """Return the tensors of several ways, each once."""
    return list({id(output): output for way in ways for output in way.outputs}.values())


def normal_lr_pathway(draw: NormalDraw, losses: Tensor) -> Pathway:
    """Return LR's way into a normal distribution.

    Args:
        draw: the sample.
        losses: less their baselines, [P, 1].
    """
    loc = normal_loc_cotangent(losses, draw.scale, draw.noise)
    if not draw.scale.requires_grad:
        return Pathway([draw.loc], [loc])
    scale = normal_scale_cotangent(losses, draw.scale, draw.noise)
    return Pathway([draw.loc, draw.scale], [loc, scale])


def shared_lr_pathway(draw: NormalDraw, shared: SharedSamples, deviations: Tensor) -> Pathway:
    """Return LR's way into the normal distributions of a batch that shares its samples.

    Args:
        draw: the samples.
        shared: the samples' weights for each other's distributions.
        deviations: the losses less their baselines, by group.
    """
    with_scale = draw.scale.requires_grad
    cotangents, contributions = (
        [part.to(draw.loc.dtype).reshape(draw.sample.shape) for part in parts]
        for parts in (
            shared.lr_cotangents(deviations, with_scale),
            shared.lr_contributions(deviations, with_scale),
        )
    )
    outputs = [draw.loc, draw.scale] if with_scale else [draw.loc]
    return Pathway(outputs, cotangents, contributions)


def normal_rp_pathway(draw: NormalDraw, cotangent: Tensor) -> Pathway:
    """Return RP's way into a normal distribution, from the cotangent of its sample [P, ...]."""
    if not draw.scale.requires_grad:
        return Pathway([draw.loc], [cotangent])
    return Pathway([draw.loc, draw.scale], [cotangent, cotangent * draw.noise])


def lr_pathway(log_prob: Tensor, losses: Tensor) -> Pathway:
    """Return LR's way into any distribution; losses [P, 1], less their baselines."""
    return Pathway([log_prob], [lr_cotangent(losses, log_prob)])


def rp_pathway(sample: Tensor, cotangent: Tensor) -> Pathway:
    """Return RP's way into any distribution; both [P, ...]."""
    return Pathway([sample], [cotangent])
