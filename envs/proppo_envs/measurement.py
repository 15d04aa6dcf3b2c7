"""How exactly a cart and its poles are measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from proppo_envs.integration import FloatArray

# Of the cart, in m and m/s, and of each pole, in rad and rad/s.
_PIPPS_CART = (0.01, 0.1)
_PIPPS_POLE = (math.radians(1.0), math.radians(10.0))


def measurement_std(
    std: float | Sequence[float] | Literal["pipps"], multiplier: float, poles: int
) -> FloatArray:
    r"""Standard deviation of the measurement noise on each coordinate of the state.

    .. math:: s_d = \sqrt{k} \, b_d

    PIPPS (Parmas et al., 2018) measures a cart-pole with base deviations b of 0.01 m, 0.1 m/s,
    1 degree and 10 degrees/s, and repeats its experiments with noise k times as large. The squares
    among its k = 1, 4, 16, 25 are taken here for factors of the *variance*, so that the deviations
    are 1, 2, 4 and 5 times b. The demonstration program that its authors published multiplies the
    deviations: its ``noise_k`` of 4 is k = 16 here. (With 16 times the deviations, 16 degrees and
    0.16 m, none of the linear feedbacks on a single observation that we tried balanced the pole in
    2,000 episodes; with 4 times, the best of them did in 40 % of the episodes.)

    Args:
        std: b: one number for all coordinates, or one number for each, in its unit, or ``"pipps"``:
            the deviations above, every pole being measured alike. 0 or more.
        multiplier: k, 0 or more.
        poles: number of poles on the cart.

    Returns:
        ``[2 + 2 poles]``.

    Raises:
        ValueError: an argument is not as said here.
    """
    if not (math.isfinite(multiplier) and multiplier >= 0.0):
        raise ValueError(
            f"noise_multiplier: expected a finite number of 0 or more, got {multiplier!r}"
        )
    if isinstance(std, str):
        if std != "pipps":
            raise ValueError(
                "observation_noise_std: expected a finite number of 0 or more, "
                f"{2 + 2 * poles} of them, or 'pipps', got {std!r}"
            )
        std = (*_PIPPS_CART, *_PIPPS_POLE * poles)
    return math.sqrt(multiplier) * each_coordinate("observation_noise_std", std, 2 + 2 * poles)


def each_coordinate(name: str, std: float | Sequence[float], size: int) -> FloatArray:
    """One standard deviation for each coordinate.

    Args:
        name: of the argument, for the error.
        std: one number for all, or ``size`` of them, each 0 or more.
        size: number of coordinates D.

    Returns:
        ``[D]``.

    Raises:
        ValueError: ``std`` is not as said here.
    """
    expected = f"{name}: expected a finite number of 0 or more, or {size} of them"
    try:
        values: FloatArray = np.asarray(std, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}, got {std!r}") from error
    if values.shape not in ((), (size,)) or not (np.isfinite(values) & (values >= 0.0)).all():
        raise ValueError(f"{expected}, got {std!r}")
    each: FloatArray = np.broadcast_to(values, (size,)).copy()
    return each
