"""Likelihood-ratio gradients (Appendix A.1, B.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lightning_proppo.containers import Listed
from lightning_proppo.engine.cuts import cut
from lightning_proppo.propagators.base import ComboProp, Propagator
from lightning_proppo.propagators.baseline import mcgrad_temp
from lightning_proppo.propagators.distributions import DistParams, make_distribution
from lightning_proppo.propagators.normal import (
    NOISES,
    NormalDraw,
    check_noise,
    draw_normal,
    normal_base,
)
from lightning_proppo.propagators.pathways import lr_pathway, normal_lr_pathway
from lightning_proppo.propagators.sampling import draw


def message_loss(message: Any) -> Any:
    """Return the message's loss, with baseline if it has one; None without a loss."""
    return message.get("baselined_loss", message.get("local_loss"))


class LRBase(Propagator):
    r"""Weighs the score of each sample by its later costs (Eq. 4).

    .. math:: \frac{1}{P} \sum_i (L_i - b_i) \nabla_\beta \log p(x_i; \beta)

    Unbiased, also for costs and dynamics that jump and for discrete distributions, unless a
    parameter enters a jump with no sample between; its variance grows with the number of
    dimensions. The support must not move with what is learnt: where the density
    jumps at an edge that does, the score is not the whole of the gradient (Mohamed et al. 2020,
    "Monte Carlo gradient estimation in machine learning", Sec. 4.3.1). A ``dist`` whose support
    depends on parameters is refused, so is noise around ``x`` that is discrete or uniform; noise of
    other families with such an edge (exponential, half-normal) is not found out.

    Transforms without parameters, e.g. the tanh of a squashed action, are taken for a part of the
    costs, and the score is the base distribution's: that of a saturated action has no inverse.
    """

    loss_baseline = False
    choices: ClassVar[Mapping[str, Sequence[str]]] = {"noise": NOISES}

    def forward_impl(
        self,
        x: Any,
        node: Any = None,
        dist: Any = None,
        dist_class: Any = None,
        dist_params: DistParams | None = None,
        requires_grad: bool = False,
        noise: str = "independent",
    ) -> Any:
        """Draw a sample [P, ...] and keep its log-density.

        Args:
            x: the state to add noise to, or None with ``dist``.
            node: not used.
            dist: the distribution to draw from.
            dist_class: the noise's distribution, with ``dist_params``.
            dist_params: its arguments.
            requires_grad: let the sample collect a cotangent, for propagators built on this one.
            noise: ``"independent"`` or ``"quasi-random"``
                (:func:`~lightning_proppo.mathematics.quasi.quasi_random_normal`; for normal
                samples).

        Raises:
            TypeError: if the distribution is not described.
            ValueError: for an unknown noise; if the particles have not each their own noise; if the
                support depends on what is learnt.
        """
        del node
        dist = make_distribution(x, dist, dist_class, dist_params, "LR")
        check_noise(noise, dist)
        if normal_base(dist) is not None:
            normal = draw_normal(dist, x, noise)
            if not requires_grad:
                output = cut(normal.sample, requires_grad=False)
                return {"output": output, **normal.contents(), "register_node": True}
            sample, log_prob = normal.sample, normal.log_prob(len(dist.batch_shape))
        else:
            drawn = draw(dist, x, reparameterized=False)
            sample, log_prob = drawn.sample, drawn.log_prob
        return {
            "output": cut(sample, requires_grad),
            "log_prob": log_prob,
            "register_node": True,
        }

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Pair the log-density, or a normal sample's location and scale, with their cotangents."""
        losses = message_loss(message)
        if losses is None:  # no cost follows this sample
            return {}
        if "noise" in node:
            way = normal_lr_pathway(NormalDraw.of(node), losses)
        else:
            way = lr_pathway(node["log_prob"], losses)
        return {"outputs": Listed(*way.outputs), "grads": Listed(*way.cotangents)}


class LRProp(ComboProp, propagators=mcgrad_temp(backprop=True, base=LRBase, baseline=True)):
    """:class:`LRBase` with a leave-one-out baseline and back-propagation, each optional."""

    loss_baseline = False
