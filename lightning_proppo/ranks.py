"""Ranks whose particles make one batch, and the collectives that its statistics take.

N ranks of P particles each are to give the estimate of one process with N P particles. What one
rank alone does not know, e.g. the mean of all particles' costs, is summed or gathered here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Ranks:
    """The processes of the default process group; without one, or with ``size`` 1, this one alone.

    Attributes:
        size: N.
        rank: which of them this process is.
        gathered: how many numbers the last sample of a rollout has gathered; see
            :func:`~lightning_proppo.pooling.gather_in_step`.
    """

    size: int = 1
    rank: int = 0
    gathered: int = field(default=0, compare=False)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, detached, of the same shape.

        It takes one all-reduce: every rank has to call it.
        """
        # Not in place: the caller's numbers are its own.
        total = x.detach().clone(memory_format=torch.contiguous_format)
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def gather(self, x: Tensor) -> Tensor:
        """Return every rank's tensor, [N, ...], detached; they must be of one shape.

        It takes one all-gather: every rank has to call it.
        """
        own = x.detach().contiguous()
        if self.size == 1:
            return own.unsqueeze(0)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return torch.stack(found)


ALONE = Ranks()


def all_ranks() -> Ranks:
    """Return the ranks of the default process group; :data:`ALONE` if there is none."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    size = dist.get_world_size()
    return ALONE if size == 1 else Ranks(size, dist.get_rank())


_active: ContextVar[Ranks] = ContextVar("proppo_ranks", default=ALONE)


def active_ranks() -> Ranks:
    """Return the ranks whose particles make up the batch of the computation that is running."""
    return _active.get()


@contextlib.contextmanager
def activate_ranks(ranks: Ranks) -> Iterator[None]:
    """Let what runs inside compute its statistics over the particles of these ranks."""
    token = _active.set(ranks)
    try:
        yield
    finally:
        _active.reset(token)


def sum_gradients(tensors: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
    """Return tensors that all ranks have alike, whose gradient is the sum over the ranks.

    What every rank's particles were made from (a Gaussian fitted to all) acts on the costs of all
    ranks. It takes one all-reduce in the backward pass.
    """
    if ranks.size == 1:
        return list(tensors)
    return list(_SumGradients.apply(ranks, *tensors))  # type: ignore[no-untyped-call]  # PyTorch's


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        return tuple([tensor.view_as(tensor) for tensor in tensors])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return None, *sum_together(cotangents, ctx.ranks)


def sum_together(tensors: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
    """Return the sums of several tensors, of one dtype, over the ranks, in one all-reduce."""
    if ranks.size == 1:
        return list(tensors)
    total = ranks.sum(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    parts = total.split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
