"""What autograd functions saved in the forward computation.

Checkpointing (``torch.utils.checkpoint``) saves nothing: it computes the values again when they are
read, and lets each be read once in one backward call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import CheckpointError

T = TypeVar("T")


class ReadOnce:
    """An autograd function whose values are read once, however often they are asked for."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __getattr__(self, name: str) -> Any:
        """Read a value for the first time."""
        value = getattr(self._function, name)
        setattr(self, name, value)
        return value


def reading(read: Callable[[], T]) -> T:
    """Return what ``read``, which reads saved values once, returns.

    What another segment with the same functions has read in the running backward call is read in a
    new one.
    """
    try:
        return read()
    except CheckpointError:
        found: list[T] = []
        leaf = torch.zeros((), requires_grad=True)
        leaf.register_hook(lambda _: found.append(read()))
        torch.autograd.grad(leaf, leaf)
        return found[0]
