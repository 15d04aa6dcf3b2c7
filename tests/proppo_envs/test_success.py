"""When a swing-up counts as done."""

from __future__ import annotations

import numpy as np
import pytest

from proppo_envs import is_success


def upright(steps: int = 5, position: float = 0.0, angle: float = 0.0) -> np.ndarray:
    states = np.zeros((steps, 4))
    states[:, 0], states[:, 2] = position, angle
    return states


@pytest.mark.parametrize("steps", range(5))
def test_too_few_steps(steps: int) -> None:
    assert is_success(upright(steps)) is False


@pytest.mark.parametrize("steps", [5, 6, 25])
def test_enough_steps(steps: int) -> None:
    assert is_success(upright(steps)) is True


def test_only_the_last_five_count() -> None:
    hanging = upright(20, angle=np.pi)
    assert is_success(np.concatenate([hanging, upright(5)]))
    assert not is_success(np.concatenate([hanging, upright(4)]))
    assert not is_success(np.concatenate([upright(20), upright(1, angle=1.0)]))


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("coordinate", [0, 2])
def test_each_of_the_five_must_be_within(index: int, coordinate: int) -> None:
    states = upright()
    states[index, coordinate] = 1.0
    assert not is_success(states)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_bounds_count_and_nothing_beyond_them(sign: float) -> None:
    assert is_success(upright(angle=sign * 0.3, position=-sign * 0.6))
    assert not is_success(upright(angle=sign * np.nextafter(0.3, 1.0)))
    assert not is_success(upright(position=sign * np.nextafter(0.6, 1.0)))


@pytest.mark.parametrize("turns", [-4, -1, 1, 7])
def test_the_angle_is_taken_modulo_a_turn(turns: int) -> None:
    whole = 2 * np.pi * turns
    assert is_success(upright(angle=whole))
    for offset in (-0.299, 0.299):
        assert is_success(upright(angle=whole + offset))
    for offset in (-0.301, 0.301, np.pi):
        assert not is_success(upright(angle=whole + offset))


@pytest.mark.parametrize("coordinate", [2, 4])
def test_both_of_two_poles_must_stand(coordinate: int) -> None:
    states = np.zeros((5, 6))
    states[:, [1, 3, 5]] = 50.0
    assert is_success(states)
    states[2, coordinate] = 0.4
    assert not is_success(states)


def test_velocities_do_not_count() -> None:
    states = upright()
    states[:, [1, 3]] = 50.0
    assert is_success(states)


def test_not_a_number_is_no_success() -> None:
    assert not is_success(upright(angle=np.nan))


@pytest.mark.parametrize("shape", [(4,), (5, 3), (1, 5, 4)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"states: expected shape \[T, 4\] or \[T, 6\], got"):
        is_success(np.zeros(shape))
