"""The random numbers of a rank's training steps: a stream of its own, which checkpoints keep."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lightning_proppo.generators import States, current, packed, restore, seeded, unpacked
from lightning_proppo.ranks import all_ranks

# Where Lightning's seed_everything leaves its seed.
_SEED_VARIABLE = "PL_GLOBAL_SEED"


class NoiseStream:
    """Exchanges the states of the global generators for ones of this stream, and back.

    What draws between training steps (data loaders, validation) does not move the stream, so that
    a run that was resumed draws what the uninterrupted one would have drawn.
    """

    def __init__(self) -> None:
        # None: no training has begun yet.
        self.states: States | None = None
        self._outside: States | None = None
        self._device = torch.device("cpu")
        self._loaded: dict[str, Tensor] | None = None  # one row for each rank

    def begin(self, device: torch.device, rank: int, size: int) -> None:
        """Go on with a loaded stream, or with this one, or begin anew.

        Args:
            device: where the module computes.
            rank: of this process.
            size: how many there are. With more than one, the stream depends on Lightning's seed
                and on the rank alone; with one, its seed is drawn from PyTorch's generator.
        """
        self._device = device
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self.states = own_row(loaded, device, rank, size)
            if self.states is not None:
                return
            devices = [name for name in loaded if name not in ("numpy", "python")]
            warnings.warn(
                f"the checkpoint holds the noise of {len(loaded['cpu'])} ranks on "
                f"{' and '.join(devices)}; {size} on {device.type} cannot go on with it and begin "
                "with new noise.",
                stacklevel=2,
            )
        elif self.states is not None:
            return
        if size > 1:
            given = int(os.environ.get(_SEED_VARIABLE, torch.initial_seed()))
            words = np.random.SeedSequence([given % 2**63, rank]).generate_state(2)
            seed = (int(words[0]) << 31) ^ int(words[1])
        else:
            seed = int(torch.randint(2**62, (), dtype=torch.int64))
        self.states = seeded(seed, device)

    def enter(self) -> None:
        """Let everything draw from this stream."""
        if self.states is None or self._outside is not None:
            return
        self._outside = current(self._device)
        restore(self.states, self._device)

    def leave(self, drawn: bool = True) -> None:
        """Let everything draw from where it drew before :meth:`enter`.

        Args:
            drawn: whether the stream goes on behind what was drawn since; if not, that will be
                drawn again.
        """
        if self._outside is None:
            return
        if drawn:
            self.states = current(self._device)
        restore(self._outside, self._device)
        self._outside = None

    @contextmanager
    def once(self) -> Iterator[None]:
        """Let a block draw from this stream; after an exception, it is as it was before."""
        self.enter()
        try:
            yield
        except BaseException:
            self.leave(drawn=False)
            raise
        self.leave()

    def state_of_ranks(self, entered: bool = False) -> dict[str, Tensor]:
        """Return the states of all ranks' streams, one row for each; every rank has to call it.

        Args:
            entered: those when the stream was entered, if that is so, and not those of now.
        """
        inside = self._outside is not None and not entered
        states = current(self._device) if inside else self.states
        if states is None:
            # A run that had been trained to its end begins no more.
            return dict(self._loaded or {})
        return _rows_of_ranks(states, self._device)

    def outside_of_ranks(self) -> dict[str, Tensor]:
        """Return the states that all ranks draw from elsewhere, as :meth:`state_of_ranks` does."""
        states = current(self._device) if self._outside is None else self._outside
        return _rows_of_ranks(states, self._device)

    def load(self, states: Mapping[str, Tensor]) -> None:
        """Take what :meth:`state_of_ranks` returned, for :meth:`begin`."""
        self._loaded = {name: state.cpu() for name, state in states.items()} or None


def own_row(
    rows: Mapping[str, Tensor], device: torch.device, rank: int, size: int
) -> States | None:
    """Return a rank's states of all ranks'; None if they are of another device or number of ranks.

    Args:
        rows: what a stream returned of all ranks.
        device: whose generator is among them.
        rank: of this process.
        size: how many there are.
    """
    if rows.keys() != {"cpu", device.type, "numpy", "python"} or len(rows["cpu"]) != size:
        return None
    return unpacked({name: row[rank] for name, row in rows.items()})


def _rows_of_ranks(states: States, device: torch.device) -> dict[str, Tensor]:
    ranks = all_ranks()
    # On the device, as NCCL takes nothing else.
    return {name: ranks.gather(s.to(device)).cpu() for name, s in packed(states).items()}
