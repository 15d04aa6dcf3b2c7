"""Independent repetitions of a gradient, and the variance that they show."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from tqdm import tqdm


def bootstrap_interval(values: Tensor, draws: int = 2000) -> tuple[float, float]:
    """Return a 95 % interval for the variance of ``values`` [N]."""
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(values), (draws, len(values)), generator=generator)
    variances = values[index].var(dim=1)
    low, high = torch.quantile(variances, torch.tensor([0.025, 0.975], dtype=values.dtype))
    return low.item(), high.item()


def moments(values: list[float]) -> dict[str, float]:
    """Return mean, its standard error, and variance with its 95 % interval (``low``, ``high``)."""
    gradients = torch.tensor(values, dtype=torch.float64)
    low, high = bootstrap_interval(gradients)
    return {
        "mean": gradients.mean().item(),
        "standard_error": gradients.std().item() / len(values) ** 0.5,
        "variance": gradients.var().item(),
        "low": low,
        "high": high,
    }


def summary(values: list[float], times: list[float]) -> dict[str, float]:
    """Summarize gradients and the seconds that they took."""
    seconds = statistics.median(times)
    found = moments(values)
    return {
        **found,
        "milliseconds": 1e3 * seconds,
        "variance_times_seconds": found["variance"] * seconds,
    }


def measure(
    gradients: Mapping[str, Callable[[], float]], repetitions: int, bar: tqdm
) -> dict[str, dict[str, float]]:
    """Repeat several estimators' gradients in turn and summarize each.

    Args:
        gradients: functions that compute one, by name.
        repetitions: of each.
        bar: moves on with every turn.
    """
    values: dict[str, list[float]] = {name: [] for name in gradients}
    times: dict[str, list[float]] = {name: [] for name in gradients}
    for gradient in gradients.values():  # warm up
        gradient()
    for _ in range(repetitions):
        for name, gradient in gradients.items():
            start = time.perf_counter()
            values[name].append(gradient())
            times[name].append(time.perf_counter() - start)
        bar.update()
    return {name: summary(values[name], times[name]) for name in gradients}
