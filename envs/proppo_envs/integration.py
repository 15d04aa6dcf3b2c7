"""Numerical integration of equations of motion: pure functions of numpy arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def runge_kutta(
    derivative: Callable[[FloatArray], FloatArray],
    state: FloatArray,
    *,
    duration: float,
    substeps: int,
) -> FloatArray:
    """State after ``duration`` seconds of an autonomous system.

    The classical Runge-Kutta method of fourth order, with steps of ``duration / substeps``.

    Args:
        derivative: maps a state ``[..., D]`` to its time derivative ``[..., D]``.
        state: ``[..., D]``; not changed.
        duration: time to integrate over (s).
        substeps: number of Runge-Kutta steps, at least 1.

    Returns:
        ``[..., D]``, a new array.

    Raises:
        ValueError: ``substeps`` is less than 1.
    """
    if substeps < 1:
        raise ValueError(f"substeps: expected at least 1, got {substeps!r}")
    step = duration / substeps
    state = np.array(state, dtype=np.float64)
    for _ in range(substeps):
        k1 = derivative(state)
        k2 = derivative(state + 0.5 * step * k1)
        k3 = derivative(state + 0.5 * step * k2)
        k4 = derivative(state + step * k3)
        state = state + step / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    return state
