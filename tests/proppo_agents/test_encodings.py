"""Angles as points on the circle."""

from __future__ import annotations

import math

import pytest
import torch

from proppo_agents.encodings import angle_changes, check_angles, encode_angles, onto_circles


def test_angles_become_sines_and_cosines_after_the_other_coordinates() -> None:
    x = torch.tensor([[1.0, 0.5, 2.0, -0.3]])
    sines, cosines = [math.sin(0.5), math.sin(-0.3)], [math.cos(0.5), math.cos(-0.3)]
    expected = torch.tensor([[1.0, 2.0, *sines, *cosines]])
    torch.testing.assert_close(encode_angles(x, (1, 3)), expected)
    assert encode_angles(x, ()) is x


@pytest.mark.parametrize("angles", [(4,), (-1,), (2, 2)])
def test_wrong_angles_are_refused(angles: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="angles must be distinct coordinates"):
        check_angles(angles, 4)


def test_angles_change_the_shorter_way_round() -> None:
    change = torch.tensor([[7.0, 2 * math.pi - 0.1], [7.0, -2 * math.pi + 0.1], [7.0, 0.2]])
    found = angle_changes(change, (1,))
    expected = torch.tensor([[7.0, -0.1], [7.0, 0.1], [7.0, 0.2]])
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
    assert float(change[0, 1]) > 6  # its argument is left alone
    assert angle_changes(change, ()) is change


def test_pairs_are_put_back_onto_the_circle() -> None:
    x = torch.tensor([[0.0, 3.0, 5.0, 4.0], [1.0, 0.0, 2.0, -0.5]], dtype=torch.float64)
    found = onto_circles(x, [(1, 3)])
    expected = torch.tensor([[0.0, 0.6, 5.0, 0.8], [1.0, 0.0, 2.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    assert onto_circles(x, ()) is x


def test_the_circles_centre_has_a_finite_gradient() -> None:
    x = torch.zeros(1, 2, requires_grad=True)
    onto_circles(x, [(0, 1)]).sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())
