"""What the ranks of one training have in common: made by the first, or averaged over all.

Each rank draws noise of its own, so whatever must be the same everywhere is made by one of them
and sent to the others. All ranks have to call these functions, in the same order. Without a
Trainer, and with one process, nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

Made = TypeVar("Made")


def made_by_first(trainer: Any, make: Callable[[], Made]) -> Made:
    """Return what the first rank makes; the others do not call ``make``.

    Args:
        trainer: the Trainer, or None.
        make: returns something that can be pickled. Its tensors should be on the CPU: they arrive
            on the device that they were sent from, which may be another rank's.
    """
    if trainer is None:
        return make()
    own = make() if trainer.is_global_zero else None
    made: Made = trainer.strategy.broadcast(own, src=0)
    return made


def mean_over_ranks(trainer: Any, value: Tensor) -> Tensor:
    """Return a tensor's mean over the ranks, the same to the bit on each of them."""
    if trainer is None or trainer.world_size == 1:
        return value
    mean: Tensor = trainer.strategy.reduce(value.clone(), reduce_op="mean")
    # A reduction may add in another order on each rank.
    return made_by_first(trainer, lambda: mean.cpu()).to(value)


@contextmanager
def own_noise(trainer: Any, device: torch.device) -> Iterator[None]:
    """Give each rank a stream of random numbers of its own, until the end of the block.

    Outside of training steps, where the callback does so, all ranks may draw the same. What they
    draw after the block is what they would have drawn, but for one number.

    Args:
        trainer: the Trainer, or None.
        device: where there is drawn, besides the CPU.
    """
    if trainer is None or trainer.world_size == 1:
        yield
        return
    drawn = int(torch.randint(2**62, (), dtype=torch.int64))
    seed = made_by_first(trainer, lambda: drawn)
    own = np.random.SeedSequence([seed, trainer.global_rank]).generate_state(1, np.uint64)[0]
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.manual_seed(int(own >> np.uint64(1)))
        yield


def share_of(trainer: Any, count: int, name: str) -> int:
    """Return how many of ``count`` fall to each rank.

    Args:
        trainer: the Trainer, or None.
        count: of all ranks together.
        name: the argument's, for the message.

    Raises:
        ValueError: if they cannot be shared out evenly.
    """
    ranks = 1 if trainer is None else int(trainer.world_size)
    if count % ranks:
        below = count - count % ranks
        near = f"{below} or {below + ranks}" if below else f"{ranks}"
        raise ValueError(
            f"{name} must be a multiple of the number of ranks, each of which takes its share; got "
            f"{name}={count} on {ranks} ranks. Take {near}."
        )
    return count // ranks


def empty_batches(count: int) -> DataLoader[int]:
    """Return ``count`` batches without content, as many on each rank."""
    batches: Any = range(count)
    # Lightning would give each rank its share of them, were it not done already.
    everything: Any = DistributedSampler(batches, num_replicas=1, rank=0, shuffle=False)
    return _EmptyBatches(batches, batch_size=1, sampler=everything)


class _EmptyBatches(DataLoader[int]):
    """Tells Lightning that a run may go on amid an epoch: one batch is like another."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""
