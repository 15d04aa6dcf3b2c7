"""Standard deviations of the measurement noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from proppo_envs.measurement import measurement_std


@pytest.mark.parametrize(("k", "factor"), [(0, 0), (1, 1), (4, 2), (16, 4), (25, 5)])
def test_pipps_noise(k: float, factor: float) -> None:
    base = [0.01, 0.1, math.radians(1), math.radians(10)]
    np.testing.assert_allclose(measurement_std("pipps", k, 1), factor * np.array(base), rtol=1e-15)
    both = np.array([*base, *base[2:]])
    np.testing.assert_allclose(measurement_std("pipps", k, 2), factor * both, rtol=1e-15)


def test_numbers() -> None:
    np.testing.assert_array_equal(measurement_std(0.3, 1.0, 1), [0.3] * 4)
    np.testing.assert_array_equal(measurement_std((1, 2, 3, 4), 4.0, 1), [2.0, 4.0, 6.0, 8.0])


@pytest.mark.parametrize("std", [-0.1, math.inf, (0.1, 0.2), [[0.1] * 4], "high", [1, 2, 3, -4]])
def test_wrong_deviations_are_refused(std: object) -> None:
    with pytest.raises(ValueError, match=r"^observation_noise_std: expected .*4 of them.*, got"):
        measurement_std(std, 1.0, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("multiplier", [-1.0, math.nan, math.inf])
def test_wrong_multipliers_are_refused(multiplier: float) -> None:
    with pytest.raises(ValueError, match=r"^noise_multiplier: expected .* or more, got"):
        measurement_std(0.1, multiplier, 1)
