"""When a swing-up counts as done."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

SUCCESS_STEPS = 5
SUCCESS_ANGLE = 0.3
SUCCESS_POSITION = 0.6


def is_success(states: ArrayLike) -> bool:
    """Whether an episode ends, so far, with the pole or poles balanced near the origin.

    True when after each of the last 5 steps every pole was within 0.3 rad of upright, the angle
    taken modulo 2 pi, and the cart within 0.6 m of the origin; the bounds themselves count.

    Args:
        states: ``[T, 4]`` with one pole, ``[T, 6]`` with two: the true states that followed the
            steps of an episode, in order, without the one before the first step.

    Returns:
        The verdict; false when T is less than 5.

    Raises:
        ValueError: ``states`` does not have such a shape.
    """
    array = np.asarray(states, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] not in (4, 6):
        raise ValueError(f"states: expected shape [T, 4] or [T, 6], got {list(array.shape)}")
    if len(array) < SUCCESS_STEPS:
        return False
    last = array[-SUCCESS_STEPS:]
    # Rounding to the nearest turn leaves angles within half a turn exactly as they are, where
    # (angle + pi) % (2 pi) - pi would disturb their last digits, and the bound with them.
    turns = np.round(last[:, 2::2] / (2.0 * np.pi))
    angles = last[:, 2::2] - 2.0 * np.pi * turns
    balanced = (np.abs(angles) <= SUCCESS_ANGLE).all(axis=1)
    balanced &= np.abs(last[:, 0]) <= SUCCESS_POSITION
    return bool(balanced.all())
