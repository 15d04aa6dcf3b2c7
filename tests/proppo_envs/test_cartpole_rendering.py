"""Pictures of the cart-pole: shape, contents, and what happens without pygame."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled

from proppo_envs import CartPoleSwingUpEnv


def picture(position: float, angle: float) -> np.ndarray:
    pytest.importorskip("pygame")
    env = CartPoleSwingUpEnv(render_mode="rgb_array")
    env.reset(seed=0, options={"state": [position, 0.0, angle, 0.0]})
    image = env.render()
    env.close()
    assert image is not None
    return image


def centre_of_pole(image: np.ndarray) -> tuple[float, float]:
    """Mean row and column of the pixels that are redder than blue."""
    rows, columns = np.nonzero(image[..., 0].astype(int) - image[..., 2] > 80)
    return float(rows.mean()), float(columns.mean())


def test_shape_and_dtype() -> None:
    image = picture(0.0, math.pi)
    assert image.shape == (300, 600, 3)
    assert image.dtype == np.uint8
    assert image.flags["C_CONTIGUOUS"]


def test_a_positive_angle_leans_left_in_the_picture() -> None:
    up = centre_of_pole(picture(0.0, 0.0))
    left = centre_of_pole(picture(0.0, math.pi / 2))
    down = centre_of_pole(picture(0.0, math.pi))
    right = centre_of_pole(picture(0.0, -math.pi / 2))
    assert left[1] < up[1] - 20 < up[1] + 20 < right[1]
    assert up[0] < left[0] - 20 < left[0] + 20 < down[0]


def test_the_cart_goes_right_and_stays_in_view() -> None:
    assert centre_of_pole(picture(1.0, 0.0))[1] > centre_of_pole(picture(0.0, 0.0))[1] + 100
    for position in (-37.0, 5.0, 1000.0):
        assert 0.0 < centre_of_pole(picture(position, 0.0))[1] < 600.0


def test_pictures_are_independent_arrays() -> None:
    pytest.importorskip("pygame")
    env = CartPoleSwingUpEnv(render_mode="rgb_array")
    env.reset(seed=0)
    first, second = env.render(), env.render()
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first, second)
    first[:] = 0
    assert second.max() == 255


def test_a_window_opens_closes_twice_and_opens_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = CartPoleSwingUpEnv(render_mode="human")
    for _ in range(2):
        env.reset(seed=0)
        assert pygame.display.get_init()
        env.step(np.zeros(1))
        assert env.render() is None
        env.close()
        env.close()
        assert not pygame.display.get_init()


def test_without_a_render_mode_there_is_a_warning_and_no_picture() -> None:
    env = CartPoleSwingUpEnv()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="without a render mode"):
        assert env.render() is None


def test_without_pygame_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = CartPoleSwingUpEnv(render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(DependencyNotInstalled, match=r'pip install "lightning-proppo\[render\]"'):
        env.render()
    env.close()
