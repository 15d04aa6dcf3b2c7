"""Parameter uses that several estimators ask about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from lightning_proppo.per_particle.contributions import (
    Contribution,
    Dense,
    EmbeddingRows,
    OuterProducts,
)
from lightning_proppo.per_particle.uses import Answers, ParameterUses


class RememberingUses(ParameterUses):
    """Parameter uses that compute what they are asked for again only once."""

    def __init__(self, uses: ParameterUses) -> None:
        super().__init__(uses.particles, uses.parameters, uses.graph, uses.plan, uses.unsupported)
        # By ``id`` of the edges' cotangents, which are kept too, so that no other takes their id.
        self._known_parts: dict[int, tuple[Any, list[Contribution | None]]] = {}
        self._known_variances: dict[int, tuple[Any, Tensor]] = {}
        self._edges: list[GradientEdge] | None = None

    @property
    def edges(self) -> list[GradientEdge]:
        """Return what :attr:`ParameterUses.edges` is."""
        if self._edges is None:
            self._edges = super().edges
        return self._edges

    def variances(self, sets: Sequence[Answers]) -> list[Tensor]:
        """Return what :meth:`ParameterUses.variances` does."""
        unknown = [answers for answers in sets if id(answers.edges) not in self._known_variances]
        if unknown:
            for answers, found in zip(unknown, super().variances(unknown), strict=True):
                self._known_variances[id(answers.edges)] = (answers.edges, found)
        return [self._known_variances[id(answers.edges)][1] for answers in sets]

    def _contributions(self, sets: Sequence[Answers]) -> list[list[Contribution] | None]:
        unknown = [answers for answers in sets if id(answers.edges) not in self._known_parts]
        if unknown:
            found = super()._contributions(unknown)
            for number, answers in enumerate(unknown):
                parts = [None if part is None else part[number] for part in found]
                self._known_parts[id(answers.edges)] = (answers.edges, parts)
        known = [self._known_parts[id(answers.edges)][1] for answers in sets]
        return [_filled(parts) for parts in zip(*known, strict=True)]


def _filled(parts: Sequence[Contribution | None]) -> list[Contribution] | None:
    """Return all parts, with nothing for what is missing; None where there is none."""
    some = next((part for part in parts if part is not None), None)
    if some is None:
        return None
    return [_zero(some) if part is None else part for part in parts]


def _zero(like: Contribution) -> Contribution:
    """Return contributions of nothing, in the kind of others."""
    if isinstance(like, OuterProducts) and isinstance(like.left, Tensor):
        return OuterProducts(torch.zeros_like(like.left), like.right)
    if isinstance(like, OuterProducts) and isinstance(like.right, Tensor):
        return OuterProducts(like.left, torch.zeros_like(like.right))
    if isinstance(like, EmbeddingRows):
        return EmbeddingRows(like.indices, torch.zeros_like(like.values), like.rows)
    rows = like.dense(0, like.particles)
    return Dense(torch.zeros_like(rows.flatten(1)))
