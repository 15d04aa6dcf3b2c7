r"""Variances and covariances of per-particle gradients, without a copy of the parameters for each.

P particles; a parameter's gradient is :math:`G = \sum_i g_i`, and autograd returns only G.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from lightning_proppo.engine.graph import AccumulateGrad, vector_jacobian_product
from lightning_proppo.mathematics.variances import not_negative
from lightning_proppo.per_particle.contributions import (
    Contribution,
    Dense,
    add_up,
    centred_squares,
    portions,
    squares,
    squares_of_sums,
    sum_dense,
)
from lightning_proppo.per_particle.fallback import (
    batched_products,
    one_by_one,
    one_by_one_portions,
    rows_hold,
    warn_one_by_one,
)
from lightning_proppo.per_particle.layouts import count
from lightning_proppo.per_particle.plans import (
    LEAF,
    Graph,
    Place,
    Plan,
    PlannedEntry,
    make_plan,
    read_graph,
)
from lightning_proppo.per_particle.registry import RULES, Entry
from lightning_proppo.per_particle.saved import ReadOnce, reading


class Answers(NamedTuple):
    """What autograd gave for one pull-back, and what was pulled.

    Attributes:
        edges: its answer for :attr:`ParameterUses.edges`.
        totals: its answer for the parameters.
        outputs: the segment's tensors that were pulled from, [P, ...] each.
        cotangents: what they were pulled with.
    """

    edges: Sequence[Tensor | None]
    totals: Sequence[Tensor | None]
    outputs: Sequence[Tensor]
    cotangents: Sequence[Tensor]

    def __add__(self, other: Answers) -> Answers:  # type: ignore[override]
        """Return what the sum of both cotangents is answered with."""
        return Answers(
            _sums(self.edges, other.edges),
            _sums(self.totals, other.totals),
            [*self.outputs, *other.outputs],
            [*self.cotangents, *other.cotangents],
        )


def _sums(x: Sequence[Tensor | None], y: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [b if a is None else a if b is None else a + b for a, b in zip(x, y, strict=True)]


class Moments(NamedTuple):
    r"""Summed variances and covariance of two per-particle gradients, float64 scalars.

    Attributes:
        first: :math:`\sum_i |f_i - \bar f|^2`.
        second: :math:`\sum_i |s_i - \bar s|^2`.
        covariance: :math:`\sum_i \langle f_i - \bar f, s_i - \bar s \rangle`; None if it was not
            asked for.
    """

    first: Tensor
    second: Tensor
    covariance: Tensor | None


@dataclass
class ParameterUses:
    """How one segment's parameters enter it.

    Attributes:
        particles: P.
        parameters: those that were asked for.
        graph: the segment.
        plan: where they enter it.
        unsupported: the operation because of which particles are pulled back one by one, or None.
    """

    particles: int
    parameters: list[Tensor]
    graph: Graph
    plan: Plan
    unsupported: str | None = None

    @property
    def edges(self) -> list[GradientEdge]:
        """Where cotangents are wanted, to be given to autograd beside the segment's leaves."""
        if self.unsupported:
            return []
        functions = self.graph.functions
        return [GradientEdge(functions[place], result) for place, result in self.plan.edges]

    def variance(
        self,
        edge_cotangents: Sequence[Tensor | None],
        totals: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
    ) -> Tensor:
        r"""Return :math:`\sum_i |g_i - \bar g|^2` over all parameters, in float64.

        Args:
            edge_cotangents: autograd's answer for :attr:`edges`.
            totals: autograd's answer for the parameters.
            outputs: the segment's tensors that were pulled from, [P, ...] each.
            cotangents: what they were pulled with.
        """
        return self.variances([Answers(edge_cotangents, totals, outputs, cotangents)])[0]

    def moments(self, first: Answers, second: Answers, with_covariance: bool = False) -> Moments:
        """Return both summed variances, and the summed covariance, over all parameters.

        What the segment's own tensors contribute is computed once for both.
        """
        if not with_covariance:
            of_first, of_second = self.variances([first, second])
            return Moments(of_first, of_second, None)
        of_first, of_second, of_sum = self.variances([first, second, first + second])
        return Moments(of_first, of_second, (of_sum - of_first - of_second) / 2)

    def variances(self, sets: Sequence[Answers]) -> list[Tensor]:
        r"""Return :math:`\sum_i |g^k_i - \bar g^k|^2` over all parameters, K float64 scalars.

        Args:
            sets: K pull-backs through the segment.
        """
        known = [total for answers in sets for total in answers.totals if total is not None]
        found: list[list[Tensor]] = []
        if known and self.particles > 1:
            if self.unsupported:
                return self._one_by_one(sets)
            parts = self._contributions(sets)
            found = [*self._of_plain(sets, parts), *self._of_rows_apart(sets)]
            if any(parts[k] is not None for k in self.plan.composite_entries):
                found.append(self._of_composite(sets, parts))
        if not found:
            device = known[0].device if known else torch.device("cpu")
            return [torch.zeros((), dtype=torch.float64, device=device) for _ in sets]
        return [not_negative(total) for total in add_up(found)]

    def _contributions(self, sets: Sequence[Answers]) -> list[list[Contribution] | None]:
        """Return, for each entry, each set's contribution; None where no cotangent arrived."""
        return reading(lambda: self._read_contributions(sets))

    def _read_contributions(self, sets: Sequence[Answers]) -> list[list[Contribution] | None]:
        functions = [ReadOnce(self.graph.functions[k]) for k, _ in self.plan.edges]
        found: list[list[Contribution] | None] = []
        for planned in self.plan.entries:
            cotangents = [answers.edges[planned.edge] for answers in sets]
            some = next((b for b in cotangents if b is not None), None)
            if some is None:
                found.append(None)
                continue
            entry = Entry(
                functions[planned.edge],
                planned.slot,
                planned.shape,
                planned.layout,
                self.particles,
            )
            found.append(
                [
                    _contribution(planned, entry, torch.zeros_like(some) if b is None else b)
                    for b in cotangents
                ]
            )
        return found

    def _of_plain(
        self, sets: Sequence[Answers], parts: Sequence[list[Contribution] | None]
    ) -> list[list[Tensor]]:
        results: list[list[Tensor]] = []
        together: list[list[Tensor]] = [[] for _ in sets]
        for number, numbers in self.plan.plain:
            uses = [part for part in (parts[k] for k in numbers) if part is not None]
            totals = [answers.totals[number] for answers in sets]
            if not uses or all(total is None for total in totals):
                continue
            by_set = [[use[k] for use in uses] for k in range(len(sets))]
            if all(isinstance(part, Dense) for part in by_set[0]):
                for own, of_set in zip(together, by_set, strict=True):
                    own.append(sum_dense(of_set, 0, self.particles))
                continue
            results.append(squares_of_sums(by_set))
            results.append(_of_means(totals, self.particles))
        if together[0]:
            results.append(centred_squares(together))
        return results

    def _of_rows_apart(self, sets: Sequence[Answers]) -> list[list[Tensor]]:
        """Each particle has elements of its own: the gradient's squares, but for the mean's."""
        results: list[list[Tensor]] = []
        for number, _ in self.plan.apart:
            totals = [answers.totals[number] for answers in sets]
            if any(total is not None for total in totals):
                results += [[-x for x in _of_means(totals, 1)], _of_means(totals, self.particles)]
        return results

    def _of_composite(
        self, sets: Sequence[Answers], parts: Sequence[list[Contribution] | None]
    ) -> list[Tensor]:
        """Pull contributions through the operations before their entries."""
        by_operand: dict[Place, list[list[Contribution]]] = {}
        for k in self.plan.composite_entries:
            part = parts[k]
            if part is not None:
                by_operand.setdefault(self.plan.entries[k].operand, []).append(part)
        parameters = [self.parameters[k] for k in self.plan.composite]
        sums = _Sums(len(sets))
        each = sum(p.numel() for p in parameters)
        each += sum(use[0].size() for uses in by_operand.values() for use in uses)
        for start, stop in portions(self.particles, each * len(sets)):
            sums.add(
                [
                    self._pull_through(
                        {
                            operand: sum_dense([use[k] for use in uses], start, stop)
                            for operand, uses in by_operand.items()
                        },
                        parameters,
                    )
                    for k in range(len(sets))
                ]
            )
        return sums.centred(self.particles)

    def _pull_through(
        self, operands: dict[Place, Tensor], parameters: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """Return contributions [p, ...] at parameters from those [p, elements] at operands."""
        functions, operations = self.graph.functions, self.graph.operations
        edges: list[GradientEdge] = []
        inner: list[Tensor] = []
        arrived: dict[int, Tensor] = {}
        for (position, result), rows in operands.items():
            function, shape = functions[position], operations[position].shapes[result]
            rows = rows.reshape(rows.shape[0], *shape)
            if type(function) is AccumulateGrad:
                arrived[id(function.variable)] = rows
            else:
                edges.append(GradientEdge(function, result))
                inner.append(rows)
        if edges:
            pulled = batched_products(edges, inner, parameters)
            for parameter, gradient in zip(parameters, pulled, strict=True):
                if gradient is not None:
                    have = arrived.get(id(parameter))
                    arrived[id(parameter)] = gradient if have is None else have + gradient
        return [arrived.get(id(parameter)) for parameter in parameters]

    def _one_by_one(self, sets: Sequence[Answers]) -> list[Tensor]:
        """Pull each particle's cotangent back on its own."""
        warn_one_by_one(self.unsupported or "")
        pulled = [
            [
                (o, c)
                for o, c in zip(answers.outputs, answers.cotangents, strict=True)
                if o.requires_grad
            ]
            for answers in sets
        ]
        sums = _Sums(len(sets))
        cotangents = [c for pair in pulled for _, c in pair]
        for limits in one_by_one_portions(cotangents, self.parameters, self.particles, len(sets)):
            sums.add(
                [
                    one_by_one([o for o, _ in pair], [c for _, c in pair], self.parameters, limits)
                    if pair
                    else [None] * len(self.parameters)
                    for pair in pulled
                ]
            )
        return sums.centred(self.particles)


class _Sums:
    """Adds up portions of per-particle gradients, and their squares."""

    def __init__(self, sets: int) -> None:
        self.sets = sets
        self.squares: list[Tensor] = []
        self.totals: list[dict[int, Tensor]] = [{} for _ in range(sets)]  # by parameter

    def add(self, gradients: Sequence[Sequence[Tensor | None]]) -> None:
        """Add a portion: each set's gradients [p, ...] at each parameter."""
        for number, each in enumerate(zip(*gradients, strict=True)):
            some = next((g for g in each if g is not None), None)
            if some is None:
                continue
            whole = [torch.zeros_like(some) if g is None else g for g in each]
            rows = [g.double() for g in whole]
            self.squares = add_up([self.squares, squares(rows)])
            for totals, own in zip(self.totals, rows, strict=True):
                have = totals.get(number)
                totals[number] = own.sum(0) if have is None else have + own.sum(0)

    def centred(self, particles: int) -> list[Tensor]:
        """Return what is left of the squares after centring."""
        if not self.squares:  # no gradient arrived anywhere
            return [torch.zeros((), dtype=torch.float64) for _ in range(self.sets)]
        results = [self.squares]
        for number in self.totals[0]:
            results.append(_of_means([totals[number] for totals in self.totals], particles))
        return add_up(results)


def _contribution(planned: PlannedEntry, entry: Entry, b: Tensor) -> Contribution:
    """Return what particles contribute, in a known kind and of the right size."""
    rule = RULES[planned.key].contribution
    found = None if rule is None else rule(entry, b)
    particles, size = entry.particles, count(entry.operand)
    if isinstance(found, Contribution):
        fits = found.particles == particles and found.elements() == size
    elif isinstance(found, Tensor):
        fits = found.shape[:1] == (particles,) and found.numel() == particles * size
        found = Dense(found.reshape(particles, size)) if fits else found
    else:
        fits = False
    if fits and isinstance(found, Contribution):
        return found
    key = planned.key if isinstance(planned.key, str) else planned.key.__name__
    got = f"shape {list(found.shape)}" if isinstance(found, Tensor) else repr(found)
    raise ValueError(
        f"the per-particle rule of {key} must return what each of {particles} particles "
        f"contributes to operand {entry.slot}: {[particles, *entry.operand]}, as a tensor, "
        f"OuterProducts or EmbeddingRows; got {got}."
    )


def _of_means(totals: Sequence[Tensor | None], particles: int) -> list[Tensor]:
    """Return the squares of sums over particles, divided by P: what centring takes away."""
    some = next(total for total in totals if total is not None)
    rows = []
    for total in totals:
        total = torch.zeros_like(some) if total is None else total
        total = total.to_dense() if total.layout != torch.strided else total
        rows.append(total.double())
    return [square / -particles for square in squares(rows)]


def find_parameter_uses(
    outputs: Sequence[Tensor], parameters: Sequence[Tensor], particles: int
) -> ParameterUses:
    """Find where parameters enter a segment.

    Args:
        outputs: the segment's tensors, [P, ...] each.
        parameters: leaf tensors without a particle axis.
        particles: P.
    """
    graph = read_graph(outputs, parameters, particles)
    if not parameters or particles == 1:
        return ParameterUses(particles, list(parameters), graph, Plan())
    plan = make_plan(graph.operations, graph.roots, particles)
    uses = ParameterUses(particles, list(parameters), graph, plan, plan.unsupported)
    if plan.assumed is not None and not _assumption_holds(outputs, uses):
        uses.unsupported = plan.assumed
    return uses


def _assumption_holds(outputs: Sequence[Tensor], uses: ParameterUses) -> bool:
    places = {
        (entry.function, edge): entry.layout
        for entry in uses.plan.entries
        for edge in [uses.plan.edges[entry.edge][1]]
    }
    for position, operation in enumerate(uses.graph.operations):
        if operation.key == LEAF:
            places.update(
                ((position, 0), layout)
                for number, layout in uses.plan.apart
                if number == operation.settings[0]
            )
    functions = uses.graph.functions
    edges = [(GradientEdge(functions[k], result), layout) for (k, result), layout in places.items()]
    connected = [output for output in outputs if output.requires_grad]
    return rows_hold(connected, edges, uses.particles)


def per_particle_variance(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor], parameters: Sequence[Tensor]
) -> Tensor:
    r"""Return :math:`\sum_i |g_i - \bar g|^2` at parameters, in float64 (a convenience).

    Args:
        outputs: [P, ...] each.
        cotangents: of their shapes.
        parameters: leaf tensors that they depend on.
    """
    uses = find_parameter_uses(outputs, parameters, outputs[0].shape[0])
    answers = vector_jacobian_product(outputs, cotangents, [*parameters, *uses.edges])
    size = len(parameters)
    with torch.no_grad():  # contributions are products with tensors that have a graph
        return uses.variance(answers[size:], answers[:size], outputs, cotangents)
