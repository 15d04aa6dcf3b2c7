"""Encodings and policies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from proppo_agents.encodings import check_angles, encode_angles
from proppo_agents.policies import RBFPolicy, squash


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


def policy(**changes: Any) -> RBFPolicy:
    torch.manual_seed(0)
    options = {"observation_size": 3, "action_size": 2, "spread": (1.0, 3.0, 2.0), "angles": (1,)}
    return RBFPolicy(**(options | {"centres": 7} | changes)).double()


def test_the_network_is_its_formula() -> None:
    network = policy()
    x = torch.randn(5, 3, dtype=torch.float64)
    encoded = encode_angles(x, (1,))
    for p in range(5):
        for a in range(2):
            z = 0.0
            for i in range(7):
                scaled = (encoded[p] - network.centres[i]) / network.log_lengthscales.exp()
                z = z + network.weights[i, a] * torch.exp(-0.5 * scaled.square().sum())
            expected = (9 * torch.sin(z) + torch.sin(3 * z)) / 8
            torch.testing.assert_close(network(x)[p, a], expected)


def test_a_turn_of_the_circle_changes_nothing() -> None:
    network = policy()
    x = torch.randn(5, 3, dtype=torch.float64)
    turned = x + torch.tensor([0.0, 2 * math.pi, 0.0], dtype=torch.float64)
    torch.testing.assert_close(network(x), network(turned))


def test_actions_are_bounded_and_reach_their_bounds() -> None:
    z = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    assert float(squash(z).abs().max()) <= 1 + 1e-12
    torch.testing.assert_close(squash(torch.tensor(math.pi / 2)), torch.tensor(1.0))


def test_lengthscales_start_at_the_spread_and_centres_cover_the_circle() -> None:
    network = policy(centres=2000)
    assert network.log_lengthscales.exp()[:2].tolist() == pytest.approx([1.0, 2.0])
    torch.testing.assert_close(
        network.centres.std(0),
        torch.tensor([1.0, 2.0, 0.5**0.5, 0.5**0.5], dtype=torch.float64),
        rtol=0.1,
        atol=0.0,
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"centres": 0}, "centres must be at least 1; got 0"),
        ({"spread": (1.0, 2.0)}, "spread must be 3 positive numbers"),
        ({"spread": (1.0, 2.0, 0.0)}, "spread must be 3 positive numbers"),
        ({"angles": (3,)}, "angles must be"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        policy(**changes)
