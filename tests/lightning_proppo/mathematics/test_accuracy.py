"""Signal, noise, and how many particles it takes."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_proppo.mathematics.accuracy import (
    particles_needed,
    signal_to_noise,
    squared_norm,
    squared_signal,
    standard_errors,
    trace_of_covariance,
    variance_of_successive,
)

Z = 4.0  # two-sided; one in 15,000 by chance


def test_variance_of_a_mean_and_its_signal_are_without_bias() -> None:
    particles, size, repetitions = 6, 4, 20_000
    mean = torch.tensor([1.0, -0.5, 0.0, 2.0], dtype=torch.float64)
    std = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    rows = mean + std * torch.randn(repetitions, particles, size, dtype=torch.float64)
    contributions = rows / particles
    deviations = contributions - contributions.mean(1, keepdim=True)
    variances = trace_of_covariance(deviations.square().sum((1, 2)), particles)
    norms = contributions.sum(1).square().sum(1)
    signals = torch.tensor(
        [squared_signal(float(n), float(v)) for n, v in zip(norms, variances, strict=True)]
    )
    for found, expected in (
        (variances, float(std.square().sum()) / particles),
        (signals, float(mean.square().sum())),
    ):
        assert abs(found.mean() - expected) < Z * found.std() / math.sqrt(repetitions)


def test_successive_gradients_may_drift() -> None:
    generator = torch.Generator().manual_seed(0)
    start, drift = torch.randn(2, 300, dtype=torch.float64, generator=generator)
    found = []
    for _ in range(500):
        noise = 0.3 * torch.randn(3, 300, dtype=torch.float64, generator=generator)
        rows = [start + 10 * t * drift + noise[t] for t in range(3)]
        found.append(variance_of_successive([[row[:100], row[100:]] for row in rows]))
    values = torch.tensor(found)
    assert abs(values.mean() - 300 * 0.09) < Z * values.std() / math.sqrt(500)


def test_successive_gradients_are_three() -> None:
    with pytest.raises(ValueError, match="three steps; got 2"):
        variance_of_successive([[torch.zeros(1)]] * 2)


@pytest.mark.parametrize(
    ("signal", "variance", "expected"),
    [
        (3.0, 2.0, 1.5),
        (-1.0, 2.0, 0.0),
        (1.0, 0.0, math.inf),
        (0.0, 0.0, 0.0),
        (math.inf, 1.0, 0.0),
        (1.0, math.nan, 0.0),
    ],
)
def test_signal_to_noise(signal: float, variance: float, expected: float) -> None:
    assert signal_to_noise(signal, variance) == expected


@pytest.mark.parametrize(
    ("used", "other", "expected"),
    [
        (2.0, 6.0, 30.0),
        (2.0, math.inf, math.inf),
        (0.0, 1.0, math.inf),
        (0.0, 0.0, math.nan),
        (math.inf, 1.0, math.nan),
    ],
)
def test_particles_needed(used: float, other: float, expected: float) -> None:
    assert particles_needed(10, used, other) == pytest.approx(expected, nan_ok=True)


def test_squared_norm() -> None:
    assert squared_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]) == 25.0
    assert squared_norm([]) == 0.0


@pytest.mark.parametrize(
    ("squared_norm", "variance", "expected"),
    [(9.0, 1.0, 3.0), (1.0, 4.0, 0.5), (0.0, 0.0, 0.0), (1.0, 0.0, math.inf), (1.0, math.inf, 0.0)],
)
def test_a_length_in_standard_errors(squared_norm: float, variance: float, expected: float) -> None:
    assert standard_errors(squared_norm, variance) == expected
