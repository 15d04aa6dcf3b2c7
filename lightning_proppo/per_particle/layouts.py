"""Which axis of a tensor holds the particles, also where they share it with something else.

P particles. A linear layer on sequences [P, T, D] multiplies [P*T, D], one on [T, P, D] multiplies
[T*P, D], attention folds its heads into the axis of the particles: an axis of size
outer * P * inner, whose index k belongs to particle ``(k // inner) % P``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """Where a tensor holds its particles.

    Attributes:
        axis: the axis, of size outer * P * inner.
        inner: how many neighbours along it belong to the same particle.
    """

    axis: int
    inner: int = 1


LEADING = Layout(0)


def count(sizes: Sequence[int]) -> int:
    """Return the product of sizes."""
    product = 1
    for size in sizes:
        product *= size
    return product


def stride_of(layout: Layout, shape: Shape) -> int:
    """Return how far apart neighbouring particles are in a row-major tensor of that shape."""
    return layout.inner * count(shape[layout.axis + 1 :])


def layout_at(stride: int, shape: Shape, particles: int) -> Layout | None:
    """Return the layout with neighbouring particles ``stride`` apart, or None.

    A change of shape leaves the stride alone, so this finds the particles after one. There is none
    where they would lie across two axes.
    """
    trailing = 1
    for axis in reversed(range(len(shape))):
        inner, rest = divmod(stride, trailing)
        if rest == 0 and inner and shape[axis] and shape[axis] % (inner * particles) == 0:
            return Layout(axis, inner)
        trailing *= shape[axis]
        if trailing == 0 or trailing > stride:
            return None
    return None


def particles_first(x: Tensor, layout: Layout, particles: int) -> Tensor:
    """Give the particles an axis of their own, the first.

    Args:
        x: [..., outer * P * inner, ...].
        layout: where its particles are.
        particles: P.

    Returns:
        [P, ..., outer * inner, ...], with the other axes where they were (one further back).
    """
    axis, inner = layout
    size = x.shape[axis]
    if axis == 0 and size == particles:
        return x.unsqueeze(1)
    split: Tensor = x.unflatten(axis, (size // (particles * inner), particles, inner))
    return split.movedim(axis + 1, 0).flatten(axis + 1, axis + 2)


def sum_to_operand(gradient: Tensor, layout: Layout, operand: Shape, particles: int) -> Tensor:
    """Sum over the axes along which an operand was broadcast, but not over the particles.

    Args:
        gradient: of the shape of the operation's result.
        layout: where the result holds its particles; the operand has none.
        operand: the operand's shape.
        particles: P.

    Returns:
        [P, *operand].
    """
    direct = layout.axis == 0 and gradient.shape[0] == particles
    rows = gradient if direct else particles_first(gradient, layout, particles)
    # Against the axes of `rows` behind the first: the operand's last ones.
    sizes = operand[1:] if direct and len(operand) == gradient.dim() else operand
    missing = rows.dim() - 1 - len(sizes)
    axes = list(range(1, 1 + missing))
    for axis, size in enumerate(sizes, 1 + missing):
        if size == 1 and rows.shape[axis] != 1:
            axes.append(axis)
    return (rows.sum(axes) if axes else rows).reshape(particles, *operand)
