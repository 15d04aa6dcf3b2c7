"""Data for regression: checked and standardized. N data, I inputs, E outputs."""

from __future__ import annotations

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


def standardize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return data [N, I] with mean 0 and standard deviation 1, and their own mean and std [I]."""
    mean = x.mean(0)
    std = x.std(0) if len(x) > 1 else torch.zeros_like(mean)
    # A coordinate that does not vary, but for rounding, has nothing to be scaled by.
    least = (_ROUNDING * x.abs().amax(0)).clamp_min(1e-12)
    std = torch.where(std > least, std, torch.ones_like(std))
    return (x - mean) / std, mean, std
