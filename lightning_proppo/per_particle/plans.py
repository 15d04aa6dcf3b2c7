"""Where parameters enter a segment: a function of the segment's structure alone.

The graph is read once, into :class:`~.registry.Operation` records; the plan is made of these
alone, so that a rollout's steps, which build the same graph again and again, share one.

From the outputs, which have the particles first, towards the parameters: each operation either
keeps the rows of an operand apart, and the walk goes on, or all particles share the operand (an
*entry*), or the walk cannot tell. What lies before an entry need not be looked at: the
contributions of particles to its operand are known, and can be pulled through anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from lightning_proppo.engine.graph import AccumulateGrad
from lightning_proppo.per_particle.arithmetic import LIGHT, TRANSPARENT
from lightning_proppo.per_particle.layouts import LEADING, Layout, Shape
from lightning_proppo.per_particle.registry import (
    RULES,
    Key,
    Operation,
    Step,
    Verdict,
    key_of,
    on_change,
    settings_of,
)

Place = tuple[int, int]  # a function's position and one of its results
LEAF = "leaf"
_WAITING = -1  # for the functions that it is computed from


class PlannedEntry(NamedTuple):
    """An :class:`~.registry.Entry`, by position.

    Attributes:
        function: the position of the function that is entered.
        key: of its rule.
        slot: which operand.
        operand: where that comes from.
        shape: the operand's.
        layout: where the function's result holds the particles.
        edge: which of the plan's edges is the result.
    """

    function: int
    key: Key
    slot: int
    operand: Place
    shape: Shape
    layout: Layout
    edge: int


@dataclass(frozen=True)
class Plan:
    """Where parameters enter a segment.

    Attributes:
        entries: all of them.
        edges: the results whose cotangents are needed.
        plain: parameters that enter as they are, but for their shape, with their entries.
        composite: parameters that do not.
        composite_entries: the entries that these reach.
        apart: parameters with rows of their own for each particle.
        assumed: an operation without a rule that is taken to keep rows apart, to be tested.
        unsupported: the operation because of which there is no plan.
        near: whether the parameters are reached through light operations alone, though there are
            others in the segment: to pull a cotangent back to them costs little of what it costs
            to pull it back to everything.
    """

    entries: tuple[PlannedEntry, ...] = ()
    edges: tuple[Place, ...] = ()
    plain: tuple[tuple[int, tuple[int, ...]], ...] = ()
    composite: tuple[int, ...] = ()
    composite_entries: tuple[int, ...] = ()
    apart: tuple[tuple[int, Layout], ...] = ()
    assumed: str | None = None
    unsupported: str | None = None
    near: bool = False


@dataclass(frozen=True)
class Graph:
    """A segment as it was read.

    Attributes:
        functions: autograd's, each after those that it is computed from.
        operations: what they are, position by position.
        roots: where the outputs come from.
    """

    functions: list[Any]
    operations: tuple[Operation, ...]
    roots: tuple[Place, ...]


def read_graph(outputs: Sequence[Tensor], parameters: Sequence[Tensor], particles: int) -> Graph:
    """Read the graph behind ``outputs``; parameters are known by their place in the list."""
    numbers = {id(parameter): k for k, parameter in enumerate(parameters)}
    starts = [_start(output) for output in outputs if output.requires_grad]
    positions: dict[Any, int] = {}
    functions: list[Any] = []
    operations: list[Operation] = []
    stack = [function for function, _ in starts]
    while stack:
        function = stack[-1]
        position = positions.get(function)
        following = function.next_functions
        if position is None:
            positions[function] = _WAITING
            stack.extend([f for f, _ in following if f is not None and f not in positions])
            continue
        stack.pop()
        if position != _WAITING:
            continue
        positions[function] = len(functions)
        functions.append(function)
        if type(function) is AccumulateGrad:
            leaf = function.variable
            which = (numbers.get(id(leaf), -1),)
            operations.append(Operation(LEAF, (tuple(leaf.shape),), (), which))
            continue
        key = key_of(function)
        rule = RULES.get(key)
        operations.append(
            Operation(
                key,
                tuple([tuple(result.shape) for result in function._input_metadata]),
                tuple([None if f is None else (positions[f], k) for f, k in following]),
                settings_of(function, rule.settings, particles) if rule and rule.settings else (),
            )
        )
    roots = tuple([(positions[function], result) for function, result in starts])
    return Graph(functions, tuple(operations), roots)


def _start(output: Tensor) -> tuple[Any, int]:
    if output.grad_fn is not None:
        return output.grad_fn, output.output_nr
    return get_gradient_edge(output)[:2]  # a leaf's, which accumulates


class _Unsupported(Exception):
    """There is no plan, because of the operation named."""


@lru_cache(maxsize=256)
def make_plan(operations: tuple[Operation, ...], roots: tuple[Place, ...], particles: int) -> Plan:
    """Plan for a graph with the particles first in every root.

    Args:
        operations: see :class:`Graph`.
        roots: likewise.
        particles: P, at least 2.
    """
    try:
        return _Planner(operations, particles).plan(roots)
    except _Unsupported as reason:
        return Plan(unsupported=str(reason))


on_change(make_plan.cache_clear)


def _name(operation: Operation) -> str:
    return operation.key if isinstance(operation.key, str) else operation.key.__name__


class _Planner:
    def __init__(self, operations: tuple[Operation, ...], particles: int) -> None:
        self.operations = operations
        self.particles = particles
        self.entries: list[PlannedEntry] = []
        self.edges: dict[Place, int] = {}
        self.layouts: dict[Place, Layout] = {}
        self.apart: dict[int, Layout] = {}
        self.assumed: str | None = None
        self.reached: list[frozenset[int]] = []  # by each position: parameters
        for operation in operations:
            self.reached.append(self._parameters_behind(operation))

    def _parameters_behind(self, operation: Operation) -> frozenset[int]:
        if operation.key == LEAF:
            number = operation.settings[0]
            return frozenset() if number < 0 else frozenset([number])
        behind = [self.reached[operand[0]] for operand in operation.operands if operand]
        distinct = {id(found): found for found in behind if found}
        if len(distinct) == 1:
            return next(iter(distinct.values()))
        return frozenset().union(*distinct.values())

    def plan(self, roots: tuple[Place, ...]) -> Plan:
        for place in roots:
            if self.reached[place[0]]:
                self._arrive(place, LEADING, "an output without particles")
        for position in reversed(range(len(self.operations))):
            self._look_at(position)
        self._refuse_two_ways()
        return self._sorted()

    def _shape(self, place: Place) -> Shape:
        return self.operations[place[0]].shapes[place[1]]

    def _arrive(self, place: Place, layout: Layout, name: str) -> None:
        """Note where a tensor holds its particles."""
        fits = len(self._shape(place)) > layout.axis and (
            self._shape(place)[layout.axis] % (self.particles * layout.inner) == 0
        )
        if not fits or self.layouts.setdefault(place, layout) != layout:
            raise _Unsupported(name)

    def _look_at(self, position: int) -> None:
        operation = self.operations[position]
        results = [
            (number, self.layouts[position, number])
            for number in range(len(operation.shapes))
            if (position, number) in self.layouts
        ]
        if operation.key == LEAF:
            for _, layout in results:
                self.apart[operation.settings[0]] = layout
            return
        for slot, operand in enumerate(operation.operands):
            if operand is None or not self.reached[operand[0]]:
                continue
            for number, layout in results:
                self._follow((position, number), layout, slot, operand)

    def _follow(self, result: Place, layout: Layout, slot: int, operand: Place) -> None:
        operation = self.operations[result[0]]
        rule = RULES.get(operation.key)
        shape, name = self._shape(operand), _name(operation)
        verdict: Layout | Verdict = Verdict.UNKNOWN
        if rule is not None:
            step = Step(
                operation.settings, slot, shape, self._shape(result), layout, self.particles
            )
            verdict = rule.rows(step)
        if isinstance(verdict, Layout):
            self._arrive(operand, verdict, name)
        elif verdict is Verdict.SHARED and result[1] == 0 and rule and rule.contribution:
            edge = self.edges.setdefault(result, len(self.edges))
            self.entries.append(
                PlannedEntry(result[0], operation.key, slot, operand, shape, layout, edge)
            )
        elif verdict is Verdict.UNKNOWN and layout == LEADING and shape[:1] == (self.particles,):
            self._arrive(operand, LEADING, name)
            self.assumed = name
        else:
            raise _Unsupported(name)

    def _refuse_two_ways(self) -> None:
        """Refuse what particles reach both through rows of their own and through shared operands.

        The cotangent at its entries would hold both, and only the first is told apart there.
        """
        followed = {position for position, _ in self.layouts}
        behind: set[int] = set()
        for entry in self.entries:
            stack = [entry.operand[0]]
            while stack:
                position = stack.pop()
                if position in behind or not self.reached[position]:
                    continue
                behind.add(position)
                if position in followed:
                    raise _Unsupported(_name(self.operations[entry.function]))
                stack.extend(
                    operand[0] for operand in self.operations[position].operands if operand
                )

    def _sorted(self) -> Plan:
        """Tell parameters that enter as they are from those that are transformed before."""
        ways: dict[int, set[Any]] = {}
        plain: dict[int, list[int]] = {}
        composite: set[int] = set()
        for number, entry in enumerate(self.entries):
            leaf, way = self._way(entry.operand)
            if leaf is None:
                composite |= self.reached[entry.operand[0]]
            else:
                ways.setdefault(leaf, set()).add(way)
                plain.setdefault(leaf, []).append(number)
        composite |= {leaf for leaf, found in ways.items() if len(found) > 1}
        kept = {leaf: numbers for leaf, numbers in plain.items() if leaf not in composite}
        direct = {number for numbers in kept.values() for number in numbers}
        return Plan(
            entries=tuple(self.entries),
            edges=tuple(self.edges),
            plain=tuple((leaf, tuple(numbers)) for leaf, numbers in kept.items()),
            composite=tuple(sorted(composite)),
            composite_entries=tuple(k for k in range(len(self.entries)) if k not in direct),
            apart=tuple(self.apart.items()),
            assumed=self.assumed,
            near=self._near(),
        )

    def _near(self) -> bool:
        heavy = [k for k, o in enumerate(self.operations) if o.key not in LIGHT and o.key != LEAF]
        return bool(heavy) and not any(self.reached[position] for position in heavy)

    def _way(self, place: Place) -> tuple[int | None, Any]:
        """Return the parameter behind an operand and how it was reshaped, or None."""
        way: list[Any] = [self._shape(place)]
        while (operation := self.operations[place[0]]).key in TRANSPARENT:
            if operation.operands[0] is None:
                return None, None
            way.append((operation.key, operation.shapes, operation.settings))
            place = operation.operands[0]
        return (operation.settings[0], tuple(way)) if operation.key == LEAF else (None, None)
