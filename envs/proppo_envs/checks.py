"""Checks of arguments that several functions share; their errors name the argument."""

from __future__ import annotations

import math

from torch import Tensor


def check_floating(name: str, value: Tensor) -> None:
    """Raise TypeError unless ``value`` is a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got dtype {value.dtype}")


def check_coordinates(name: str, value: Tensor, size: int, leading: str = "...") -> None:
    """Raise unless ``value`` is a floating-point tensor ``[..., size]``.

    Args:
        name: of the argument.
        value: the argument.
        size: of the last axis.
        leading: what the other axes are called in the error.

    Raises:
        TypeError: it is no floating-point tensor.
        ValueError: its last axis does not have that size.
    """
    check_floating(name, value)
    if value.dim() == 0 or value.shape[-1] != size:
        raise ValueError(f"{name}: expected shape [{leading}, {size}], got {list(value.shape)}")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a positive finite number."""
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"{name}: expected a positive finite number, got {value!r}")
