"""Total propagation (Parmas et al. 2018; Appendix A.2, B.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_proppo.containers import Listed
from lightning_proppo.engine.backward_pass import active_index, active_pass
from lightning_proppo.engine.cuts import cut, is_cut
from lightning_proppo.engine.graph import vector_jacobian_product
from lightning_proppo.errors import check_choice
from lightning_proppo.mathematics.variances import (
    deviation_products,
    inverse_variance_weighting,
    mix,
    weights_from_variances,
)
from lightning_proppo.per_particle import Answers, ParameterUses, find_parameter_uses
from lightning_proppo.pooling import pooled_products, pooled_variances, pooled_weights
from lightning_proppo.propagators.base import ComboProp, Propagator
from lightning_proppo.propagators.baseline import mcgrad_temp
from lightning_proppo.propagators.biw import SHARES, check_sharing, share_backward
from lightning_proppo.propagators.distributions import (
    DistParams,
    make_distribution,
    require_rsample,
)
from lightning_proppo.propagators.guard import (
    guarded_at_parameters,
    guarded_at_samples,
    guarded_between,
)
from lightning_proppo.propagators.halves import HALVES, centred_by_half, only_part, recentring
from lightning_proppo.propagators.lr import message_loss
from lightning_proppo.propagators.normal import (
    NOISES,
    NormalDraw,
    check_noise,
    draw_normal,
    draw_squashed_normal,
    normal_base,
)
from lightning_proppo.propagators.pathways import (
    Pathway,
    lr_pathway,
    normal_lr_pathway,
    normal_rp_pathway,
    outputs_of,
    rp_pathway,
)
from lightning_proppo.propagators.sampling import draw
from lightning_proppo.propagators.targets import Target, check_expanded, check_target
from lightning_proppo.propagators.weights import (
    Weights,
    check_weights,
    mean_lr_weight,
    mixed_cotangents,
    rows_at_node,
    shielded,
    shielded_at_node,
    weights_at_node,
)
from lightning_proppo.ranks import active_ranks

# Numbers in a sample from which on a product with a matrix costs more than another pull-back does.
_LARGE = 1 << 14
WEIGHTINGS = ("inverse-variance", "covariance", "cross-fitted")


class Weighed(NamedTuple):
    """Weights by variance alone.

    Attributes:
        weights: on LR and on RP.
        squares: the sum of both gradients' squared deviations at parameters, []; None at samples.
    """

    weights: Weights
    squares: Tensor | None = None


class TPBase(Propagator):
    r"""Mixes LR and RP at every sample by inverse variance (Appendix A.2).

    .. math:: \hat g = k \hat g_{LR} + (1 - k) \hat g_{RP}, \qquad
              k = \frac{V[\hat g_{RP}]}{V[\hat g_{LR}] + V[\hat g_{RP}]}

    What has been mixed is propagated further back, so that an RP part which has become noise is
    left behind at the node where it did. The weights are computed from the particles that they
    weigh, which biases the estimate by O(1/P); see ``weighting``.

    RP is biased where costs or dynamics jump. The ``guard`` gives RP's weight to LR where the two
    disagree beyond their noise. It needs noise between a parameter and the jump, or LR is wrong
    too, and particles enough for LR to see the bias.

    Args:
        var_weighting_func: a function of two lists of per-particle gradients [P, ...] that returns
            their two weights; only for targets that are expanded tensors.
        **kwargs: default forward options.
    """

    uses_cost_gradient = True
    loss_baseline = False
    choices: ClassVar[Mapping[str, Sequence[str]]] = {
        "weighting": WEIGHTINGS,
        "share": SHARES,
        "noise": NOISES,
    }

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
        weighting: str = "inverse-variance",
        share: str | None = None,
        group_size: int | None = None,
        noise: str = "independent",
        guard: bool = True,
    ) -> Any:
        """Draw a sample [P, ...], keeping what LR and RP need to reach its distribution.

        Args:
            x: the state to add noise to, or None with ``dist``.
            node: not used.
            dist: the distribution to draw from.
            dist_class: the noise's distribution, with ``dist_params``.
            dist_params: its arguments.
            ivw_target: where variances are compared: ``"parameters"``, all that the segment
                before this sample reaches (its incoming samples where it reaches none);
                a module or parameters, some of them; tensors expanded over the particles, [P, ...]
                each; ``"node"``, this sample itself before fixed transforms, one weight for each
                coordinate (cheapest; where it has more coordinates than log-densities, and is not
                normal, a single weight).
            k_interval: weights are computed at every ``k_interval``-th node only, counted from
                the last, and kept in between.
            weighting: ``"inverse-variance"``; ``"covariance"``, the weights of least variance for
                estimates that are correlated, as LR's and RP's of the same samples are;
                ``"cross-fitted"``, inverse variances of the other half of the particles, which
                bias nothing at this sample (halves still meet in the weights of later samples),
                but do not shield against outliers that only one half has.
            share: None; ``"likelihoods"``, LR is the batch importance weighted one (see
                :class:`~lightning_proppo.propagators.biw.BIWBase`); ``"mesh"``, that, with later
                costs shared too. For normal samples.
            group_size: particles share in groups of at most so many neighbours; None: all.
            noise: ``"independent"`` or ``"quasi-random"``
                (:func:`~lightning_proppo.mathematics.quasi.quasi_random_normal`; for normal
                samples).
            guard: leave to LR the samples at which RP disagrees with it beyond their noise, as at a
                jump in the costs or the dynamics.

        Raises:
            TypeError: if the distribution has no ``rsample`` or is not described, or for a wrong
                target, or if it is not normal where that is asked for.
            ValueError: for a wrong target, interval or name; if the particles have not each their
                own noise; if the support depends on what is learnt (see
                :class:`~lightning_proppo.propagators.lr.LRBase`).
        """
        del node
        if not isinstance(k_interval, int) or k_interval < 1:
            raise ValueError(f"k_interval must be an int of at least 1; got {k_interval!r}.")
        if not isinstance(guard, bool):
            raise TypeError(f"guard must be True or False; got {guard!r}.")
        target = check_target(ivw_target)
        check_choice("weighting", weighting, WEIGHTINGS)
        own_function = self.var_weighting_func is not inverse_variance_weighting
        if own_function and (isinstance(target, str) or weighting != "inverse-variance"):
            raise TypeError(
                "var_weighting_func weighs per-particle gradients, so weighting must be left as "
                "it is and ivw_target must be tensors expanded over the particles; got "
                f"{ivw_target!r}, and weighting={weighting!r}."
            )
        dist = make_distribution(x, dist, dist_class, dist_params, "TP")
        require_rsample(dist, "TP")
        check_noise(noise, dist)
        check_sharing(share, group_size, dist)
        if share is not None and weighting == "cross-fitted":
            raise ValueError(
                f"weighting='cross-fitted' needs particles that do not share; got share={share!r}."
            )
        contents = {
            "ivw_target": target,
            "k_interval": k_interval,
            "weighting": weighting,
            "guard": guard,
            "register_node": True,
        }
        if normal_base(dist) is not None:
            normal = draw_normal(dist, x, noise)
            sharing = {"share": share, "group_size": group_size}
            return {"output": cut(normal.sample), **normal.contents(), **sharing, **contents}
        squashed = draw_squashed_normal(dist, x)
        if squashed is not None:
            sample, image, normal = squashed
            return {
                "output": cut(sample),
                "image": image,
                **normal.contents(),
                "share": None,
                **contents,
            }
        drawn = draw(dist, x, reparameterized=True)
        return {
            "output": cut(drawn.sample),
            "pre_output": drawn.path,
            "log_prob": drawn.log_prob,
            "dist": drawn.dist,
            "point": drawn.point,
            "image": drawn.image,
            **contents,
        }

    # Else the particles' contributions, which are products with the segment's own tensors, would
    # put a graph on the gradients, and a parameter whose .grad has a graph is never freed.
    @torch.no_grad()
    def backward_impl(self, node: Any, message: Any) -> Any:
        """Mix the two gradients and send the mixture."""
        losses = message_loss(message)
        if losses is None:  # no cost follows this sample
            return {}
        sent: dict[str, Any] = {}
        cotangent = node["output"].grad
        if cotangent is None:
            cotangent = torch.zeros_like(node["output"])
        image = node.get("image")
        if image is not None:
            cotangent = image.pull(cotangent.to(image.value.dtype))
        if "noise" in node:
            normal = NormalDraw.of(node)
            lr_way: Callable[[Tensor], Pathway] = partial(normal_lr_pathway, normal)
            rp = normal_rp_pathway(normal, cotangent.to(normal.loc.dtype))
        else:
            path = node["pre_output"]
            lr_way = partial(lr_pathway, node["log_prob"])
            rp = rp_pathway(path, cotangent.to(path.dtype))
        if node.get("share") is not None:
            losses = message["local_loss"]
            lr, sent = share_backward(normal, losses, node["share"], node["group_size"])
        else:
            lr = lr_way(losses)
        if node["weighting"] == "cross-fitted" and "baselined_loss" in message:
            # A baseline made of all particles would let each half into the other's weights.
            by_half = centred_by_half(message["local_loss"], active_ranks())
            lr = replace(lr, contributions=lr_way(by_half).cotangents)
        counter = message.get("k_counter", 0)
        kept = message.get("k_weighed") if counter % node["k_interval"] else None
        if node["ivw_target"] == "node":
            weighed, guarded = self._weigh_at_node(node, kept, lr, rp)
            used = [shielded_at_node(guarded, rp, node["weighting"] == "cross-fitted")]
            sent.update(mixed_cotangents(used[0], lr, rp))
        else:
            weighed, used, mixed = self._mixed_gradients(node, kept, lr, rp)
            sent.update(mixed)
        running = active_pass()
        if running is not None:
            running.note("lr_weight", mean_lr_weight(used))
        return {**sent, **weights_to_keep(weighed, counter + 1)}

    def _weigh_at_node(
        self, node: Any, kept: list[Weighed] | None, lr: Pathway, rp: Pathway
    ) -> tuple[list[Weighed], Weights]:
        """Return a weight for each coordinate of the sample, by variance alone and guarded."""
        if kept is not None:
            weights = kept[0].weights
            if not node["guard"]:
                return kept, weights
            return kept, guarded_between([weights], rp.cotangents[0].shape[1:])[0]
        first, second = rows_at_node(node, lr), rp.cotangents[0]
        weights = weights_at_node(node, lr, first, second)
        weighed = [Weighed(weights)]
        if not node["guard"]:
            return weighed, weights
        reached = active_index().leaves(outputs_of([lr, rp]))
        past = [leaf for leaf in reached if is_cut(leaf) and leaf.shape[:1] == first.shape[:1]]
        return weighed, guarded_at_samples([weights], [first], [second], past, active_ranks())[0]

    def _mixed_gradients(
        self, node: Any, kept: list[Weighed] | None, lr: Pathway, rp: Pathway
    ) -> tuple[list[Weighed], list[Weights], dict[str, Any]]:
        """Pull both ways' cotangents back, and mix what arrives at the segment's leaves.

        With cross-fitting each half of the particles is pulled back by itself. Where the weights
        can be had for little, the cotangents are mixed and sent instead, to be pulled back once.

        Returns:
            The weights by variance alone, those that were used (guarded and :func:`shielded`
            ones), and what is to be sent.
        """
        crossed = node["weighting"] == "cross-fitted"
        outputs = outputs_of([lr, rp])
        leaves = active_index().leaves(outputs)
        particles = lr.cotangents[0].shape[0]
        parameters, expanded = self._compared(node["ivw_target"], leaves, particles)
        uses = find_parameter_uses(outputs, parameters, particles) if kept is None else None
        edges = uses.edges if uses is not None and parameters else []
        if uses is not None and _weights_are_cheap(uses, lr, rp) and not crossed:
            answers = [
                _split(
                    vector_jacobian_product(way.outputs, way.cotangents, [*parameters, *edges]),
                    (0, len(parameters), 0),
                )
                for way in (lr, rp)
            ]
            weighed = [self._weigh(node, uses, lr, rp, answers, None)]
            places = [[answer[1]] for answer in answers]
            (found,) = self._guarded(node, weighed, parameters, *places)
            used = [shielded(found, rp.cotangents)]
            return weighed, used, mixed_cotangents(used[0], lr, rp)
        inputs = [*leaves, *parameters, *expanded, *edges]
        sizes = len(leaves), len(parameters), len(expanded)
        parts = HALVES if crossed else [None]
        weighed = [] if kept is None else kept
        of_lr_by_part, of_rp_by_part = [], []
        for part in parts:
            answers = [
                _split(
                    vector_jacobian_product(way.outputs, only_part(way.independent, part), inputs),
                    sizes,
                )
                for way in (lr, rp)
            ]
            if kept is None:
                weighed.append(self._weigh(node, uses, lr, rp, answers, part))
            of_lr_by_part.append(answers[0])
            of_rp_by_part.append(answers[1])
        independent = of_lr_by_part
        if lr.contributions is not None:  # they give the variance; this is the gradient
            of_lr_by_part = [
                _split(
                    vector_jacobian_product(lr.outputs, only_part(lr.cotangents, part), inputs),
                    sizes,
                )
                for part in parts
            ]
        if kept is not None:
            kept_weights = [part.weights for part in kept]
            weights = guarded_between(kept_weights) if node["guard"] else kept_weights
        else:
            where = 1 if parameters else 2
            weights = self._guarded(
                node,
                weighed,
                parameters or expanded,
                # Particles' own rows are compared at samples.
                [answer[where] for answer in (of_lr_by_part if parameters else independent)],
                [answer[where] for answer in of_rp_by_part],
            )
        lr_gradients = [answer[0] for answer in of_lr_by_part]
        rp_gradients = [answer[0] for answer in of_rp_by_part]
        arrived: list[tuple[Tensor, Tensor]] = []
        # The weights of one half are for the other.
        used = [
            shielded(pair, of_rp)
            for pair, of_rp in zip(reversed(weights), rp_gradients, strict=True)
        ]
        for (k_lr, k_rp), of_lr, of_rp in zip(used, lr_gradients, rp_gradients, strict=True):
            for leaf, gradient in zip(leaves, mix(k_lr, of_lr, k_rp, of_rp), strict=True):
                if gradient is not None:
                    arrived.append((leaf, gradient))
        if not arrived:
            return weighed, used, {}
        # The leaves themselves are sent, with their gradients: nothing is pulled back again.
        return (
            weighed,
            used,
            {
                "outputs": Listed(*[leaf for leaf, _ in arrived]),
                "grads": Listed(*[gradient for _, gradient in arrived]),
            },
        )

    def _guarded(
        self,
        node: Any,
        weighed: Sequence[Weighed],
        places: Sequence[Tensor],
        lr_gradients: Sequence[Sequence[Tensor | None]],
        rp_gradients: Sequence[Sequence[Tensor | None]],
    ) -> list[Weights]:
        """Return the weights, leaning to LR where it disagrees with RP.

        Args:
            node: the sample's.
            weighed: the weights by variance alone, for each part of the particles.
            places: where variances are compared.
            lr_gradients: LR's there, for each part.
            rp_gradients: RP's.
        """
        weights = [part.weights for part in weighed]
        if not node["guard"]:
            return weights
        particles, ranks = node["output"].shape[0], active_ranks()
        squares = [part.squares for part in weighed]
        at_samples = squares[0] is None
        found = [
            (_sum(of_lr), _sum(of_rp), place)
            for of_lr, of_rp, place in zip(
                zip(*lr_gradients, strict=True),
                zip(*rp_gradients, strict=True),
                places,
                strict=True,
            )
            if of_lr[0] is not None and of_rp[0] is not None
            if not at_samples or place.shape[:1] == (particles,)
        ]
        if not found:
            return weights
        first, second, reached = zip(*found, strict=True)
        if at_samples:  # incoming ones, whose own values are the past
            return guarded_at_samples(weights, first, second, reached, ranks)
        if is_cut(reached[0]) or not reached[0].is_leaf:  # with an axis of particles
            first, second = (tuple(rows.sum(0) for rows in both) for both in (first, second))
        return guarded_at_parameters(
            weights, first, second, _sum(squares), particles * ranks.size, ranks
        )

    def _compared(
        self, target: Any, leaves: Sequence[Tensor], particles: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters, or else the tensors with particles, where variances are compared.

        Raises:
            TypeError: for a mixture of both.
        """
        if target != "parameters":
            # Those that have been frozen since get no gradient, and so have no variance.
            target = [t for t in target if t.requires_grad] or "parameters"
        if target == "parameters":
            parameters = [leaf for leaf in leaves if not is_cut(leaf)]
            return parameters, [] if parameters else list(leaves)
        parameters = [t for t in target if t.is_leaf and not is_cut(t)]
        expanded = [t for t in target if not (t.is_leaf and not is_cut(t))]
        check_expanded(expanded, particles)
        if parameters and (expanded or self.var_weighting_func is not inverse_variance_weighting):
            raise TypeError(
                "ivw_target must be either parameters or tensors expanded over the particles "
                "(for a var_weighting_func, the latter); got a parameter of shape "
                f"{list(parameters[0].shape)} among them. Expand it with lightning_proppo.expand."
            )
        return parameters, expanded

    def _weigh(
        self,
        node: Any,
        uses: ParameterUses | None,
        lr: Pathway,
        rp: Pathway,
        answers: Sequence[Sequence[Sequence[Tensor | None]]],
        part: slice | None,
    ) -> Weighed:
        """Weigh by what autograd gave for LR and for RP: (leaves, ..., edges) each."""
        (_, lr_totals, lr_expanded, lr_edges), (_, rp_totals, rp_expanded, rp_edges) = answers
        with_covariance = node["weighting"] == "covariance"
        ranks = active_ranks()
        if uses is not None and uses.parameters:
            first = Answers(lr_edges, lr_totals, lr.outputs, only_part(lr.independent, part))
            second = Answers(rp_edges, rp_totals, rp.outputs, only_part(rp.independent, part))
            moments = uses.moments(first, second, with_covariance)
            totals, members = (lr_totals, rp_totals), uses.particles
            if with_covariance:
                products = pooled_products(moments, totals, members, ranks)
            else:
                variances = [moments.first, moments.second]
                if part is not None:
                    members = len(range(uses.particles)[part])
                    variances = [
                        variance + recentring(total, members, uses.particles)
                        for variance, total in zip(variances, totals, strict=True)
                    ]
                products = pooled_variances(variances, totals, members, ranks)
            return Weighed(weights_from_variances(*products), products[0] + products[1])
        pairs = [
            _filled(a, b)
            for a, b in zip(lr_expanded, rp_expanded, strict=True)
            if a is not None or b is not None
        ]
        if not pairs:  # nothing that is compared depends on this sample
            half = torch.full((), 0.5, dtype=torch.float64, device=lr.cotangents[0].device)
            return Weighed((half, half))
        first_gradients, second_gradients = (
            [g if part is None else g[part] for g in gradients]
            for gradients in zip(*pairs, strict=True)
        )
        if self.var_weighting_func is inverse_variance_weighting:
            weights = pooled_weights(
                first_gradients, second_gradients, ranks, with_covariance=with_covariance
            )
        else:
            weights = check_weights(
                self.var_weighting_func(first_gradients, second_gradients), lr.cotangents[0]
            )
        if isinstance(node["ivw_target"], str):
            return Weighed(weights)
        # Parameters that were expanded over the particles.
        both = [first_gradients, second_gradients]
        variances = pooled_variances(
            [deviation_products(rows, rows) for rows in both],
            [[gradient.sum(0) for gradient in rows] for rows in both],
            first_gradients[0].shape[0],
            ranks,
        )
        return Weighed(weights, variances[0] + variances[1])


def weights_to_keep(weighed: list[Weighed], counter: int) -> dict[str, Any]:
    """Return what a message has for the samples before, which may keep these weights."""
    pairs = [part.weights for part in weighed]
    return {
        "k_counter": counter,
        "k_weighed": weighed,
        # As the paper's message has it, unless each half of the particles has its own.
        "k_lr_k_rp": pairs[0] if len(pairs) == 1 else pairs,
    }


def _weights_are_cheap(uses: ParameterUses, lr: Pathway, rp: Pathway) -> bool:
    """Return whether to ask for the weights first and pull the mixture back costs less.

    Three pull-backs, of which two go only as far as to the parameters, instead of two.
    """
    if not uses.plan.near or uses.unsupported or lr.contributions is not None:
        return False
    return sum(cotangent.numel() for cotangent in rp.cotangents) >= _LARGE


def _split(answers: Sequence[Any], sizes: Sequence[int]) -> list[Sequence[Any]]:
    """Cut a list into parts of these sizes and the rest."""
    parts, start = [], 0
    for size in sizes:
        parts.append(answers[start : start + size])
        start += size
    return [*parts, answers[start:]]


def _sum(tensors: Sequence[Any]) -> Any:
    """Return the sum of the particles' parts."""
    return tensors[0] if len(tensors) == 1 else torch.stack([*tensors]).sum(0)


def _filled(a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both, with zeros for one that is missing."""
    if a is None and b is not None:
        return torch.zeros_like(b), b
    if b is None and a is not None:
        return a, torch.zeros_like(a)
    return a, b  # type: ignore[return-value]


class TotalProp(ComboProp, propagators=mcgrad_temp(backprop=True, base=TPBase, baseline=True)):
    """:class:`TPBase` with a leave-one-out baseline and back-propagation, each optional."""

    uses_cost_gradient = True
    loss_baseline = False


class TPXProp(TotalProp, ivw_target="node"):
    """Total propagation with a weight for each coordinate, computed at the sample itself.

    TPX of Parmas, Seno and Aoki (2023, "Model-based reinforcement learning with scalable composite
    policy gradient estimators"): it costs little more than RP, whatever the number of parameters.
    What is compared are the variances at the sample, not at the parameters, so its mixture is as a
    rule not the best for those.
    """
