r"""Per-particle gradients of whole rollouts: what particles contribute at all nodes, added up.

The variance of a node's gradient is a matter of that node alone (:class:`ParameterUses`); that of
the rollout's, :math:`\sum_i |\sum_t g_{it} - \bar g|^2`, is not the sum of those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_proppo.per_particle.arithmetic import SAME_ORDER
from lightning_proppo.per_particle.contributions import (
    BLOCK,
    PORTION,
    Contribution,
    OuterProducts,
    portions,
    sum_dense,
)
from lightning_proppo.per_particle.fallback import one_by_one, one_by_one_portions, warn_one_by_one
from lightning_proppo.per_particle.plans import LEAF, Place, Plan
from lightning_proppo.per_particle.registry import Operation
from lightning_proppo.per_particle.sketches import EXACT, ParameterSketch, Shares, Signs, less
from lightning_proppo.per_particle.uses import Answers, ParameterUses


@dataclass(frozen=True, eq=False)
class PullBack:
    """One pull-back through a segment, and what estimators take of it.

    Attributes:
        name: what it is called, e.g. "LR"; the same at every segment.
        answers: what autograd gave.
        shares: estimators by number, and their weight on it (None: one).
    """

    name: str
    answers: Answers
    shares: Shares


@dataclass
class _Small:
    """What particles contribute to a small parameter by one pull-back, at many segments.

    Attributes:
        rows: [P, n] each.
        steps: the sample's number, or -1 for a cost.
        shares: see :class:`PullBack`.
    """

    rows: list[Tensor] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    shares: list[Shares] = field(default_factory=list)


class RolloutGradients:
    r"""The per-particle gradients of a rollout by several estimators, as sketches.

    Args:
        estimators: how many.
        particles: P.
        copies: K, sketches of each parameter that is not small.
        signs: where random signs come from.

    """

    def __init__(self, estimators: int, particles: int, copies: int, signs: Signs) -> None:
        self.estimators = estimators
        self.particles = particles
        self.copies = copies
        self.signs = signs
        self._totals: list[dict[int, Tensor]] = [{} for _ in range(estimators)]
        self._parameters: dict[int, Tensor] = {}
        self._sketches: dict[int, ParameterSketch] = {}
        self._apart: set[int] = set()
        self._told_by_rows: set[int] = set()
        self._samples = 0
        # Operations on small parameters take longer to start than to run: they wait for others.
        self._small: dict[tuple[Any, ...], _Small] = {}
        self._waiting = 0
        self._known: dict[int, tuple[Plan, dict[int, bool | None]]] = {}
        self._by_sample: dict[str, dict[int, Tensor]] = {}

    def add_totals(self, number: int, leaves: Sequence[Tensor], found: Sequence[Any]) -> None:
        """Add an estimator's gradients at leaves to its totals, after :meth:`add`."""
        totals = self._totals[number]
        for parameter, total in zip(leaves, found, strict=True):
            key = id(parameter)
            if total is None or key in self._told_by_rows:
                continue
            self._parameters[key] = parameter
            total = total.to_dense() if total.layout != torch.strided else total
            totals[key] = totals[key] + total if key in totals else total

    def totals(self, number: int) -> dict[int, Tensor]:
        """Return an estimator's gradient, flat, by ``id`` of the parameter."""
        self._finish_small()
        found = {key: total.flatten() for key, total in self._totals[number].items()}
        for key, sketch in self._sketches.items():
            total = sketch.total(number)
            if total is not None:
                found[key] = total
        return found

    def add(self, uses: ParameterUses, pullbacks: Sequence[PullBack], sample: bool) -> None:
        """Add what one segment contributes.

        Args:
            uses: how parameters enter the segment.
            pullbacks: one or several.
            sample: whether it is a sample's, with variances of its own.
        """
        step = -1
        if sample:
            step, self._samples = self._samples, self._samples + 1
        if self.particles < 2 or not uses.parameters:
            return
        if uses.unsupported:
            if sample:
                self._keep_variances(uses, pullbacks, step)
            self._add_one_by_one(uses, pullbacks)
            return
        if sample and not self._all_small(uses):
            self._keep_variances(uses, pullbacks, step)
            step = -1  # no need to find them another time
        plan = uses.plan
        parts = uses._contributions([pullback.answers for pullback in pullbacks])
        through = set(plan.composite_entries)
        for number, entries in plan.plain:
            for k in entries:
                found = parts[k]
                if found is None:
                    continue
                found = self._as_they_lie(uses, k, found)
                if found is None:
                    through.add(k)
                else:
                    self._add_plain(uses.parameters[number], pullbacks, found, step)
        self._apart |= {id(uses.parameters[number]) for number, _ in plan.apart}
        if through:
            self._add_through(uses, pullbacks, parts, through)

    def variances_by_sample(self) -> dict[str, Tensor]:
        r"""Return :math:`\sum_i |g_{it} - \bar g_t|^2` of samples, by pull-back, in float64.

        In the order in which they were added. Pull-backs without samples are left out.
        """
        self._finish_small()
        found = {}
        for name, by_sample in self._by_sample.items():
            values = torch.zeros(self._samples, dtype=torch.float64)
            values[list(by_sample)] = torch.stack([*by_sample.values()]).double().cpu()
            found[name] = values
        return found

    def squares(self) -> list[Tensor]:
        r"""Return :math:`\sum_i |g_i - \bar g|^2` for each estimator, float64 scalars."""
        totals = [self.totals(number) for number in range(self.estimators)]
        found = [self._squares_apart(own) for own in totals]
        for key, sketch in self._sketches.items():
            parts = sketch.squares([own.get(key) for own in totals])
            found = [x + y.to(x.device) for x, y in zip(found, parts, strict=True)]
        return found

    def difference(self, first: int, second: int) -> dict[int, Tensor]:
        """Return one estimator's gradient less another's, flat, by ``id`` of the parameter."""
        one, other = self.totals(first), self.totals(second)
        found = {key: less(one.get(key), other.get(key)) for key in {**one, **other}}
        return {key: value for key, value in found.items() if value is not None}

    def squares_of_difference(self, first: int, second: int) -> Tensor:
        r"""Return :math:`\sum_i |d_i - \bar d|^2` of :meth:`difference`, a float64 scalar."""
        totals = self.difference(first, second)
        found = self._squares_apart(totals)
        for key, sketch in self._sketches.items():
            part = sketch.squares_of_difference(first, second, totals.get(key))
            found = found + part.to(found.device)
        return found

    def not_finite(self) -> list[int]:
        """Return, for each estimator, how many particles have a gradient that is not finite."""
        self._finish_small()
        wrong = [torch.zeros(self.particles, dtype=torch.bool) for _ in range(self.estimators)]
        for sketch in self._sketches.values():
            for number, found in enumerate(sketch.not_finite()):
                if found is not None:
                    wrong[number] = wrong[number] | found.cpu()
        return [int(rows.sum()) for rows in wrong]

    # -- inner -------------------------------------------------------------------------------

    def _squares_apart(self, totals: Mapping[int, Tensor]) -> Tensor:
        """Return the squares at parameters of which each particle has elements of its own."""
        found = torch.zeros((), dtype=torch.float64)
        for key in self._apart - set(self._sketches):
            if key in totals:  # the squares are those of the total
                square = totals[key].double().square().sum() * (1 - 1 / self.particles)
                found = found + square.to(found.device)
        return found

    def _as_they_lie(
        self, uses: ParameterUses, entry: int, found: list[Contribution]
    ) -> list[Contribution] | None:
        """Return contributions to an entry's operand as ones to its parameter.

        None where they have to be pulled through what is between.
        """
        turned = self._turned(uses, entry)
        if not turned:
            return None if turned is None else found
        matrices = [part for part in found if _is_matrix(part)]
        if len(matrices) < len(found):
            return None
        return [OuterProducts(part.right, part.left) for part in matrices]  # type: ignore[attr-defined]

    def _add_plain(
        self,
        parameter: Tensor,
        pullbacks: Sequence[PullBack],
        found: Sequence[Contribution],
        step: int,
    ) -> None:
        """Add what particles contribute to a parameter at one of its entries."""
        if self._is_small(parameter):
            self._wait(parameter, pullbacks, found, step)
            return
        shared = [(part, pullback.shares) for part, pullback in zip(found, pullbacks, strict=True)]
        self._sketch(parameter).add(shared)

    def _is_small(self, parameter: Tensor) -> bool:
        """Return whether rows of a parameter are put aside."""
        return parameter.numel() <= EXACT and parameter.numel() * self.particles <= BLOCK

    def _turned(self, uses: ParameterUses, entry: int) -> bool | None:
        """Return how the operand of an entry lies to its parameter; see :func:`_is_transposed`."""
        # Steps of a rollout have one plan in common.
        known = self._known.setdefault(id(uses.plan), (uses.plan, {}))[1]
        if entry not in known:
            known[entry] = _is_transposed(uses, uses.plan.entries[entry].operand)
        return known[entry]

    def _all_small(self, uses: ParameterUses) -> bool:
        """Return whether rows of all parameters are put aside."""
        plan = uses.plan
        if plan.composite or plan.apart:
            return False
        return all(
            self._is_small(uses.parameters[number])
            and all(self._turned(uses, k) is False for k in entries)
            for number, entries in plan.plain
        )

    def _keep_variances(
        self, uses: ParameterUses, pullbacks: Sequence[PullBack], step: int
    ) -> None:
        """Find the variances of one sample at once."""
        found = uses.variances([pullback.answers for pullback in pullbacks])
        for pullback, value in zip(pullbacks, found, strict=True):
            self._by_sample.setdefault(pullback.name, {})[step] = value

    def _wait(
        self,
        parameter: Tensor,
        pullbacks: Sequence[PullBack],
        found: Sequence[Contribution],
        step: int,
    ) -> None:
        """Put what particles contribute to a small parameter aside."""
        self._parameters[id(parameter)] = parameter
        self._told_by_rows.add(id(parameter))
        for part, pullback in zip(found, pullbacks, strict=True):
            takers = [number for number, _ in pullback.shares]
            small = self._small.setdefault((id(parameter), pullback.name, *takers), _Small())
            rows = part.dense(0, self.particles).flatten(1)
            if step >= 0 and small.steps and small.steps[-1] == step:
                small.rows[-1] = small.rows[-1] + rows
                continue
            small.rows.append(rows)
            small.steps.append(step)
            small.shares.append(pullback.shares)
            self._waiting += rows.numel()
        if self._waiting > PORTION:
            self._finish_small()

    def _finish_small(self) -> None:
        """Add up what was put aside, all segments at once."""
        for (key, name, *_), small in self._small.items():
            rows = torch.stack(small.rows)  # [N, P, n]
            sketch = self._sketch(self._parameters[key])
            for place, (number, weight) in enumerate(small.shares[0]):
                if weight is None:
                    whole = rows.sum(0)
                else:
                    weights = torch.stack([shares[place][1] for shares in small.shares])  # type: ignore[misc]
                    # What has infinities has a weight of zero, which is to silence them.
                    silenced = rows.nan_to_num(0.0, 0.0, 0.0).flatten(1)
                    whole = (weights.to(rows.dtype) @ silenced).reshape(rows.shape[1:])
                sketch.add_rows(whole, [(number, None)], 0, self.particles)
            if small.steps[-1] >= 0:
                wide = rows.double()
                deviations = wide - wide.mean(1, keepdim=True)
                squares = deviations.square().sum((1, 2))
                kept = self._by_sample.setdefault(name, {})
                for step, value in zip(small.steps, squares.unbind(), strict=True):
                    kept[step] = kept[step] + value if step in kept else value
        self._small, self._waiting = {}, 0

    def _sketch(self, parameter: Tensor) -> ParameterSketch:
        key = id(parameter)
        if key not in self._sketches:
            self._sketches[key] = ParameterSketch(
                self.estimators, self.particles, self.copies, self.signs
            )
        return self._sketches[key]

    def _add_through(
        self,
        uses: ParameterUses,
        pullbacks: Sequence[PullBack],
        parts: Sequence[list[Contribution] | None],
        through: set[int],
    ) -> None:
        """Pull contributions through the operations before their entries."""
        by_operand: dict[Place, list[list[Contribution]]] = {}
        for k in sorted(through):
            part = parts[k]
            if part is not None:
                by_operand.setdefault(uses.plan.entries[k].operand, []).append(part)
        plain = {number for number, entries in uses.plan.plain if set(entries) & through}
        parameters = [uses.parameters[k] for k in sorted({*uses.plan.composite, *plain})]
        each = sum(p.numel() for p in parameters)
        each += sum(use[0].size() for found in by_operand.values() for use in found)
        for start, stop in portions(self.particles, each * len(pullbacks)):
            for k, pullback in enumerate(pullbacks):
                operands = {
                    operand: sum_dense([use[k] for use in found], start, stop)
                    for operand, found in by_operand.items()
                }
                gradients = uses._pull_through(operands, parameters)
                self._add_rows(pullback, parameters, gradients, start)

    def _add_one_by_one(self, uses: ParameterUses, pullbacks: Sequence[PullBack]) -> None:
        """Pull each particle's cotangent back on its own."""
        warn_one_by_one(uses.unsupported or "")
        for pullback in pullbacks:
            answers = pullback.answers
            pairs = [
                (o, c)
                for o, c in zip(answers.outputs, answers.cotangents, strict=True)
                if o.requires_grad
            ]
            if not pairs:
                continue
            outputs, cotangents = [o for o, _ in pairs], [c for _, c in pairs]
            for limits in one_by_one_portions(cotangents, uses.parameters, self.particles, 1):
                rows = one_by_one(outputs, cotangents, uses.parameters, limits)
                self._add_rows(pullback, uses.parameters, rows, limits[0])

    def _add_rows(
        self,
        pullback: PullBack,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        start: int,
    ) -> None:
        for parameter, rows in zip(parameters, gradients, strict=True):
            if rows is not None:
                stop = start + rows.shape[0]
                self._sketch(parameter).add_rows(rows, pullback.shares, start, stop)


def _is_matrix(part: Contribution) -> bool:
    return isinstance(part, OuterProducts) and part.matrix[0] == 1


def _is_transposed(uses: ParameterUses, place: Place) -> bool | None:
    """Return whether an operand is its parameter's transpose; None if it is anything else."""
    operations = uses.graph.operations
    shapes = [operations[place[0]].shapes[place[1]]]
    transposes = 0
    while (operation := operations[place[0]]).key != LEAF:
        following = operation.operands[0]
        if following is None or (operation.key not in SAME_ORDER and not _transposes(operation)):
            return None
        transposes += operation.key not in SAME_ORDER
        place = following
        shapes.append(operations[place[0]].shapes[place[1]])
    if transposes and any(sorted(shape) != sorted(shapes[0]) for shape in shapes):
        return None  # what is reshaped between is in another order
    return transposes % 2 == 1


def _transposes(operation: Operation) -> bool:
    """Return whether an operation exchanges the two axes of a matrix."""
    if len(operation.shapes[0]) != 2:
        return False
    if operation.key == "TBackward0":
        return True
    if operation.key in ("TransposeBackward0", "TransposeBackward1"):
        return sorted(axis % 2 for axis in operation.settings) == [0, 1]
    axes = operation.settings[0] if operation.key == "PermuteBackward0" else ()
    return tuple(axis % 2 for axis in axes) == (1, 0)
