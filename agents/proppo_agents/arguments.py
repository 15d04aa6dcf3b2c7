"""Checks of arguments that several parts share; their errors name the argument."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise unless an argument is a whole number, and not too small.

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is less than ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number; got {value!r}.")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}; got {value!r}.")


def check_rate(name: str, value: Any) -> None:
    """Raise unless an argument is a positive, finite number.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is not positive, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {value!r}.")
    if not float(value) > 0:
        raise ValueError(f"{name} must be positive; got {value!r}.")
    if math.isinf(value):
        raise ValueError(f"{name} must be finite; got {value!r}.")


def check_fit(steps: int, learning_rate: float) -> None:
    """Raise unless a fit can have so many steps of this rate.

    Raises:
        TypeError, ValueError: as :func:`check_count` and :func:`check_rate`.
    """
    check_count("steps", steps, 0)
    check_rate("learning_rate", learning_rate)


def check_each(name: str, value: Any, size: int) -> Tensor:
    """Return [size], float64, of one number for all coordinates, or one for each; 0 or more.

    Raises:
        ValueError: for anything else.
    """
    found = torch.as_tensor(value, dtype=torch.float64)
    if found.dim() > 1 or found.numel() not in (1, size) or not bool((found >= 0).all()):
        raise ValueError(f"{name} must be a number or {size} numbers, 0 or more; got {value!r}.")
    return found.expand(size).clone()
