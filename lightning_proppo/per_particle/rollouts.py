r"""Per-particle gradients of whole rollouts: what particles contribute at all nodes, added up.

The variance of a node's gradient is a matter of that node alone (:class:`ParameterUses`); that of
the rollout's, :math:`\sum_i |\sum_t g_{it} - \bar g|^2`, is not the sum of those.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_proppo.per_particle.contributions import (
    Contribution,
    OuterProducts,
    portions,
    sum_dense,
)
from lightning_proppo.per_particle.fallback import one_by_one, one_by_one_portions, warn_one_by_one
from lightning_proppo.per_particle.plans import LEAF, Place
from lightning_proppo.per_particle.registry import Operation
from lightning_proppo.per_particle.sketches import ParameterSketch, Signs
from lightning_proppo.per_particle.uses import Answers, ParameterUses

_SAME_ORDER = (
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "UnsqueezeBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SqueezeBackward2",
    "AliasBackward0",
    "CloneBackward0",
    "ToCopyBackward0",
)


class RolloutGradients:
    r"""The per-particle gradients of a rollout by several estimators, as sketches.

    Args:
        estimators: how many.
        particles: P.
        copies: K, sketches of each parameter that is not small.
        signs: where random signs come from.

    Attributes:
        totals: for each estimator, the gradient by ``id`` of the parameter.
        parameters: the parameters, by ``id``.
    """

    def __init__(self, estimators: int, particles: int, copies: int, signs: Signs) -> None:
        self.estimators = estimators
        self.particles = particles
        self.copies = copies
        self.signs = signs
        self.totals: list[dict[int, Tensor]] = [{} for _ in range(estimators)]
        self.parameters: dict[int, Tensor] = {}
        self._sketches: dict[int, ParameterSketch] = {}
        self._apart: set[int] = set()

    def add(self, uses: ParameterUses, sets: Sequence[Answers | None]) -> None:
        """Add what one segment contributes.

        Args:
            uses: how parameters enter the segment.
            sets: one pull-back for each estimator; None for nothing.
        """
        for totals, answers in zip(self.totals, sets, strict=True):
            if answers is None:
                continue
            for parameter, total in zip(uses.parameters, answers.totals, strict=True):
                if total is not None:
                    self._add_total(totals, parameter, total)
        known = [number for number, answers in enumerate(sets) if answers is not None]
        given = [answers for answers in sets if answers is not None]
        if not given or self.particles < 2:
            return
        if uses.unsupported:
            self._add_one_by_one(uses, known, given)
            return
        parts = uses._contributions(given)
        through = set(uses.plan.composite_entries)
        for number, entries in uses.plan.plain:
            parameter = uses.parameters[number]
            for k in entries:
                found = parts[k]
                if found is None:
                    continue
                turned = _turned(uses, uses.plan.entries[k].operand)
                if turned:
                    turned = True if all(_is_matrix(part) for part in found) else None
                if turned is None:
                    through.add(k)
                    continue
                whole: list[Contribution | None] = [None] * self.estimators
                for place, part in zip(known, found, strict=True):
                    if turned and isinstance(part, OuterProducts):
                        part = OuterProducts(part.right, part.left)
                    whole[place] = part
                self._sketch(parameter).add(whole)
        self._apart |= {id(uses.parameters[number]) for number, _ in uses.plan.apart}
        if through:
            self._add_through(uses, known, parts, through)

    def squares(self) -> list[Tensor]:
        r"""Return :math:`\sum_i |g_i - \bar g|^2` for each estimator, float64 scalars."""
        found = [torch.zeros((), dtype=torch.float64) for _ in range(self.estimators)]
        for key, sketch in self._sketches.items():
            parts = sketch.squares([totals.get(key) for totals in self.totals])
            found = [x + y.to(x.device) for x, y in zip(found, parts, strict=True)]
        for key in self._apart - set(self._sketches):
            # Each particle has elements of its own, so the squares are those of the total.
            for number, totals in enumerate(self.totals):
                if key in totals:
                    square = totals[key].double().square().sum() * (1 - 1 / self.particles)
                    found[number] = found[number] + square.to(found[number].device)
        return found

    def not_finite(self) -> list[int]:
        """Return, for each estimator, how many particles have a gradient that is not finite."""
        wrong = [torch.zeros(self.particles, dtype=torch.bool) for _ in range(self.estimators)]
        for sketch in self._sketches.values():
            for number, found in enumerate(sketch.not_finite()):
                if found is not None:
                    wrong[number] = wrong[number] | found.cpu()
        return [int(rows.sum()) for rows in wrong]

    # -- inner -------------------------------------------------------------------------------

    def _add_total(self, totals: dict[int, Tensor], parameter: Tensor, total: Tensor) -> None:
        key = id(parameter)
        self.parameters[key] = parameter
        total = total.to_dense() if total.layout != torch.strided else total
        totals[key] = totals[key] + total if key in totals else total

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
        known: Sequence[int],
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
        for start, stop in portions(self.particles, each * len(known)):
            for k, place in enumerate(known):
                operands = {
                    operand: sum_dense([use[k] for use in found], start, stop)
                    for operand, found in by_operand.items()
                }
                self._add_rows(place, parameters, uses._pull_through(operands, parameters), start)

    def _add_one_by_one(
        self, uses: ParameterUses, known: Sequence[int], given: Sequence[Answers]
    ) -> None:
        """Pull each particle's cotangent back on its own."""
        warn_one_by_one(uses.unsupported or "")
        for place, answers in zip(known, given, strict=True):
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
                self._add_rows(place, uses.parameters, rows, limits[0])

    def _add_rows(
        self,
        place: int,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        start: int,
    ) -> None:
        for parameter, rows in zip(parameters, gradients, strict=True):
            if rows is not None:
                self._sketch(parameter).add_rows(place, rows, start, start + rows.shape[0])


def _is_matrix(part: Contribution) -> bool:
    return isinstance(part, OuterProducts) and part.matrix[0] == 1


def _turned(uses: ParameterUses, place: Place) -> bool | None:
    """Return whether an operand is its parameter's transpose; None if it is anything else."""
    operations = uses.graph.operations
    shapes = [operations[place[0]].shapes[place[1]]]
    transposes = 0
    while (operation := operations[place[0]]).key != LEAF:
        following = operation.operands[0]
        if following is None or (operation.key not in _SAME_ORDER and not _transposes(operation)):
            return None
        transposes += operation.key not in _SAME_ORDER
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
