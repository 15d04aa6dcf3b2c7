"""Data for regression: checked and standardized. N data, I inputs, E outputs."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

# Of a mean in float64, relative to what it is the mean of.
_ROUNDING = 1e-14


def check_data(inputs: Tensor, outputs: Tensor) -> None:
    """Raise unless there are finite data [N, I] and [N, E].

    Raises:
        TypeError: if they are no tensors of real numbers.
        ValueError: if they have other shapes, or are not finite.
    """
    for name, value in (("inputs", inputs), ("outputs", outputs)):
        if not isinstance(value, Tensor) or value.is_complex():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a tensor of real numbers; got {kind}.")
    if (
        inputs.dim() != 2
        or outputs.dim() != 2
        or len(inputs) != len(outputs)
        or not inputs.numel()
        or not outputs.numel()
    ):
        raise ValueError(
            "inputs and outputs must be [N, I] and [N, E] with the same N of at least 1, and at "
            f"least one input and output; got {list(inputs.shape)} and {list(outputs.shape)}."
        )
    for name, value in (("inputs", inputs), ("outputs", outputs)):
        if not bool(torch.isfinite(value).all()):
            wrong = int((~torch.isfinite(value)).sum())
            raise ValueError(f"{name} must be finite; got {wrong} NaN or infinite values.")
        check_fits_in(name, value, torch.float64)


def check_fits_in(name: str, value: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError unless numbers are small enough to be squared and summed in a precision.

    Args:
        name: what they are, for the message.
        value: of any shape.
        dtype: float32 is meant for all that is narrower.
    """
    largest = float(value.detach().abs().max()) if value.numel() else 0.0
    limit = 1e-4 * torch.finfo(torch.promote_types(dtype, torch.float32)).max ** 0.5
    if largest > limit:
        raise ValueError(
            f"{name} must be below {limit:.0e} in size for predictions in {dtype}; got "
            f"{largest:.3g}. Give them in other units, or leave out what is an error of "
            "measurement."
        )


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


def standardize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return data [N, I] with mean 0 and standard deviation 1, and their own mean and std [I]."""
    mean = x.mean(0)
    std = x.std(0) if len(x) > 1 else torch.zeros_like(mean)
    # A coordinate that does not vary, but for rounding, has nothing to be scaled by.
    least = (_ROUNDING * x.abs().amax(0)).clamp_min(1e-12)
    std = torch.where(std > least, std, torch.ones_like(std))
    return (x - mean) / std, mean, std


def check_each(name: str, value: Any, size: int) -> Tensor:
    """Return [size], float64, of one number for all coordinates, or one for each; 0 or more.

    Raises:
        ValueError: for anything else.
    """
    found = torch.as_tensor(value, dtype=torch.float64)
    if found.dim() > 1 or found.numel() not in (1, size) or not bool((found >= 0).all()):
        raise ValueError(f"{name} must be a number or {size} numbers, 0 or more; got {value!r}.")
    return found.expand(size).clone()
