"""What needs no rule: pulling cotangents of single particles back through anything."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from lightning_proppo.engine.graph import hooks_muted
from lightning_proppo.per_particle.contributions import portions
from lightning_proppo.per_particle.layouts import Layout, particles_first

_warned: set[str] = set()


def warn_one_by_one(operation: str) -> None:
    """Say, once for each operation, that there is no rule for it."""
    if operation not in _warned:
        _warned.add(operation)
        warnings.warn(
            f"there is no rule for per-particle gradients of parameters through {operation}, so "
            "total propagation pulls each particle's gradient back on its own: exact, but slow. "
            "Add a rule with lightning_proppo.per_particle_rule, or pass ivw_target='node' or "
            "expanded parameters for a faster target.",
            stacklevel=2,
        )


def batched_products(
    outputs: Sequence[Any], cotangents: Sequence[Tensor], inputs: Sequence[Any]
) -> list[Tensor | None]:
    """Return vector-Jacobian products for several cotangents, [N, ...] each, at once."""
    with hooks_muted([leaf for leaf in inputs if isinstance(leaf, Tensor)]):
        try:
            return list(
                torch.autograd.grad(
                    outputs,
                    inputs,
                    cotangents,
                    retain_graph=True,
                    allow_unused=True,
                    is_grads_batched=True,
                )
            )
        except RuntimeError:  # an operation (a custom autograd.Function, say) cannot be batched
            each = [
                torch.autograd.grad(outputs, inputs, rows, retain_graph=True, allow_unused=True)
                for rows in zip(*cotangents, strict=True)
            ]
    return [None if found[0] is None else _stacked(found) for found in zip(*each, strict=True)]


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    return torch.stack([row if row.layout == torch.strided else row.to_dense() for row in rows])


def one_by_one(
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    parameters: Sequence[Tensor],
    limits: tuple[int, int],
) -> list[Tensor | None]:
    """Pull the cotangents of particles start to stop back, each on its own.

    Returns:
        For each parameter [stop - start, ...], or None.
    """
    start, stop = limits
    one_hot = []
    for cotangent in cotangents:
        alone = cotangent.new_zeros((stop - start, *cotangent.shape))
        rows = torch.arange(stop - start, device=cotangent.device)
        alone[rows, rows + start] = cotangent[start:stop]
        one_hot.append(alone)
    return batched_products(outputs, one_hot, parameters)


def one_by_one_portions(
    cotangents: Sequence[Tensor], parameters: Sequence[Tensor], particles: int, sets: int
) -> Iterator[tuple[int, int]]:
    """Cut the particles into portions for :func:`one_by_one`."""
    each = sum(c.numel() for c in cotangents) + sum(p.numel() for p in parameters)
    return portions(particles, sets * each)


def rows_hold(
    outputs: Sequence[Tensor], places: Sequence[tuple[GradientEdge, Layout]], particles: int
) -> bool:
    """Test whether each particle's cotangent arrives at its own row of each place alone.

    Any two particles are told apart by a binary digit of their numbers, so for each digit those
    with it, and those without it, are given cotangents, and the others' rows must get nothing.
    """
    device = outputs[0].device
    numbers = torch.arange(particles, device=device)
    digits = max(1, (particles - 1).bit_length())
    having = (numbers.unsqueeze(0) >> torch.arange(digits, device=device).unsqueeze(1)) & 1
    chosen = torch.cat([having, 1 - having]).bool()  # [tests, P]
    cotangents = []
    for output in outputs:
        # Without a pattern, and the random generators left alone.
        values = torch.sin(7e2 * torch.arange(1, output.numel() + 1, dtype=torch.float64))
        values = values.reshape(output.shape).to(output)
        mask = chosen.reshape(*chosen.shape, *[1] * (output.dim() - 1))
        cotangents.append(torch.where(mask, values, 0.0))
    answers = batched_products(outputs, cotangents, [edge for edge, _ in places])
    leaks = torch.zeros((), dtype=torch.bool, device=device)
    for answer, (_, layout) in zip(answers, places, strict=True):
        if answer is not None:
            moved = Layout(layout.axis + 1, layout.inner)
            rows = particles_first(answer, moved, particles)  # [P, tests, ...]
            arrived = (rows != 0).flatten(2).any(2)
            leaks = leaks | (arrived & ~chosen.T).any()
    return not bool(leaks)
