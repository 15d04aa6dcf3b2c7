"""Indices by which axes are looked up, as far as they tell where a tensor holds its particles."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_proppo.per_particle.layouts import Shape, count
from lightning_proppo.per_particle.saved import reading

# Versions of indices on a device, and whether they count: to look is to wait for the device.
_known: Any = WeakTensorKeyDictionary()


class LookUp(NamedTuple):
    """An index.

    Attributes:
        shape: its shape.
        counting: the axis along which it counts the elements of the axis that is looked up, 0, 1,
            2, ...; None if it does not, or that axis cannot hold the particles.
        mask: whether it is a mask, which is another thing altogether.
    """

    shape: Shape
    counting: int | None
    mask: bool


def look_ups(function: Any, particles: int) -> tuple[LookUp | None, ...]:
    """Return what is known of the indices of an indexing function, axis by axis.

    Args:
        function: autograd's.
        particles: P.
    """
    indices = reading(lambda: function._saved_indices)
    sizes = function._saved_self_sym_sizes
    return tuple(
        None if index is None else _look_up(index, size, particles)
        for index, size in zip(indices, sizes, strict=False)
    )


def _look_up(index: Tensor, size: int, particles: int) -> LookUp:
    shape = tuple(index.shape)
    if index.dtype in (torch.bool, torch.uint8):
        return LookUp(shape, None, True)
    # An axis of another size does not hold the particles, so that nobody will ask.
    may_count = size in shape and count(shape) == size and size > 1 and size % particles == 0
    return LookUp(shape, shape.index(size) if may_count and _counts(index) else None, False)


def _counts(index: Tensor) -> bool:
    if index.device.type == "cpu":
        return _is_range(index)
    known = _known.get(index)
    if known is None or known[0] != index._version:
        known = _known[index] = (index._version, _is_range(index))
    return bool(known[1])


def _is_range(index: Tensor) -> bool:
    numbers = torch.arange(index.numel(), dtype=index.dtype, device=index.device)
    return torch.equal(index.flatten(), numbers)
