"""Propagators that compute one estimator's gradient, and gather the others' beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_proppo.comparison import Comparison
from lightning_proppo.containers import Listed
from lightning_proppo.engine.backward_pass import active_pass
from lightning_proppo.engine.graph import LeafIndex, vector_jacobian_product
from lightning_proppo.mathematics.baselines import mean_baseline
from lightning_proppo.mathematics.densities import family
from lightning_proppo.mathematics.variances import mix
from lightning_proppo.per_particle import Answers, ParameterUses, find_parameter_uses
from lightning_proppo.propagators.backprop import BackPropagator
from lightning_proppo.propagators.base import ComboProp, Propagator
from lightning_proppo.propagators.baseline import BaselineProp
from lightning_proppo.propagators.distributions import make_distribution
from lightning_proppo.propagators.guard import guarded_between
from lightning_proppo.propagators.loss import LossBase, LossProp
from lightning_proppo.propagators.lr import LRBase, LRProp, message_loss
from lightning_proppo.propagators.normal import NormalDraw
from lightning_proppo.propagators.pathways import (
    Pathway,
    lr_pathway,
    normal_lr_pathway,
    normal_rp_pathway,
    outputs_of,
    rp_pathway,
)
from lightning_proppo.propagators.rp import RPBase, RPProp
from lightning_proppo.propagators.tp import TotalProp, TPBase, TPXProp, Weighed, weights_to_keep
from lightning_proppo.propagators.weights import (
    Weights,
    mean_lr_weight,
    mixed_cotangents,
    shielded,
    shielded_at_node,
)

# What a comparison cuts at every sample, and lets collect cotangents, in any case.
_NOT_OF_TP = ("detach", "requires_grad")
_OF_LR = ("dist", "dist_class", "dist_params", "noise")


def comparable(sampler: Propagator, loss: Propagator) -> str | None:
    """Return which of RP, LR and TP propagators compute; None for anything else.

    Particles must be independent of each other (up to a baseline and TP's weights), for else the
    variance among them does not tell that of their mean.

    Args:
        sampler: what computes at samples.
        loss: what computes at losses.
    """
    plain = type(loss) is LossProp and loss.is_made_of(BackPropagator, LossBase)
    if not plain or not isinstance(sampler, ComboProp):
        return None
    kinds = [type(part) for part in sampler.propagators]
    options = sampler.default_forward_kwargs
    if _dependent(options) or any(part.default_forward_kwargs for part in sampler.propagators):
        return None
    if type(sampler) is RPProp and kinds == [BackPropagator, RPBase]:
        return "RP"
    if type(sampler) is LRProp and kinds == [BackPropagator, LRBase, BaselineProp]:
        return "LR"
    if type(sampler) in (TotalProp, TPXProp) and kinds == [BackPropagator, TPBase, BaselineProp]:
        return "TP"
    return None


def _dependent(options: Mapping[str, Any]) -> bool:
    """Return whether options let particles, or halves of them, depend on each other."""
    return (
        options.get("noise", "independent") != "independent"
        or options.get("share") is not None
        or options.get("weighting") == "cross-fitted"
    )


def comparing_propagators(
    sampler: Propagator, comparison: Comparison
) -> tuple[Propagator, Propagator]:
    """Return propagators for samples and losses that do what ``sampler`` does, and compare.

    Args:
        sampler: one that is :func:`comparable`.
        comparison: what gathers the gradients.
    """
    parts = getattr(sampler, "propagators", [])
    baseline = next((part for part in parts if type(part) is BaselineProp), None)
    weighting = next((part for part in parts if isinstance(part, TPBase)), None)
    options = {} if weighting is None else {"var_weighting_func": weighting.var_weighting_func}
    base = ComparingBase(comparison, baseline or BaselineProp(mean_baseline), **options)
    samples = ComboProp([BackPropagator(), base], **sampler.default_forward_kwargs)
    # What the manager asks of an estimator that differentiates the costs.
    samples.uses_cost_gradient = comparison.used != "LR"
    return samples, ComboProp([BackPropagator(), ComparingLossBase(comparison)])


class ComparingBase(TPBase):
    """Samples as RP, LR or TP does, and computes what each of them makes of the rollout.

    The cotangents of the estimator in use travel as they always do; see
    :class:`~lightning_proppo.comparison.Comparison`.

    Args:
        comparison: what gathers the gradients.
        baseline: LR's.
        **kwargs: those of :class:`TPBase`.
    """

    uses_cost_gradient = False

    def __init__(self, comparison: Comparison, baseline: BaselineProp, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.comparison = comparison
        self.baseline = baseline

    def forward_impl(self, x: Any, node: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Draw a sample [P, ...], keeping what each estimator needs.

        Args:
            x: the state to add noise to, or None with ``dist``.
            node: not used.
            *args: none are given.
            **kwargs: options of :class:`TPBase`; those that only RP or LR has are left out.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in _NOT_OF_TP}
        comparison = self.comparison
        if _dependent(kwargs):
            comparison.leave_out(comparison.names, "samples' options let particles share")
        if comparison.used == "LR":
            given = {name: value for name, value in kwargs.items() if name in _OF_LR}
            dist = make_distribution(
                x,
                given.get("dist"),
                given.get("dist_class"),
                given.get("dist_params"),
                "LR",
            )
            if not dist.has_rsample:
                comparison.leave_out(("RP", "TP"), f"{family(dist)} has no reparameterized samples")
            if not (comparison.wants("RP") or comparison.wants("TP")):
                return LRBase().forward_impl(x, node, **given)
        made = super().forward_impl(x, node, *args, **kwargs)
        comparison.own(made["output"])
        return made

    @torch.no_grad()
    def backward_impl(self, node: Any, message: Any) -> Any:
        """Send the gradient of the estimator in use, and keep the others'."""
        losses = message.get("local_loss")
        if losses is None:  # no cost follows this sample
            return {}
        comparison, running = self.comparison, active_pass()
        recording = comparison.recording(running, losses.shape[0])
        names = comparison.wanted(recording)
        sent: dict[str, Any] = {}
        if names != ["RP"]:
            sent = dict(self.baseline.backward_impl(node, message) or {})
            message.update(sent)
        if node.get("share") is not None or node.get("weighting") == "cross-fitted":
            # An option of this sample alone, which is left to TP.
            return {**sent, **super().backward_impl(node, message)}
        ways = self._ways(node, message, names)
        outputs = outputs_of(ways.values())
        leaves = (running.index if running is not None else LeafIndex()).leaves(outputs)
        seen = comparison.uses(outputs, leaves, losses.shape[0]) if recording else None
        weight: Tensor | None = None
        if "TP" in ways:
            pulled, gradients, weighed, used = self._mixed(node, message, ways, leaves, seen)
            weight = mean_lr_weight([used])
            sent.update(weights_to_keep(weighed, message.get("k_counter", 0) + 1))
            if recording and node["ivw_target"] == "parameters":
                comparison.weigh_at(leaves)
            if running is not None and comparison.used == "TP":
                running.note("lr_weight", weight)
        else:
            pulled = [
                (name, _pull(way, leaves, [], [seen]), {name: None}) for name, way in ways.items()
            ]
            gradients = {name: pull.leaves for name, pull, _ in pulled}
        gradients = {name: found for name, found in gradients.items() if name in names}
        if seen is not None:
            comparison.add(
                seen,
                [(name, pull.answers(0, leaves, seen), shares) for name, pull, shares in pulled],
                leaves,
                gradients,
                weight,
                node["output"],
            )
        sent.update(deliver(comparison, leaves, gradients))
        return sent

    def _ways(self, node: Any, message: Any, names: Sequence[str]) -> dict[str, Pathway]:
        """Return each estimator's way into the distribution; for TP, RP's with mixed cotangents."""
        normal = NormalDraw.of(node) if "noise" in node else None
        ways: dict[str, Pathway] = {}
        if "LR" in names or "TP" in names:
            losses = message_loss(message)
            if normal is not None:
                ways["LR"] = normal_lr_pathway(normal, losses)
            else:
                ways["LR"] = lr_pathway(node["log_prob"], losses)
        if not node["output"].requires_grad:
            return ways
        image = node.get("image")
        arrived: dict[int, Pathway] = {}
        for name in ("RP", "TP"):
            if name not in names:
                continue
            cotangent = self.comparison.cotangent(name, node["output"])
            if id(cotangent) not in arrived:
                pulled = cotangent
                if image is not None:
                    pulled = image.pull(cotangent.to(image.value.dtype))
                if normal is not None:
                    way = normal_rp_pathway(normal, pulled.to(normal.loc.dtype))
                else:
                    path = node["pre_output"]
                    way = rp_pathway(path, pulled.to(path.dtype))
                arrived[id(cotangent)] = way
            ways[name] = arrived[id(cotangent)]
        return ways

    def _mixed(
        self,
        node: Any,
        message: Any,
        ways: dict[str, Pathway],
        leaves: Sequence[Tensor],
        seen: ParameterUses | None,
    ) -> tuple[list[_Shared], dict[str, Sequence[Tensor | None]], list[Weighed], Weights]:
        """Pull all ways back, and mix LR's and RP's as TP does.

        Returns:
            The pull-backs with their names and the estimators that take a share of each; each
            estimator's gradients at the leaves; TP's weights, and those that it used.
        """
        particles = message["local_loss"].shape[0]
        lr, rp = ways["LR"], ways["TP"]
        kept = (
            message.get("k_weighed") if message.get("k_counter", 0) % node["k_interval"] else None
        )
        parameters: list[Tensor] = []
        expanded: list[Tensor] = []
        if node["ivw_target"] != "node" and kept is None:
            parameters, expanded = self._compared(node["ivw_target"], leaves, particles)
        uses: ParameterUses | None = None
        if kept is None and parameters:
            if seen is not None and [*map(id, seen.parameters)] == [*map(id, parameters)]:
                uses = seen
            else:
                uses = find_parameter_uses(outputs_of([lr, rp]), parameters, particles)
        every = [seen, None if uses is seen else uses]
        of_lr = _pull(lr, leaves, expanded, every)
        gradients: dict[str, Sequence[Tensor | None]] = {"LR": of_lr.leaves}
        pure = of_rp = None
        if "RP" in ways:
            pure = _pull(ways["RP"], leaves, expanded, every)
            gradients["RP"] = pure.leaves
        if node["ivw_target"] == "node":
            weighed, weights = self._weigh_at_node(node, kept, lr, rp)
            used = shielded_at_node(weights, rp, by_half=False)
            mixed = mixed_cotangents(used, lr, rp)
            way = Pathway([*mixed["outputs"].get()], [*mixed["grads"].get()])
            of_tp = _pull(way, leaves, [], every)
            gradients["TP"] = of_tp.leaves
            shared: list[_Shared] = [("LR", of_lr, {"LR": None}), ("TP", of_tp, {"TP": None})]
            if pure is not None:
                shared.append(("RP", pure, {"RP": None}))
            return shared, gradients, weighed, used
        of_rp = pure if ways.get("RP") is rp and pure is not None else None
        if of_rp is None:
            of_rp = _pull(rp, leaves, expanded, every)
        if kept is None and seen is not None and uses is seen:
            # All at once, which they will be asked for one by one.
            every_pull = [of_lr, of_rp] if pure in (None, of_rp) else [of_lr, of_rp, pure]
            seen.variances([pull.answers(0, leaves, seen) for pull in every_pull])
        if kept is None:
            position = 0 if uses is seen else 1
            answers = [
                (
                    pull.leaves,
                    pull.totals(leaves, parameters),
                    pull.expanded,
                    pull.edges[position] if uses is not None else [],
                )
                for pull in (of_lr, of_rp)
            ]
            weighed = [self._weigh(node, uses, lr, rp, answers, None)]
            at_places = [
                [pull.totals(leaves, parameters) if parameters else pull.expanded]
                for pull in (of_lr, of_rp)
            ]
            (weights,) = self._guarded(node, weighed, parameters or expanded, *at_places)
        else:
            weighed, weights = kept, kept[0].weights
            if node["guard"]:
                (weights,) = guarded_between([weights])
        used = k_lr, k_rp = shielded(weights, of_rp.leaves)
        gradients["TP"] = mix(k_lr, of_lr.leaves, k_rp, of_rp.leaves)
        shared = [("LR", of_lr, {"LR": None, "TP": k_lr})]
        if of_rp is pure:
            shared.append(("RP", of_rp, {"RP": None, "TP": k_rp}))
        else:
            shared.append(("RP, mixed", of_rp, {"TP": k_rp}))
            if pure is not None:
                shared.append(("RP", pure, {"RP": None}))
        return shared, gradients, weighed, used


class ComparingLossBase(LossBase):
    """The loss of rollouts that :class:`ComparingBase` samples.

    Args:
        comparison: what gathers the gradients.
        **kwargs: default forward options.
    """

    def __init__(self, comparison: Comparison, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.comparison = comparison

    @torch.no_grad()
    def backward_impl(self, node: Any, message: Any) -> Any:
        """Send back the sum of costs and the mean's gradient, which all estimators share."""
        sent = super().backward_impl(node, message)
        if "outputs" not in sent:
            return sent
        comparison, running = self.comparison, active_pass()
        costs = node["pre_output"]
        (cotangent,) = sent["grads"].get()
        particles = costs.shape[0]
        recording = comparison.recording(running, particles)
        comparison.differentiable = True
        leaves = (running.index if running is not None else LeafIndex()).leaves([costs])
        seen = comparison.uses([costs], leaves, particles) if recording else None
        pull = _pull(Pathway([costs], [cotangent]), leaves, [], [seen])
        names = comparison.wanted(recording)
        if seen is not None:
            answers = pull.answers(0, leaves, seen)
            arrived = dict.fromkeys(names, pull.leaves)
            comparison.add(seen, [("cost", answers, dict.fromkeys(names))], leaves, arrived)
        del sent["outputs"], sent["grads"]
        return {**sent, **deliver(comparison, leaves, dict.fromkeys(names, pull.leaves))}


@dataclass(frozen=True, eq=False)
class _Pulled:
    """What one way's cotangents came to.

    Attributes:
        way: the way.
        leaves: at the segment's leaves.
        expanded: at tensors expanded over the particles.
        edges: where parameters enter, for each reader of those.
    """

    way: Pathway
    leaves: Sequence[Tensor | None]
    expanded: Sequence[Tensor | None]
    edges: Sequence[Sequence[Tensor | None]]

    def totals(self, leaves: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor | None]:
        """Return what arrived at some of the leaves."""
        found = {id(leaf): gradient for leaf, gradient in zip(leaves, self.leaves, strict=True)}
        return [found.get(id(tensor)) for tensor in wanted]

    def answers(self, reader: int, leaves: Sequence[Tensor], uses: ParameterUses) -> Answers:
        """Return what a reader of entries asks for."""
        return Answers(
            self.edges[reader],
            self.totals(leaves, uses.parameters),
            self.way.outputs,
            self.way.cotangents,
        )


def _pull(
    way: Pathway,
    leaves: Sequence[Tensor],
    expanded: Sequence[Tensor],
    readers: Sequence[ParameterUses | None],
) -> _Pulled:
    """Pull one way's cotangents back, once."""
    edges = [[] if uses is None else uses.edges for uses in readers]
    inputs: list[Any] = [*leaves, *expanded]
    for some in edges:
        inputs.extend(some)
    found = vector_jacobian_product(way.outputs, way.cotangents, inputs)
    start = len(leaves) + len(expanded)
    parts = []
    for some in edges:
        parts.append(found[start : start + len(some)])
        start += len(some)
    return _Pulled(way, found[: len(leaves)], found[len(leaves) :][: len(expanded)], parts)


_Shared = tuple[str, _Pulled, dict[str, Tensor | None]]


def deliver(
    comparison: Comparison,
    leaves: Sequence[Tensor],
    gradients: dict[str, Sequence[Tensor | None]],
) -> dict[str, Any]:
    """Keep the gradients of the estimators that are not in use, and send that of the one that is.

    Args:
        comparison: what keeps them.
        leaves: samples and parameters.
        gradients: by the estimator's name, what arrived at the leaves.
    """
    comparison.find_out(leaves)
    arrived: list[tuple[Tensor, Tensor]] = []
    for name, found in gradients.items():
        for leaf, gradient in zip(leaves, found, strict=True):
            if gradient is None:
                continue
            if comparison.sends(name, leaf):
                arrived.append((leaf, gradient))
            else:
                comparison.keep(name, leaf, gradient)
    if not arrived:
        return {}
    return {
        "outputs": Listed(*[leaf for leaf, _ in arrived]),
        "grads": Listed(*[gradient for _, gradient in arrived]),
    }
