"""The time of gradients that take turns, so that a busy machine is so for all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

Gradient = Callable[[], Tensor]
Key = TypeVar("Key", bound=Hashable)


def times(
    gradients: Mapping[Key, Callable[[], Any]],
    repetitions: int,
    device: torch.device,
    bar: tqdm,
    limit: float = math.inf,
) -> dict[Key, list[float]]:
    """Return each gradient's seconds, one for each turn; at least two, and none after a limit.

    Args:
        gradients: functions that compute one, by name.
        repetitions: turns.
        device: that is waited for.
        bar: moves on with every turn, and past those that the limit cuts off.
        limit: in seconds.
    """
    began = time.perf_counter()
    found: dict[Key, list[float]] = {name: [] for name in gradients}
    for gradient in gradients.values():  # warm up
        gradient()
    for turn in range(repetitions):
        if turn >= 2 and time.perf_counter() - began > limit:
            bar.update(repetitions - turn)
            break
        for name, gradient in gradients.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            gradient()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found[name].append(time.perf_counter() - start)
        bar.update()
    return found


def quartiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median of seconds in ``milliseconds``, and the quartiles ``low`` and ``high``."""
    low, middle, high = (1e3 * quartile for quartile in statistics.quantiles(seconds, n=4))
    return {"milliseconds": middle, "low": low, "high": high}


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the turns' ratios of seconds to others."""
    return statistics.median(a / b for a, b in zip(seconds, others, strict=True))
