r"""What particles contribute to a gradient, kept small, and sums of squares of contributions.

P particles, T positions (of a sequence, an image, or several uses of one layer), G groups. K sets
of contributions :math:`g^k_i` come from K cotangents of one graph; their *squares* are
:math:`\sum_i |g^k_i|^2`, a list of K float64 scalars.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_proppo.per_particle.layouts import Shape, count

# Numbers that one portion of the particles may take; 32 MiB in float64.
PORTION = 1 << 22
# Numbers that stay in a processor's cache while they are centred and squared; 512 KiB in float64.
BLOCK = 1 << 16


def portions(particles: int, each: int) -> Iterator[tuple[int, int]]:
    """Cut the particles into portions, ``each`` numbers for each particle."""
    size = max(1, PORTION // max(each, 1))
    for start in range(0, particles, size):
        yield start, min(start + size, particles)


class Contribution(ABC):
    """What each particle contributes to the gradient of one operand."""

    @property
    @abstractmethod
    def particles(self) -> int:
        """Return P."""

    @abstractmethod
    def dense(self, start: int, stop: int) -> Tensor:
        """Return the contributions of some particles, [p, ...] with the operand's elements."""

    @abstractmethod
    def elements(self) -> int:
        """Return how many elements the operand has."""

    @abstractmethod
    def size(self) -> int:
        """Return how many numbers it takes to form one particle's dense contribution."""


@dataclass(frozen=True)
class Dense(Contribution):
    """Contributions as they are, [P, n] with the operand's n elements."""

    rows: Tensor

    @property
    def particles(self) -> int:
        """Return P."""
        return self.rows.shape[0]

    def dense(self, start: int, stop: int) -> Tensor:
        """Return the contributions of some particles, [p, n]."""
        return self.rows if stop - start == len(self.rows) else self.rows[start:stop]

    def elements(self) -> int:
        """Return n."""
        return self.rows.shape[1]

    def size(self) -> int:
        """Return n."""
        return self.rows.shape[1]


class Windows:
    r"""What a convolution sees at each position, without a copy of it for all particles.

    Args:
        x: [P, N, C, \*spatial] with N images for each particle.
        kernel: sizes of the kernel; one for each spatial axis, as all that follows.
        stride: its steps.
        padding: zeros at both ends.
        dilation: distance between its elements.
        groups: G; C is divided among them.
        positions: where the kernel stands: sizes of the convolution's result.

    Attributes:
        shape: (P, G, T, C / G * kernel's elements), T over images and positions.
    """

    def __init__(
        self,
        x: Tensor,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        positions: Sequence[int],
    ) -> None:
        self.x = x
        self.how = tuple(
            tuple(sizes) for sizes in (kernel, stride, padding, dilation, [groups], positions)
        )
        particles, images, channels = x.shape[:3]
        self.shape = (
            particles,
            groups,
            images * count(positions),
            channels // groups * count(kernel),
        )

    def take(self, start: int, stop: int) -> Tensor:
        """Return the windows of some particles, [p, G, T, m]."""
        kernel, stride, padding, dilation, (groups,), positions = self.how
        x: Tensor = self.x[start:stop]
        rank = len(kernel)
        if any(padding):
            ends = [(size, size) for size in reversed(padding)]
            x = torch.nn.functional.pad(x, list(itertools.chain(*ends)))
        for k in range(rank):
            span = (kernel[k] - 1) * dilation[k] + 1
            x = x.unfold(3 + k, span, stride[k]).narrow(3 + k, 0, positions[k])
            x = x[..., :: dilation[k]]
        # [p, N, G, C / G, *positions, *kernel] to [p, G, N, *positions, C / G, *kernel]
        x = x.unflatten(2, (groups, -1))
        where = range(4, 4 + rank)
        x = x.permute(0, 2, 1, *where, 3, *(axis + rank for axis in where))
        return x.reshape(stop - start, *self.shape[1:])


Factor = Tensor | Windows


@dataclass(frozen=True)
class OuterProducts(Contribution):
    r"""Contributions :math:`g_i = \sum_t l_{it} r_{it}^T`, never formed where that is dearer.

    The squared norm of one is :math:`\sum_{tu} (l_{it} \cdot l_{iu}) (r_{it} \cdot r_{iu})`.

    Args:
        left: [P, m], [P, T, m], or [P, G, T, m] for G matrices [m, n] in one operand.
        right: [P, n], [P, T, n] or [P, G, T, n].
    """

    left: Factor
    right: Factor

    def __post_init__(self) -> None:
        # Four axes always: [P, G, T, m] and [P, G, T, n].
        for name in ("left", "right"):
            factor = getattr(self, name)
            if len(factor.shape) == 2:
                factor = factor[:, None, None]
            elif len(factor.shape) == 3:
                factor = factor[:, None]
            if len(factor.shape) != 4:
                raise ValueError(
                    f"{name} must be [P, m], [P, T, m] or [P, G, T, m]; got {list(factor.shape)}."
                )
            object.__setattr__(self, name, factor)
        if self.left.shape[:3] != self.right.shape[:3]:
            raise ValueError(
                "left and right must have the same particles, groups and positions; got "
                f"{list(self.left.shape)} and {list(self.right.shape)}."
            )

    @property
    def particles(self) -> int:
        """Return P."""
        return self.left.shape[0]

    @property
    def matrix(self) -> Shape:
        """Return (G, m, n)."""
        return (self.left.shape[1], self.left.shape[3], self.right.shape[3])

    def dense(self, start: int, stop: int) -> Tensor:
        """Return the contributions of some particles, [p, G, m, n]."""
        return take(self.left, start, stop).mT @ take(self.right, start, stop)

    def elements(self) -> int:
        """Return G * m * n."""
        return count(self.matrix)

    def size(self) -> int:
        """Return how many numbers it takes to form one particle's dense contribution."""
        groups, m, n = self.matrix
        return groups * (m * n + self.left.shape[2] * (m + n))


@dataclass(frozen=True)
class EmbeddingRows(Contribution):
    r"""Contributions :math:`g_i = \sum_t e_{k_{it}} r_{it}^T`, rows of a table.

    Args:
        indices: k, [P, T], the rows of the table that were looked up.
        values: r, [P, T, D], the cotangents of what was found.
        rows: how many rows the table has.
    """

    indices: Tensor
    values: Tensor
    rows: int

    @property
    def particles(self) -> int:
        """Return P."""
        return self.indices.shape[0]

    def dense(self, start: int, stop: int) -> Tensor:
        """Return the contributions of some particles, [p, rows, D]."""
        values = self.values[start:stop]
        indices = self.indices[start:stop].unsqueeze(2).expand(values.shape)
        table = values.new_zeros((stop - start, self.rows, values.shape[2]))
        return table.scatter_add(1, indices, values)

    def elements(self) -> int:
        """Return rows * D."""
        return self.rows * self.values.shape[2]

    def size(self) -> int:
        """Return how many numbers it takes to form one particle's dense contribution."""
        return (self.rows + self.values.shape[1]) * self.values.shape[2]


def take(factor: Factor, start: int, stop: int) -> Tensor:
    """Return a factor's values for some particles."""
    return factor.take(start, stop) if isinstance(factor, Windows) else factor[start:stop]


def same(x: Any, y: Any) -> bool:
    """Return whether two factors are the same memory, seen the same way."""
    if x is y:
        return True
    if isinstance(x, Windows) or isinstance(y, Windows):
        windows = isinstance(x, Windows) and isinstance(y, Windows)
        return windows and x.how == y.how and same(x.x, y.x)
    return bool(
        x.data_ptr() == y.data_ptr()
        and x.shape == y.shape
        and x.stride() == y.stride()
        and x.dtype == y.dtype
    )


@dataclass
class _Once:
    """Remembers what a function made of factors, which several sets have in common."""

    function: Callable[[Tensor], Tensor]
    known: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        if id(x) not in self.known:
            self.known[id(x)] = self.function(x)
        return self.known[id(x)]


def squares(rows: Sequence[Tensor]) -> list[Tensor]:
    """Return the sums of squares of K tensors."""
    return [_square(own) for own in rows]


def centred_squares(sets: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the sums of squares of K sets of rows less their means over the particles.

    Args:
        sets: equally many tensors [P, n] each, n of its own, of the same shapes.
    """
    if sum(rows.numel() for rows in sets[0]) <= BLOCK:
        return [
            _centred_square(rows[0] if len(rows) == 1 else torch.cat([*rows], 1)) for rows in sets
        ]
    columns = max(1, BLOCK // sets[0][0].shape[0])
    blocks = [[block for own in rows for block in own.split(columns, 1)] for rows in sets]
    return add_up(
        [_centred_square(block) for block in of_sets] for of_sets in zip(*blocks, strict=True)
    )


def _centred_square(rows: Tensor) -> Tensor:
    rows = rows.to(torch.float64, copy=True)
    return _square(rows.sub_(rows.mean(0, keepdim=True)))


def _square(rows: Tensor) -> Tensor:
    # torch.dot needs no room for the elements' squares.
    flat = rows.reshape(-1)
    return torch.dot(flat, flat)


def add_up(parts: Iterable[list[Tensor]]) -> list[Tensor]:
    """Add lists of squares, set by set."""
    total: list[Tensor] = []
    for part in parts:
        total = [x + y for x, y in zip(total, part, strict=True)] if total else part
    return total


def _distinct(factors: Sequence[list[Any]]) -> list[list[Any]]:
    """Replace a set's factors by the first set's where they are the same."""
    first = factors[0]
    return [
        first if all(same(x, y) for x, y in zip(first, own, strict=True)) else own
        for own in factors
    ]


def _positions_together(factors: Sequence[list[Factor]], start: int, stop: int) -> list[Tensor]:
    """Take some particles of each set, all uses side by side along T, in float64."""
    done: dict[int, Tensor] = {}
    for own in factors:
        if id(own) not in done:
            taken = [take(factor, start, stop) for factor in own]
            whole = taken[0] if len(taken) == 1 else torch.cat(taken, dim=2)
            done[id(own)] = whole.double()
    return [done[id(own)] for own in factors]


def outer_squares(sets: Sequence[Sequence[OuterProducts]]) -> list[Tensor]:
    """Return the squares of sums of outer products, the cheaper way.

    Args:
        sets: for each cotangent, the uses of one operand: equally many, of one ``matrix``.
    """
    groups, m, n = sets[0][0].matrix
    positions = sum(part.left.shape[2] for part in sets[0])
    by_position = positions == 1 or positions * (m + n) <= m * n
    each = groups * (positions * (m + n) + (2 * positions**2 if by_position else m * n))
    lefts = _distinct([[part.left for part in parts] for parts in sets])
    rights = _distinct([[part.right for part in parts] for parts in sets])

    def of_portion(start: int, stop: int) -> list[Tensor]:
        left = _positions_together(lefts, start, stop)
        right = _positions_together(rights, start, stop)
        if not by_position:
            return squares([x.mT @ y for x, y in zip(left, right, strict=True)])
        of_left, of_right = (
            _Once(_row_squares if positions == 1 else _position_products) for _ in range(2)
        )
        return [(of_left(x) * of_right(y)).sum() for x, y in zip(left, right, strict=True)]

    limits = portions(sets[0][0].particles, each * len(sets))
    return add_up(of_portion(*limit) for limit in limits)


def _row_squares(x: Tensor) -> Tensor:
    return (x * x).sum(-1)


def _position_products(x: Tensor) -> Tensor:
    return x @ x.mT


def row_squares(sets: Sequence[Sequence[EmbeddingRows]]) -> list[Tensor]:
    """Return the squares of sums of a table's rows; see :func:`outer_squares`."""
    positions = sum(part.indices.shape[1] for part in sets[0])
    size = sets[0][0].values.shape[2]
    if positions**2 > sets[0][0].rows * size:
        return dense_squares(sets)
    indices = _distinct([[part.indices for part in parts] for parts in sets])

    def of_portion(start: int, stop: int) -> list[Tensor]:
        values = [
            torch.cat([part.values[start:stop] for part in parts], 1).double() for parts in sets
        ]
        together = {id(own): torch.cat([k[start:stop] for k in own], 1) for own in indices}
        equal = _Once(lambda found: found.unsqueeze(2) == found.unsqueeze(1))
        return [
            (equal(together[id(own)]) * (x @ x.mT)).sum()
            for own, x in zip(indices, values, strict=True)
        ]

    limits = portions(sets[0][0].particles, len(sets) * positions * (2 * positions + size))
    return add_up(of_portion(*limit) for limit in limits)


def dense_squares(sets: Sequence[Sequence[Contribution]]) -> list[Tensor]:
    """Return the squares of sums of any contributions, formed portion by portion."""

    def of_portion(start: int, stop: int) -> list[Tensor]:
        return squares([sum_dense(parts, start, stop).double() for parts in sets])

    each = sum(part.size() for parts in sets for part in parts)
    return add_up(of_portion(*limit) for limit in portions(sets[0][0].particles, each))


def sum_dense(parts: Sequence[Contribution], start: int, stop: int) -> Tensor:
    """Return the sum of contributions to one operand for some particles, [p, elements]."""
    total: Tensor | None = None
    for part in parts:
        rows = part.dense(start, stop)
        rows = rows if rows.dim() == 2 else rows.flatten(1)
        total = rows if total is None else total + rows
    if total is None:
        raise ValueError("there must be at least one contribution.")
    return total


def squares_of_sums(sets: Sequence[Sequence[Contribution]]) -> list[Tensor]:
    """Return the squares of sums of contributions to one operand, the cheapest way."""
    size = len(sets[0])
    outer = [[part for part in parts if isinstance(part, OuterProducts)] for parts in sets]
    if len(outer[0]) == size and len({part.matrix for part in outer[0]}) == 1:
        return outer_squares(outer)
    rows = [[part for part in parts if isinstance(part, EmbeddingRows)] for parts in sets]
    return row_squares(rows) if len(rows[0]) == size else dense_squares(sets)
