"""The states of all global generators of random numbers: PyTorch's, NumPy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

# By generator: "cpu" and the device's, PyTorch's; "numpy"; "python".
States = dict[str, Any]


def current(device: torch.device) -> States:
    """Return the generators' states.

    Args:
        device: whose generator is among them, besides the CPU's.
    """
    states: States = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = _module(device).get_rng_state(*_which(device))
    return states | {"numpy": np.random.get_state(), "python": random.getstate()}


def restore(states: States, device: torch.device) -> None:
    """Put the generators in states that :func:`current` returned for this device."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        _module(device).set_rng_state(states[device.type], *_which(device))
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])


def seeded(seed: int, device: torch.device) -> States:
    """Return the states of generators that begin anew.

    Args:
        seed: from 0 on.
        device: see :func:`current`.
    """
    states: States = {
        name: torch.Generator(name).manual_seed(seed).get_state()
        for name in dict.fromkeys(["cpu", device.type])
    }
    numpy = np.random.RandomState(np.random.SeedSequence(seed).generate_state(4))
    return states | {"numpy": numpy.get_state(), "python": random.Random(seed).getstate()}


@contextmanager
def isolated(seed: int, device: torch.device) -> Iterator[None]:
    """Let the generators begin anew, and give them back their states at the end of the block.

    Args:
        seed: from 0 on.
        device: see :func:`current`.
    """
    outside = current(device)
    restore(seeded(seed, device), device)
    try:
        yield
    finally:
        restore(outside, device)


def packed(states: States) -> dict[str, Tensor]:
    """Return states as tensors, which a checkpoint can hold and nothing has to be run for."""
    _, words, place, waits, normal = states["numpy"]
    version, (*others, other_place), other_normal = states["python"]
    return {
        **states,
        "numpy": _pack(words, place, normal if waits else None),
        "python": torch.cat(
            [torch.tensor([version]), _pack(others, other_place, other_normal)],
        ),
    }


def unpacked(tensors: Mapping[str, Tensor]) -> States:
    """Return what was given to :func:`packed`."""
    words, place, normal = _unpack(tensors["numpy"])
    others, other_place, other_normal = _unpack(tensors["python"][1:])
    numpy = ("MT19937", np.array(words, np.uint32), place, normal is not None, normal or 0.0)
    python = (int(tensors["python"][0]), (*others, other_place), other_normal)
    # Copies: set_rng_state reads a view from the start of its storage, and crashes.
    return {
        **{name: tensor.clone() for name, tensor in tensors.items()},
        "numpy": numpy,
        "python": python,
    }


def _pack(words: Any, place: int, normal: float | None) -> Tensor:
    # Normal numbers come in pairs; the second waits. Its bits, as all else are whole numbers.
    bits = torch.tensor(normal or 0.0, dtype=torch.float64).view(torch.int64)
    rest = torch.tensor([place, normal is not None, int(bits)])
    return torch.cat([torch.tensor(np.asarray(words, dtype=np.int64)), rest])


def _unpack(packed: Tensor) -> tuple[list[int], int, float | None]:
    *words, place, waits, bits = packed.tolist()
    normal = float(torch.tensor(bits, dtype=torch.int64).view(torch.float64))
    return words, place, normal if waits else None


def _module(device: torch.device) -> Any:
    return getattr(torch, device.type)


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)
