"""Total propagation (Parmas et al. 2018; Appendix A.2, B.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_proppo.containers import Listed
from lightning_proppo.errors import did_you_mean
from lightning_proppo.estimators import lr_cotangent
from lightning_proppo.graph import (
    LeafIndex,
    active_pullback,
    cut,
    is_cut,
    vector_jacobian_product,
)
from lightning_proppo.per_particle import find_parameter_uses
from lightning_proppo.propagators.base import ComboProp, Propagator
from lightning_proppo.propagators.baseline import mcgrad_temp
from lightning_proppo.propagators.loss import LossProp
from lightning_proppo.propagators.lr import message_loss
from lightning_proppo.propagators.sampling import (
    DistParams,
    log_density,
    make_distribution,
    reparameterized_sample,
    require_rsample,
)
from lightning_proppo.variances import inverse_variance_weighting, mix, weights_from_variances

Target = str | nn.Module | Tensor | Sequence[Tensor]
Weights = tuple[Tensor, Tensor]


def check_target(ivw_target: Any) -> str | list[Tensor]:
    """Return the target as ``"parameters"``, ``"node"`` or a list of tensors.

    Raises:
        TypeError: for anything that is no target.
        ValueError: for an unknown name, or a module or list without tensors.
    """
    if isinstance(ivw_target, str):
        names = ("parameters", "node")
        if ivw_target not in names:
            raise ValueError(
                f"ivw_target must be one of {', '.join(names)}, a module, or tensors; got "
                f"{ivw_target!r}.{did_you_mean(ivw_target, names)}"
            )
        return ivw_target
    if isinstance(ivw_target, nn.Module):
        targets: list[Tensor] = [p for p in ivw_target.parameters() if p.requires_grad]
    elif isinstance(ivw_target, Tensor):
        targets = [ivw_target]
    elif isinstance(ivw_target, (list, tuple)):
        targets = list(ivw_target)
    else:
        raise TypeError(
            "ivw_target must be 'parameters', 'node', a module, a tensor or a list of tensors; "
            f"got {type(ivw_target).__name__}."
        )
    for target in targets:
        if not isinstance(target, Tensor) or not target.requires_grad:
            came = (
                "one that does not" if isinstance(target, Tensor) else f"a {type(target).__name__}"
            )
            raise TypeError(f"ivw_target's tensors must require a gradient; got {came}.")
    if not targets:
        raise ValueError("ivw_target must have at least one tensor that requires a gradient.")
    return targets


class TPBase(Propagator):
    r"""Mixes LR and RP at every sample by inverse variance (Appendix A.2).

    .. math:: \hat g = k \hat g_{LR} + (1 - k) \hat g_{RP}, \qquad
              k = \frac{V[\hat g_{RP}]}{V[\hat g_{LR}] + V[\hat g_{RP}]}

    What has been mixed is propagated further back, so that an RP part which has become noise is
    left behind at the node where it did. The weights are computed from the particles that they
    weigh, which biases the estimate by O(1/P).

    Args:
        var_weighting_func: a function of two lists of per-particle gradients [P, ...] that returns
            their two weights; only for targets that are expanded tensors.
        **kwargs: default forward options.
    """

    uses_cost_gradient = True

    def __init__(
        self,
        var_weighting_func: Callable[..., Weights] = inverse_variance_weighting,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not callable(var_weighting_func):
            raise TypeError(f"var_weighting_func must be callable; got {var_weighting_func!r}.")
        self.var_weighting_func = var_weighting_func

    def forward_impl(
        self,
        x: Any,
        node: Any = None,
        dist: Any = None,
        dist_class: Any = None,
        dist_params: DistParams | None = None,
        ivw_target: Target = "parameters",
        k_interval: int = 1,
    ) -> Any:
        """Draw a sample [P, ...], keeping its path and its log-density.

        Args:
            x: the state to add noise to, or None with ``dist``.
            node: not used.
            dist: the distribution to draw from.
            dist_class: the noise's distribution, with ``dist_params``.
            dist_params: its arguments.
            ivw_target: where variances are compared: ``"parameters"``, all that the segment
                before this sample reaches (its incoming samples where it reaches none);
                a module or parameters, some of them; tensors expanded over the particles, [P, ...]
                each; ``"node"``, this sample itself, one weight for each coordinate (cheapest;
                one weight for all coordinates that share a log-density).
            k_interval: weights are computed at every ``k_interval``-th node only, counted from
                the last, and kept in between.

        Raises:
            TypeError: if the distribution has no ``rsample`` or is not described, or for a wrong
                target.
            ValueError: for a wrong target or interval.
        """
        del node
        if not isinstance(k_interval, int) or k_interval < 1:
            raise ValueError(f"k_interval must be an int of at least 1; got {k_interval!r}.")
        target = check_target(ivw_target)
        if isinstance(target, str) and self.var_weighting_func is not inverse_variance_weighting:
            raise TypeError(
                "var_weighting_func weighs per-particle gradients, so ivw_target must be tensors "
                f"expanded over the particles; got {ivw_target!r}."
            )
        dist = make_distribution(x, dist, dist_class, dist_params, "TP")
        require_rsample(dist, "TP")
        sample = reparameterized_sample(dist, x)
        return {
            "output": cut(sample),
            "pre_output": sample,
            "log_prob": log_density(dist, sample, x),
            "dist": dist,
            "offset": x,
            "ivw_target": target,
            "k_interval": k_interval,
            "register_node": True,
        }

    # Else the particles' contributions, which are products with the segment's own tensors, would
    # put a graph on the gradients, and a parameter whose .grad has a graph is never freed.
    @torch.no_grad()
    def backward_impl(self, node: Any, message: Any) -> Any:
        """Mix the two gradients and send the mixture."""
        losses = message_loss(message)
        if losses is None:  # no cost follows this sample
            return {}
        counter = message.get("k_counter", 0)
        kept = message.get("k_lr_k_rp") if counter % node["k_interval"] else None
        output, log_prob = node["pre_output"], node["log_prob"]
        lr = lr_cotangent(losses, log_prob)
        rp = node["output"].grad
        if rp is None:
            rp = torch.zeros_like(output)
        if node["ivw_target"] == "node":
            weights = kept or _weights_at_node(node, lr, rp)
            sent = _mixed_cotangents(weights, log_prob, lr, output, rp)
        else:
            weights, sent = self._mixed_gradients(node, kept, lr, rp)
        pullback = active_pullback()
        if pullback is not None:
            pullback.note("lr_weight", weights[0].float().mean())
        return {**sent, "k_counter": counter + 1, "k_lr_k_rp": weights}

    def loss_propagator(self) -> Propagator:
        """Return a loss without baseline: the samples subtract their own."""
        return LossProp(baseline=False)

    def _mixed_gradients(
        self, node: Any, kept: Weights | None, lr: Tensor, rp: Tensor
    ) -> tuple[Weights, dict[str, Any]]:
        """Pull both cotangents back once, and mix what arrives at the segment's leaves."""
        output, log_prob = node["pre_output"], node["log_prob"]
        pullback = active_pullback()
        index = pullback.index if pullback is not None else LeafIndex()
        leaves = index.leaves([log_prob, output])
        target = node["ivw_target"]
        particles = lr.shape[0]
        if target == "parameters":
            parameters = [leaf for leaf in leaves if not is_cut(leaf)]
            expanded = [] if parameters else [leaf for leaf in leaves if is_cut(leaf)]
        else:
            parameters = [t for t in target if t.is_leaf and not is_cut(t)]
            expanded = [t for t in target if not (t.is_leaf and not is_cut(t))]
            _check_expanded(expanded, particles)
        if parameters and (expanded or self.var_weighting_func is not inverse_variance_weighting):
            raise TypeError(
                "ivw_target must be either parameters or tensors expanded over the particles "
                "(for a var_weighting_func, the latter); got a parameter of shape "
                f"{list(parameters[0].shape)} among them. Expand it with lightning_proppo.expand."
            )
        uses = None
        if kept is None and parameters:
            uses = find_parameter_uses([log_prob, output], parameters, particles)
        edges = uses.edges if uses is not None else []
        inputs = [*leaves, *parameters, *expanded, *edges]
        lr_answers = vector_jacobian_product([log_prob], [lr], inputs)
        rp_answers = vector_jacobian_product([output], [rp], inputs)
        first, second = len(leaves), len(leaves) + len(parameters)
        third = second + len(expanded)
        if kept is not None:
            weights = kept
        elif uses is not None:
            weights = weights_from_variances(
                *(
                    uses.variance(answers[third:], answers[first:second], [pulled], [cotangent])
                    for answers, pulled, cotangent in (
                        (lr_answers, log_prob, lr),
                        (rp_answers, output, rp),
                    )
                )
            )
        elif expanded:
            pairs = [
                (a, b)
                for a, b in zip(lr_answers[second:third], rp_answers[second:third], strict=True)
                if a is not None or b is not None
            ]
            weights = self._weigh(pairs, lr)
        else:
            weights = self._weigh([], lr)
        mixed = [
            (leaf, mix(weights[0], a, weights[1], b))
            for leaf, a, b in zip(leaves, lr_answers[:first], rp_answers[:first], strict=True)
        ]
        arrived = [(leaf, gradient) for leaf, gradient in mixed if gradient is not None]
        if not arrived:
            return weights, {}
        # The leaves themselves are sent, with their gradients: nothing is pulled back again.
        return weights, {
            "outputs": Listed(*[leaf for leaf, _ in arrived]),
            "grads": Listed(*[gradient for _, gradient in arrived]),
        }

    def _weigh(self, pairs: Sequence[tuple[Tensor | None, Tensor | None]], lr: Tensor) -> Weights:
        if not pairs:  # nothing that is compared depends on this sample
            half = torch.full((), 0.5, dtype=lr.dtype, device=lr.device)
            return half, half
        lr_gradients: list[Tensor] = []
        rp_gradients: list[Tensor] = []
        for a, b in pairs:
            like = a if a is not None else b
            if like is None:
                continue
            lr_gradients.append(torch.zeros_like(like) if a is None else a)
            rp_gradients.append(torch.zeros_like(like) if b is None else b)
        return _check_weights(self.var_weighting_func(lr_gradients, rp_gradients), lr)


def _check_weights(weights: Any, like: Tensor) -> Weights:
    """Return what a ``var_weighting_func`` returned as two tensors."""
    pair = tuple(weights) if isinstance(weights, (tuple, list)) else ()
    if len(pair) != 2 or not all(
        isinstance(w, (int, float)) or (isinstance(w, Tensor) and w.numel() == 1) for w in pair
    ):
        raise ValueError(
            "var_weighting_func must return two weights, for LR and for RP, each a number or a "
            f"tensor of one; got {weights!r}."
        )
    first, second = (
        torch.as_tensor(w, dtype=like.dtype, device=like.device).reshape(()) for w in pair
    )
    return first, second


def _check_expanded(targets: Sequence[Tensor], particles: int) -> None:
    for target in targets:
        if target.dim() == 0 or target.shape[0] != particles:
            raise ValueError(
                "ivw_target's tensors must be expanded over the particles (or be parameters); "
                f"with {particles} particles, got shape {list(target.shape)}. Make it with "
                "lightning_proppo.expand(parameter, particles)."
            )


def _weights_at_node(node: Any, lr: Tensor, rp: Tensor) -> Weights:
    r"""Weigh at the sample itself: LR's gradient with respect to its location against RP's.

    With :math:`\nabla_{loc} \log p(x) = -\nabla_x \log p(x)`, exact for location families.
    """
    sample = node["output"].detach().requires_grad_()
    offset = node["offset"]
    with torch.enable_grad():
        log_prob = node["dist"].log_prob(sample if offset is None else sample - offset.detach())
    (score,) = torch.autograd.grad([log_prob], [sample], [lr])
    coordinatewise = lr.shape == rp.shape
    return inverse_variance_weighting(-score, rp, scalar_estimate=not coordinatewise)


def _mixed_cotangents(
    weights: Weights, log_prob: Tensor, lr: Tensor, output: Tensor, rp: Tensor
) -> dict[str, Any]:
    """Send both tensors with weighted cotangents, to be pulled back together."""
    zero = torch.zeros((), dtype=rp.dtype, device=rp.device)
    k_lr, k_rp = (w.to(rp.dtype) for w in weights)
    return {
        "outputs": Listed(log_prob, output),
        "grads": Listed(
            torch.where(k_lr == 0, zero, k_lr * lr).expand(lr.shape),
            torch.where(k_rp == 0, zero, k_rp * rp).expand(rp.shape),
        ),
    }


class TotalProp(ComboProp, propagators=mcgrad_temp(backprop=True, base=TPBase, baseline=True)):
    """:class:`TPBase` with a leave-one-out baseline and back-propagation, each optional."""

    uses_cost_gradient = True

    def loss_propagator(self) -> Propagator:
        """Return a loss without baseline: the samples subtract their own."""
        return LossProp(baseline=False)
