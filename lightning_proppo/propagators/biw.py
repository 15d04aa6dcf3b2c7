"""Likelihood-ratio gradients of particles that share their samples (Parmas et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution

from lightning_proppo.containers import Listed
from lightning_proppo.engine.cuts import cut
from lightning_proppo.errors import check_choice
from lightning_proppo.mathematics.mixtures import share_samples
from lightning_proppo.propagators.base import ComboProp, Propagator
from lightning_proppo.propagators.baseline import mcgrad_temp
from lightning_proppo.propagators.distributions import DistParams, make_distribution
from lightning_proppo.propagators.normal import (
    NOISES,
    NormalDraw,
    check_noise,
    draw_normal,
    require_normal,
)
from lightning_proppo.propagators.pathways import Pathway, shared_lr_pathway

SHARES = ("likelihoods", "mesh")


def check_sharing(share: str | None, group_size: int | None, dist: Distribution) -> None:
    """Raise unless particles drawn from ``dist`` can share their samples in this way.

    Raises:
        TypeError: if the distribution is not normal.
        ValueError: for an unknown name, or groups of less than two.
    """
    if share is None:
        return
    check_choice("share", share, SHARES)
    if group_size is not None and (not isinstance(group_size, int) or group_size < 2):
        raise ValueError(f"group_size must be an int of at least 2, or None; got {group_size!r}.")
    require_normal(dist, f"share={share!r}")


def share_backward(
    draw: NormalDraw, losses: Tensor, share: str, group_size: int | None
) -> tuple[Pathway, dict[str, Tensor]]:
    """Share normal samples [P, ...] and their losses [P, 1].

    Returns:
        LR's way into the distributions, and for ``share="mesh"`` what takes the losses' place in
        the message.
    """
    sample, loc, scale = (
        t.detach().reshape(t.shape[0], -1) for t in (draw.exact(), draw.loc, draw.scale)
    )
    shared = share_samples(sample, loc, scale, group_size)
    deviations, baseline = shared.deviations(losses)
    pathway = shared_lr_pathway(draw, shared, deviations)
    if share != "mesh":
        return pathway, {}
    return pathway, {"local_loss": shared.expected(deviations, baseline).to(losses.dtype)}


class BIWBase(Propagator):
    r"""Batch importance weighted likelihood ratios: every sample speaks for every particle.

    .. math:: \frac1P \sum_i \sum_j c_{ij} (L_j - b_j) \nabla_\beta \log p_i(x_j; \beta), \qquad
              c_{ij} = \frac{p_i(x_j)}{\sum_k p_k(x_j)}

    (PIPPS, Parmas et al. 2018, Sec. 3.3.) Where the particles' distributions overlap, its variance
    is far below LR's. With ``share="mesh"`` a particle's loss is replaced, before it is sent
    further back, by what it is expected to be given all samples, :math:`\sum_j c_{ij} L_j`, which
    is how a stochastic mesh values its nodes (Broadie and Glasserman 2004): noise that the
    dynamics have forgotten does not reach earlier samples.

    For normal samples. **The samples must be the whole state**: what a particle pays after its
    sample may depend on the past through this sample only, as another particle with the same sample
    takes its place. Costs of the state before (of the action, say) are to be appended before the
    sample is drawn.

    Unbiased if ``group_size`` makes more than one group; else up to O(1/P).
    """

    loss_baseline = False
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"share": SHARES, "noise": NOISES}

    def forward_impl(
        self,
        x: Any,
        node: Any = None,
        dist: Any = None,
        dist_class: Any = None,
        dist_params: DistParams | None = None,
        share: str = "likelihoods",
        group_size: int | None = None,
        noise: str = "independent",
    ) -> Any:
        """Draw a sample [P, ...] and keep its location and scale.

        Args:
            x: the state to add noise to, or None with ``dist``.
            node: not used.
            dist: the distribution to draw from.
            dist_class: the noise's distribution, with ``dist_params``.
            dist_params: its arguments.
            share: ``"likelihoods"``, or ``"mesh"`` for later costs too.
            group_size: particles share in groups of at most so many neighbours, at a price of P
                times that; None: all with all.
            noise: ``"independent"`` or ``"quasi-random"``.

        Raises:
            TypeError: if the distribution is not normal, or not described.
            ValueError: for an unknown name or a group size below 2.
        """
        del node
        dist = make_distribution(x, dist, dist_class, dist_params, "BIW")
        check_choice("share", share, SHARES)
        check_sharing(share, group_size, dist)
        check_noise(noise, dist)
        draw = draw_normal(dist, x, noise)
        return {
            "output": cut(draw.sample, requires_grad=False),
            **draw.contents(),
            "share": share,
            "group_size": group_size,
            "register_node": True,
        }

    @torch.no_grad()
    def backward_impl(self, node: Any, message: Any) -> Any:
        """Pair location and scale with their cotangents."""
        losses = message.get("local_loss")
        if losses is None:  # no cost follows this sample
            return {}
        draw = NormalDraw.of(node)
        lr, expected = share_backward(draw, losses, node["share"], node["group_size"])
        return {"outputs": Listed(*lr.outputs), "grads": Listed(*lr.cotangents), **expected}


class BIWProp(ComboProp, propagators=mcgrad_temp(backprop=True, base=BIWBase)):
    """:class:`BIWBase`, which has its own baseline, with back-propagation unless it is off."""

    loss_baseline = False
