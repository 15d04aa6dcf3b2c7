r"""Per-particle gradients of a whole rollout, kept as sketches small enough to be added up.

P particles; :math:`g_i` is what particle i contributes to a parameter's gradient over all nodes.
Norms of sums are not sums of norms, so :math:`\sum_i |g_i - \bar g|^2` needs the sums themselves,
P copies of the parameter. A *sketch* needs much less: with random signs :math:`r_i` (independent
for each particle), :math:`E |g_i r_i|^2 = |g_i|^2` where the matrix :math:`g_i` [m, n] is
multiplied from its longer side. For a linear layer :math:`g_i = \sum_t b_{it} a_{it}^T`, so that
:math:`g_i r_i = \sum_t b_{it} (a_{it} \cdot r_i)` costs :math:`P (m + n)` a use, less than the
layer does. What the signs add to the error of the sum over particles is of the order of what P
particles leave in it anyway, as each has signs of its own; K sketches divide it by K. What is
small, or comes row by row in any case (biases), is kept as it is, without any such error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_proppo.per_particle.contributions import (
    PORTION,
    Contribution,
    Dense,
    EmbeddingRows,
    Factor,
    OuterProducts,
    portions,
    same,
    take,
)

# Parameters of at most so many elements are kept as they are.
EXACT = 32

# Estimators, by number, that take a share of a pull-back; None for all of it.
Shares = Sequence[tuple[int, Tensor | None]]


@dataclass
class Signs:
    """Random signs, drawn from a generator of their own.

    Drawing from the global one would change the noise of whatever comes after.

    Args:
        seed: of the generator.
    """

    seed: int = 0
    _generators: dict[torch.device, torch.Generator] = field(default_factory=dict)

    def draw(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return signs of a shape, on the device and of the dtype of ``like``."""
        device = like.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self.seed)
        bits = torch.randint(0, 2, tuple(shape), generator=self._generators[device], device=device)
        return (2 * bits - 1).to(like.dtype)


class ParameterSketch:
    r"""The per-particle gradients of one parameter, for several estimators at once.

    Args:
        estimators: how many.
        particles: P.
        copies: K, how many sketches are kept; their squares are averaged.
        signs: where random signs come from.
    """

    def __init__(self, estimators: int, particles: int, copies: int, signs: Signs) -> None:
        self.particles = particles
        self.copies = copies
        self.signs = signs
        self.exact = False
        self._matrix: tuple[int, int, int] | None = None  # G, m, n
        self._multiplies = ""  # which side of the matrix: "left", "right"; or "table"
        self._random: Tensor | None = None
        self._sums: list[Tensor | None] = [None] * estimators

    def add(self, parts: Sequence[tuple[Contribution, Shares]]) -> None:
        """Add one use of the parameter.

        Args:
            parts: what the particles contribute, of the parameter's elements in their order, by
                several pull-backs, and what the estimators take of each.
        """
        known: list[tuple[Factor, Tensor]] = []  # products of factors that pull-backs share
        for part, shares in parts:
            if self._matrix is None:
                self._choose(part)
            outer = isinstance(part, OuterProducts) and part.matrix == self._matrix
            if outer and not self.exact and self._multiplies != "table":
                self._add_outer(part, shares, known)  # type: ignore[arg-type]
            elif isinstance(part, EmbeddingRows) and self._multiplies == "table":
                signs = self._signs(part.values)[part.indices]
                self._add((part.values.mT @ signs).unsqueeze(1), shares)
            else:
                for start, stop in portions(self.particles, part.size()):
                    self.add_rows(part.dense(start, stop), shares, start, stop)

    def add_rows(self, rows: Tensor, shares: Shares, start: int, stop: int) -> None:
        """Add gradients [p, ...] of the particles from ``start`` to ``stop``."""
        if self._matrix is None:
            self._choose(Dense(rows.flatten(1)))
        self._add(self._multiplied(rows, start, stop), shares, start, stop)

    def squares(self, totals: Sequence[Tensor | None]) -> list[Tensor]:
        r"""Return :math:`\sum_i |g_i - \bar g|^2` for each estimator, float64 scalars.

        Args:
            totals: :math:`\sum_i g_i`, of the parameter's elements; None for zero.
        """
        return [self._squares(*pair) for pair in zip(self._sums, totals, strict=True)]

    def squares_of_difference(self, first: int, second: int, total: Tensor | None) -> Tensor:
        r"""Return :math:`\sum_i |d_i - \bar d|^2`, where d are two estimators' differences.

        Args:
            first: its number.
            second: that of the one that is subtracted.
            total: :math:`\sum_i d_i`, of the parameter's elements; None for zero.
        """
        return self._squares(less(self._sums[first], self._sums[second]), total)

    def total(self, number: int) -> Tensor | None:
        """Return an estimator's gradient, flat, of a parameter that is kept as it is; else None."""
        sums = self._sums[number]
        return sums.sum(0) if self.exact and sums is not None else None

    def not_finite(self) -> list[Tensor | None]:
        """Return, for each estimator, which particles have values that are not finite: [P]."""
        return [None if sums is None else ~sums.flatten(1).isfinite().all(1) for sums in self._sums]

    # -- inner -------------------------------------------------------------------------------

    def _squares(self, sums: Tensor | None, total: Tensor | None) -> Tensor:
        if sums is None:
            return torch.zeros((), dtype=torch.float64)
        rows = sums.double()
        if total is not None:
            # Centred before it is squared: the spread may be small beside the mean.
            rows = rows - self._of_mean(total.detach().to(sums.dtype) / self.particles)
        square = rows.square().sum()
        return square if self.exact else square / self.copies

    def _choose(self, part: Contribution) -> None:
        """Choose how to keep contributions, by the first one."""
        elements = part.elements()
        like = part.dense(0, 1)
        rows = isinstance(part, Dense) and elements * self.particles <= PORTION
        if elements <= EXACT or rows:
            self._matrix, self.exact = (1, 1, elements), True
            return
        if isinstance(part, EmbeddingRows):
            self._matrix, self._multiplies = (1, part.rows, part.values.shape[2]), "table"
            self._random = self.signs.draw((part.rows, self.copies), like)
            return
        if isinstance(part, OuterProducts):
            groups, m, n = part.matrix
        else:
            # Any matrix of so many elements will do; near a square it has the shortest sides.
            m = next(k for k in range(int(elements**0.5), 0, -1) if elements % k == 0)
            groups, n = 1, elements // m
        self._matrix = (groups, m, n)
        self._multiplies = "right" if n >= m else "left"
        self._random = self.signs.draw((self.particles, groups, max(m, n), self.copies), like)

    def _add(
        self, sketches: Tensor, shares: Shares, start: int = 0, stop: int | None = None
    ) -> None:
        """Add sketches to those of the estimators that take a share of them."""
        for number, weight in shares:
            sums = self._sum(number, sketches)[start:stop]
            if weight is None:
                sums += sketches
                continue
            value = _known(weight)
            if value is None:
                sums.addcmul_(_silenced(sketches), weight.to(sums.dtype))
            elif value:
                sums.add_(sketches, alpha=value)

    def _sum(self, number: int, like: Tensor) -> Tensor:
        """Return an estimator's sketches, [P, n] exact ones or [P, G, m, K]."""
        have = self._sums[number]
        if have is None:
            groups, m, n = self._matrix  # type: ignore[misc]
            kept = {"right": m, "left": n, "table": n}.get(self._multiplies, 0)
            shape = (n,) if self.exact else (groups, kept, self.copies)
            have = self._sums[number] = like.new_zeros((self.particles, *shape))
        return have

    def _signs(self, like: Tensor) -> Tensor:
        if self._random is None:
            raise ValueError("there are no signs where gradients are kept as they are.")
        if self._random.dtype != like.dtype:
            return self._random.to(like.dtype)
        return self._random

    def _add_outer(
        self, part: OuterProducts, shares: Shares, known: list[tuple[Factor, Tensor]]
    ) -> None:
        kept, multiplied = part.left, part.right
        if self._multiplies == "left":
            kept, multiplied = multiplied, kept
        limits = list(portions(self.particles, part.size()))
        scalars = next((found for factor, found in known if same(factor, multiplied)), None)
        if scalars is None:
            pieces = []
            for start, stop in limits:
                x = take(multiplied, start, stop)
                signs = self._signs(x)[start:stop]
                if x.shape[2] == signs.shape[3] == 1:  # many products of two small vectors
                    pieces.append((x * signs.mT).sum(3, keepdim=True))
                else:
                    pieces.append(x @ signs)
            scalars = pieces[0] if len(pieces) == 1 else torch.cat(pieces)  # [P, G, T, K]
            known.append((multiplied, scalars))
        if scalars.shape[2] == 1 and isinstance(kept, Tensor):
            column = kept.mT  # [P, G, m, 1], for [P, G, 1, K]
            for number, weight in shares:
                sums = self._sum(number, scalars)
                value = 1.0 if weight is None else _known(weight)
                if value is None:
                    weighted = _silenced(scalars) * weight.to(scalars.dtype)  # type: ignore[union-attr]
                    sums.addcmul_(_silenced(column), weighted)
                elif value:
                    sums.addcmul_(column, scalars, value=value)
            return
        for start, stop in limits:
            self._add(take(kept, start, stop).mT @ scalars[start:stop], shares, start, stop)

    def _of_mean(self, mean: Tensor) -> Tensor:
        """Return the sketches that all particles would have with the mean gradient [...]."""
        if self.exact or self._multiplies == "table":
            return self._multiplied(mean.unsqueeze(0), 0, self.particles)
        # As one product: a matrix with all particles' signs side by side.
        matrices = mean.reshape(self._matrix)  # type: ignore[arg-type]
        matrices = matrices if self._multiplies == "right" else matrices.mT
        signs = self._signs(mean).permute(1, 2, 0, 3).flatten(2)  # [G, n, P * K]
        found: Tensor = (matrices @ signs).unflatten(2, (self.particles, -1))
        return found.permute(2, 0, 1, 3)

    def _multiplied(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """Return the sketches of gradients [p, ...]."""
        if self.exact:
            return rows.reshape(rows.shape[0], -1)
        matrices = rows.reshape(rows.shape[0], *self._matrix)  # type: ignore[misc]
        signs = self._signs(rows)
        if self._multiplies == "table":
            return matrices.mT @ signs
        return (matrices if self._multiplies == "right" else matrices.mT) @ signs[start:stop]


def less(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the difference of two tensors, where None is zero."""
    if first is None or second is None:
        return first if second is None else -second
    return first - second


def _known(weight: Tensor) -> float | None:
    """Return a weight's value, where it need not be waited for."""
    return weight.item() if weight.device.type == "cpu" else None


def _silenced(x: Tensor) -> Tensor:
    """Return x without infinities: what has any has a weight of zero, which is to silence them."""
    return x.nan_to_num(0.0, 0.0, 0.0)
