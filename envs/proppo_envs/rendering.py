"""Pictures of carts with poles, drawn with pygame, which is imported only when one is asked for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

WIDTH = 600
_PIXELS_PER_METRE = 150.0
# Room above and below the reach of the poles (m).
_MARGIN = 0.5
# Drawn larger and scaled down: lines come out smooth, which pygame's thick lines are not.
_SUPERSAMPLING = 2

_BACKGROUND = (255, 255, 255)
_TRACK = (120, 120, 120)
_CART = (52, 73, 94)
_POLE = (192, 111, 52)
_TARGET = (39, 144, 86)


class CartRenderer:
    """Draws cart, poles, track and target, as an image or into a window.

    The view follows the cart in whole widths of the track, because the track has no end. It is 600
    pixels wide, and as high as the poles need.

    Args:
        pole_lengths: length of each pole (m), outwards.
        frames_per_second: the rate to which :meth:`show` slows its caller down.
        caption: the window's title.

    Raises:
        gymnasium.error.DependencyNotInstalled: pygame is missing.
    """

    def __init__(
        self, *, pole_lengths: Sequence[float], frames_per_second: int, caption: str
    ) -> None:
        # Not kept: an environment that held a module could be neither pickled nor deep-copied.
        _import_pygame()
        self._pole_lengths = tuple(pole_lengths)
        self._height = round(2.0 * (sum(pole_lengths) + _MARGIN) * _PIXELS_PER_METRE)
        self._caption = caption
        self._frames_per_second = frames_per_second
        self._window: Any = None
        self._clock: Any = None

    def image(self, position: float, angles: Sequence[float]) -> NDArray[np.uint8]:
        """The picture as an array.

        Args:
            position: of the cart (m).
            angles: of each pole (rad), 0 upright, positive leaning left.

        Returns:
            ``[height, width, 3]``, uint8.
        """
        pixels = _import_pygame().surfarray.array3d(self._draw(position, angles))
        # pygame keeps the horizontal axis first.
        return np.ascontiguousarray(pixels.transpose(1, 0, 2), dtype=np.uint8)

    def show(self, position: float, angles: Sequence[float]) -> None:
        """Put the picture into a window, which the first call opens.

        Args:
            position: of the cart (m).
            angles: of each pole (rad), 0 upright, positive leaning left.
        """
        pygame = _import_pygame()
        if self._window is None:
            pygame.display.init()
            pygame.display.set_caption(self._caption)
            self._window = pygame.display.set_mode((WIDTH, self._height))
            self._clock = pygame.time.Clock()
        self._window.blit(self._draw(position, angles), (0, 0))
        # Without this the window system takes the window for dead.
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self._frames_per_second)

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            _import_pygame().display.quit()
            self._window = None
            self._clock = None

    def _draw(self, position: float, angles: Sequence[float]) -> Any:
        pygame = _import_pygame()
        scale = _SUPERSAMPLING
        metre = _PIXELS_PER_METRE * scale
        surface = pygame.Surface((WIDTH * scale, self._height * scale))
        surface.fill(_BACKGROUND)
        view = WIDTH / _PIXELS_PER_METRE
        centre = view * round(position / view)

        def pixel(x: float, y: float) -> tuple[int, int]:
            """Metres right of the origin and above the pivot, as a pixel, which counts down."""
            return (
                round(WIDTH * scale / 2 + (x - centre) * metre),
                round(self._height * scale * 0.55 - y * metre),
            )

        joints = [(position, 0.0)]
        for length, angle in zip(self._pole_lengths, angles, strict=True):
            x, y = joints[-1]
            joints.append((x - length * math.sin(angle), y + length * math.cos(angle)))
        pivot = pixel(position, 0.0)
        cart_width, cart_height = round(0.3 * metre), round(0.14 * metre)

        track = pivot[1] + cart_height // 2
        pygame.draw.line(surface, _TRACK, (0, track), (WIDTH * scale, track), 2 * scale)
        target = pixel(0.0, sum(self._pole_lengths))
        pygame.draw.line(surface, _TRACK, (target[0], track), (target[0], track + 8 * scale), scale)
        cart = pygame.Rect(0, 0, cart_width, cart_height)
        cart.center = pivot
        pygame.draw.rect(surface, _CART, cart, border_radius=4 * scale)
        ends = [pixel(*joint) for joint in joints]
        for start, end in itertools.pairwise(ends):
            _thick_line(pygame, surface, _POLE, start, end, 8 * scale)
        for hinge in ends[:-1]:
            pygame.draw.circle(surface, _BACKGROUND, hinge, 3 * scale)
        # Last, so that no pole can hide whether it has arrived.
        pygame.draw.circle(surface, _TARGET, target, 9 * scale, 2 * scale)
        return pygame.transform.smoothscale(surface, (WIDTH, self._height))


def _thick_line(
    pygame: Any,
    surface: Any,
    colour: tuple[int, int, int],
    start: tuple[int, int],
    end: tuple[int, int],
    width: int,
) -> None:
    """A line with round ends; pygame cuts the ends of thick slanted lines askew."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    norm = math.hypot(dx, dy) or 1.0
    nx, ny = -dy / norm * width / 2, dx / norm * width / 2
    corners = [
        (start[0] + nx, start[1] + ny),
        (end[0] + nx, end[1] + ny),
        (end[0] - nx, end[1] - ny),
        (start[0] - nx, start[1] - ny),
    ]
    pygame.draw.polygon(surface, colour, corners)
    pygame.draw.circle(surface, colour, start, width // 2)
    pygame.draw.circle(surface, colour, end, width // 2)


def _import_pygame() -> Any:
    try:
        import pygame
    except ImportError as error:
        raise DependencyNotInstalled(
            'rendering needs pygame, which is missing: pip install "lightning-proppo[render]"'
        ) from error
    return pygame
