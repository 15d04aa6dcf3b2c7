"""Angles: what models and policies see of them are points on the circle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def encode_angles(observation: Tensor, angles: Sequence[int]) -> Tensor:
    r"""Replace each angle by its sine and cosine.

    A model of the angle itself would have to learn each turn of the circle anew.

    Args:
        observation: [..., D].
        angles: the coordinates of the observation that are angles (rad), ascending.

    Returns:
        [..., D + len(angles)]: the other coordinates in their order, then all sines, then all
        cosines.
    """
    if not angles:
        return observation
    turned = set(angles)
    # One node that takes apart and one that joins: gathers and slices each put their gradient into
    # zeros of the whole observation's size.
    columns = observation.unbind(-1)
    others = [column for i, column in enumerate(columns) if i not in turned]
    sines = [columns[i].sin() for i in angles]
    cosines = [columns[i].cos() for i in angles]
    return torch.stack([*others, *sines, *cosines], dim=-1)


def angle_changes(change: Tensor, angles: Sequence[int]) -> Tensor:
    """Return changes [..., D], those of angles the shorter way round: in [-pi, pi)."""
    if not angles:
        return change
    chosen = list(angles)
    wrapped = change.clone()
    wrapped[..., chosen] = torch.remainder(change[..., chosen] + math.pi, 2 * math.pi) - math.pi
    return wrapped


def onto_circles(observation: Tensor, encoded_angles: Sequence[tuple[int, int]]) -> Tensor:
    """Put pairs of coordinates back onto the unit circle, as sines and cosines of angles are.

    What a model predicts of a sine and a cosine drifts off the circle, and soon away from all data.

    Args:
        observation: [..., D].
        encoded_angles: pairs of coordinates.

    Returns:
        [..., D]: each pair over its length, or over 1e-3 where it is shorter than that.
    """
    if not encoded_angles:
        return observation
    columns = list(observation.unbind(-1))
    for i, j in encoded_angles:
        # Of a point that is just the centre, a length by itself would have no gradient.
        squared = columns[i].square() + columns[j].square()
        length = squared.clamp_min(1e-6).sqrt()
        columns[i], columns[j] = columns[i] / length, columns[j] / length
    return torch.stack(columns, dim=-1)


def check_angles(angles: Sequence[int], size: int) -> tuple[int, ...]:
    """Return the angles' coordinates, ascending.

    Args:
        angles: coordinates of an observation.
        size: D, the size of the observation.

    Raises:
        ValueError: if they are not distinct coordinates in 0..D-1.
    """
    found = tuple(sorted(int(i) for i in angles))
    if len(set(found)) < len(found) or any(not 0 <= i < size for i in found):
        raise ValueError(
            f"angles must be distinct coordinates of an observation of size {size}, each from 0 to "
            f"{size - 1}; got {list(angles)}."
        )
    return found
