"""The random numbers of a rank's training steps: a stream of its own, which checkpoints keep."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_proppo.ranks import all_ranks

# Where Lightning's seed_everything leaves its seed.
_SEED_VARIABLE = "PL_GLOBAL_SEED"


class NoiseStream:
    """Exchanges PyTorch's default generators for ones of this stream, and back.

    What draws between training steps (data loaders, validation) does not move the stream, so that
    a run that was resumed draws what the uninterrupted one would have drawn.
    """

    def __init__(self) -> None:
        # By generator, "cpu" and the device's; None: no training has begun yet.
        self.states: dict[str, Tensor] | None = None
        self._outside: dict[str, Tensor] | None = None
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
            if len(loaded["cpu"]) == size and loaded.keys() == {"cpu", device.type}:
                # Copies: set_rng_state reads a view from the start of its storage, and crashes.
                self.states = {name: state[rank].clone() for name, state in loaded.items()}
                return
            warnings.warn(
                f"the checkpoint holds the noise of {len(loaded['cpu'])} ranks on "
                f"{' and '.join(loaded)}; {size} on {device.type} cannot go on with it and begin "
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
        self.states = {
            name: torch.Generator(name).manual_seed(seed).get_state()
            for name in dict.fromkeys(["cpu", device.type])
        }

    def enter(self) -> None:
        """Let PyTorch draw from this stream."""
        if self.states is None or self._outside is not None:
            return
        self._outside = self._current()
        self._exchange(self.states)

    def leave(self) -> None:
        """Let PyTorch draw from where it drew before :meth:`enter`."""
        if self._outside is None:
            return
        self.states = self._current()
        self._exchange(self._outside)
        self._outside = None

    def state_of_ranks(self) -> dict[str, Tensor]:
        """Return the states of all ranks' streams, one row for each; every rank has to call it."""
        states = self.states if self._outside is None else self._current()
        if states is None:
            return {}
        ranks = all_ranks()
        # On the device, as NCCL takes nothing else.
        return {name: ranks.gather(s.to(self._device)).cpu() for name, s in states.items()}

    def load(self, states: Mapping[str, Tensor]) -> None:
        """Take what :meth:`state_of_ranks` returned, for :meth:`begin`."""
        self._loaded = {name: state.cpu() for name, state in states.items()} or None

    def _current(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self._device.type != "cpu":
            states[self._device.type] = _generators(self._device).get_rng_state(*self._which())
        return states

    def _exchange(self, states: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        if self._device.type != "cpu":
            _generators(self._device).set_rng_state(states[self._device.type], *self._which())

    def _which(self) -> tuple[torch.device, ...]:
        return () if self._device.type == "mps" else (self._device,)


def _generators(device: torch.device) -> Any:
    return getattr(torch, device.type)
