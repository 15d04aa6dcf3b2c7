"""Where an operation's operands hold the particles, given where its result does.

Each function is a row rule: it takes a :class:`~.registry.Step` and returns the operand's layout,
or a verdict.
"""

from __future__ import annotations

from typing import Any

from lightning_proppo.per_particle.layouts import Layout, layout_at, stride_of
from lightning_proppo.per_particle.registry import RowRule, Step, Verdict

SHARED, MIXED, UNKNOWN = Verdict.SHARED, Verdict.MIXED, Verdict.UNKNOWN


def elementwise(step: Step) -> Layout | Verdict:
    """Operands are broadcast to the result."""
    axis = step.layout.axis - (len(step.result) - len(step.operand))
    size = step.result[step.layout.axis]
    if axis < 0 or (step.operand[axis] == 1 and size != 1):
        return SHARED
    return Layout(axis, step.layout.inner) if step.operand[axis] == size else UNKNOWN


def reshaped(step: Step) -> Layout | Verdict:
    """The same elements in the same order."""
    found = layout_at(stride_of(step.layout, step.result), step.operand, step.particles)
    return UNKNOWN if found is None else found


def transposed(step: Step) -> Layout | Verdict:
    """Two axes change places; settings: both, or nothing for the two of a matrix."""
    pair = [axis % len(step.operand) for axis in (step.settings or (0, len(step.operand) - 1))]
    axis, inner = step.layout
    return Layout(pair[1 - pair.index(axis)] if axis in pair else axis, inner)


def permuted(step: Step) -> Layout | Verdict:
    """Axis k of the result is the operand's axis ``dims[k]``; setting: dims."""
    axis, inner = step.layout
    return Layout(step.settings[0][axis] % len(step.operand), inner)


def _axes(setting: Any, rank: int) -> set[int]:
    axes = setting if isinstance(setting, tuple) else (setting,)
    return {axis % rank for axis in axes} or set(range(rank))


def along(step: Step) -> Layout | Verdict:
    """The operation runs along some axes, which keep their size, become one, or go; setting: dim.

    A result of equal rank keeps its axes' places.
    """
    rank = len(step.operand)
    if rank == 0 or step.settings[0] is None:
        return UNKNOWN
    axes = _axes(step.settings[0], rank)
    axis, inner = step.layout
    if len(step.result) < rank:
        axis = [k for k in range(rank) if k not in axes][axis]
    if axis in axes:
        return MIXED
    same_size = step.operand[axis] == step.result[step.layout.axis]
    return Layout(axis, inner) if same_size else UNKNOWN


def sliced(step: Step) -> Layout | Verdict:
    """As :func:`along`, but for a slice of all: ``x[:, 0]`` begins with one in older PyTorch."""
    return step.layout if step.result == step.operand else along(step)


def stacked(step: Step) -> Layout | Verdict:
    """The result has an axis more; setting: dim."""
    new = step.settings[0] % len(step.result)
    axis, inner = step.layout
    return MIXED if axis == new else Layout(axis - (new < axis), inner)


def indexed(step: Step) -> Layout | Verdict:
    """Some axes are looked up; setting: for each :class:`~.indices.LookUp`, or None."""
    (look_ups,) = step.settings
    looked_up = [k for k, look_up in enumerate(look_ups) if look_up is not None]
    if not looked_up or any(look_ups[k].mask for k in looked_up):
        return UNKNOWN
    gained = max(len(look_ups[k].shape) for k in looked_up)
    kept = [k for k in range(len(step.operand)) if k not in looked_up]
    # The axes of the indices stand where those that are looked up stood, if these were neighbours.
    apart = looked_up[-1] - looked_up[0] >= len(looked_up)
    start = 0 if apart else looked_up[0]
    axis, inner = step.layout
    if axis < start:
        return Layout(kept[axis], inner)
    if axis >= start + gained:
        return Layout(kept[axis - gained], inner)
    for k in looked_up:
        shape, counting, _ = look_ups[k]
        # Counted along this axis of the result, element i is that of element i of the operand.
        if counting is not None and gained - len(shape) + counting == axis - start:
            return Layout(k, inner)
    return SHARED if looked_up == [0] else UNKNOWN


def padded(step: Step) -> Layout | Verdict:
    """Constants are put around the last axes; setting: pad."""
    first = len(step.result) - len(step.settings[0]) // 2
    return step.layout if step.layout.axis < first else UNKNOWN


def repeated(step: Step) -> Layout | Verdict:
    """Copies are put side by side, which leaves an element's place modulo the size alone."""
    axis = step.layout.axis - (len(step.result) - len(step.operand))
    if axis < 0 or step.operand[axis] == 1:
        return SHARED
    return Layout(axis, step.layout.inner)


def independent_but(trailing: int) -> RowRule:
    """All axes but the last ``trailing`` are independent problems."""

    def rule(step: Step) -> Layout | Verdict:
        axis = step.layout.axis
        if axis >= len(step.result) - trailing:
            return MIXED
        same_rank = len(step.operand) == len(step.result)
        kept = same_rank and step.operand[axis] == step.result[axis]
        return step.layout if kept else UNKNOWN

    return rule


def matrix_product(step: Step) -> Layout | Verdict:
    """Slot 0 [..., R, m] @ slot 1 [..., m, n], or [R, m] @ [m]."""
    axis, rows = step.layout.axis, max(len(step.result) - 2, 0)
    if axis < rows:
        return step.layout
    return step.layout if step.slot == axis - rows else SHARED


def triangular_solution(step: Step) -> Layout | Verdict:
    """Of A X = B, or X A = B: slot 0 A, slot 1 B, both with batch axes; setting: whether A is left.

    Columns of B (rows, where A is on the right) do not meet. One A on the left may be shared.
    """
    rank = len(step.result)
    axis = step.layout.axis
    if axis < rank - 2:
        return elementwise(step)
    if axis != (rank - 1 if step.settings[0] else rank - 2):
        return MIXED
    if step.slot == 0:
        one = step.settings[0] and all(size == 1 for size in step.operand[:-2])
        return SHARED if one else UNKNOWN
    return step.layout if len(step.operand) == rank else UNKNOWN


def added_matrix_product(step: Step) -> Layout | Verdict:
    """Slot 0 + slot 1 @ slot 2."""
    return (
        elementwise(step) if step.slot == 0 else matrix_product(step._replace(slot=step.slot - 1))
    )


def layer_norm(step: Step) -> Layout | Verdict:
    """Input, weight, bias; setting: the shape of the last axes."""
    if step.layout.axis >= len(step.result) - len(step.settings[0]):
        return MIXED
    return step.layout if step.slot == 0 else SHARED


def batch_norm(step: Step) -> Layout | Verdict:
    """Input, weight, bias; setting: whether batch statistics are used, which couple the rows."""
    if step.layout.axis != 0 or (step.slot == 0 and step.settings[0]):
        return MIXED
    return step.layout if step.slot == 0 else SHARED


def images(step: Step) -> Layout | Verdict:
    """Input [N, ...], then what all share: weight, bias."""
    if step.layout.axis != 0:
        return MIXED
    return step.layout if step.slot == 0 else SHARED


def table(step: Step) -> Layout | Verdict:
    """A table whose rows [D] are the result's last axis; settings: what no rule knows, or False."""
    known = not any(step.settings) and step.layout.axis < len(step.result) - 1
    return SHARED if known else UNKNOWN
