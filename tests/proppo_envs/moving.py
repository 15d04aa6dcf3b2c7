"""How the carts' tests move states: as the environments do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proppo_envs.integration import FloatArray, runge_kutta


def mover(derivative: Callable[[FloatArray, Any, Any], FloatArray]) -> Callable[..., FloatArray]:
    """Return what moves states under a constant force, by their derivative."""

    def integrate(
        state: FloatArray,
        force: FloatArray | float,
        *,
        duration: float,
        substeps: int,
        parameters: Any,
    ) -> FloatArray:
        return runge_kutta(
            lambda at: derivative(at, force, parameters),
            state,
            duration=duration,
            substeps=substeps,
        )

    return integrate
