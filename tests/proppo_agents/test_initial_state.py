"""Where episodes start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from proppo_agents.experience.episodes import Episode
from proppo_agents.initial_state import InitialState
from proppo_agents.parts import Spaces, make_part

SPACES = Spaces(observation_size=2, action_size=1, angles=(1,))


def episodes(firsts: Tensor, change: float = 1.0) -> list[Episode]:
    """Of one step each, which takes every coordinate ``change`` further."""
    nothing = torch.zeros(1, 1, dtype=torch.float64)
    return [
        Episode(torch.stack([x, x + change]).double(), nothing, nothing[0], success=False)
        for x in firsts
    ]


def fitted(firsts: Tensor, change: float = 1.0, **options: Any) -> InitialState:
    initial = InitialState(**options).build(SPACES).double()
    initial.fit(episodes(firsts, change))
    return initial


def test_with_many_episodes_it_is_their_mean_and_deviation() -> None:
    torch.manual_seed(0)
    firsts = torch.tensor([2.0, 3.0]) + torch.tensor([0.5, 0.1]) * torch.randn(2000, 2)
    initial = fitted(firsts)
    # A mean or deviation of 2000 is off by 2 % of the deviation; 5 of these.
    torch.testing.assert_close(
        initial.mean_value, torch.tensor([2.0, 3.0]).double(), rtol=0.0, atol=0.05
    )
    torch.testing.assert_close(
        initial.std_value, torch.tensor([0.5, 0.1]).double(), rtol=0.1, atol=0.0
    )
    drawn = initial.sample(4000)
    assert drawn.shape == (4000, 2)
    assert drawn.dtype == torch.float64
    torch.testing.assert_close(drawn.mean(0), initial.mean_value, rtol=0.0, atol=0.05)
    torch.testing.assert_close(drawn.std(0), initial.std_value, rtol=0.1, atol=0.0)


def test_its_variance_is_the_formula() -> None:
    firsts = torch.tensor([[1.0, 0.0], [2.0, 0.2], [6.0, 0.1]])
    initial = fitted(firsts, prior_std=(0.5, 0.3), prior_weight=2.0)
    # 2 * 0.25 + (4 + 1 + 9) over 2 + 3 - 1; 2 * 0.09 + 0.02 over the same.
    expected = torch.tensor([14.5 / 4, 0.2 / 4]).double()
    torch.testing.assert_close(initial.std_value.square(), expected, rtol=1e-5, atol=0.0)


def test_after_one_episode_the_deviation_is_the_priors() -> None:
    first = torch.tensor([[1.0, 2.0]])
    found = fitted(first, prior_std=0.3).std_value
    torch.testing.assert_close(found, torch.full((2,), 0.3).double())
    # Or else a tenth of the deviation: of 0 and 1, a tenth of the square root of a half.
    found = fitted(first).std_value
    torch.testing.assert_close(found, torch.full((2,), 0.1 * 0.5**0.5).double())


def test_what_is_known_is_kept() -> None:
    initial = fitted(torch.tensor([[1.0, 2.0], [2.0, 2.0]]), mean=(0.0, 1.0), std=0.2)
    assert initial.mean_value.tolist() == [0.0, 1.0]
    torch.testing.assert_close(initial.std_value, torch.full((2,), 0.2).double())
    # With the mean known, deviations are from there.
    initial = fitted(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), mean=(0.0, 0.0), prior_std=1.0)
    torch.testing.assert_close(initial.std_value[0].square(), torch.tensor(11 / 3).double())


def test_angles_are_averaged_on_the_circle() -> None:
    initial = fitted(torch.tensor([[0.0, math.pi - 0.1], [0.0, -math.pi + 0.1]]), prior_std=0.1)
    assert abs(abs(float(initial.mean_value[1])) - math.pi) < 1e-6
    torch.testing.assert_close(
        initial.std_value[1].square(), torch.tensor((0.01 + 0.02) / 2).double(), rtol=1e-5, atol=0
    )


def test_observed_sines_and_cosines_are_on_the_circle() -> None:
    initial = InitialState(mean=(1.0, 0.0, 5.0), std=0.3)
    initial.build(Spaces(3, 1, encoded_angles=((1, 0),)))
    drawn = initial.sample(50)
    torch.testing.assert_close(drawn[:, :2].square().sum(1), torch.ones(50))
    assert float(drawn[:, 2].std()) > 0.1


def test_it_comes_back_from_its_state_and_its_description() -> None:
    initial = fitted(torch.tensor([[1.0, 2.0], [2.0, 2.0]]), prior_weight=3.0)
    other = make_part("initial", initial.description(), InitialState).build(SPACES).double()
    other.load_state_dict(initial.state_dict())
    assert torch.equal(other.std_value, initial.std_value)
    assert other.prior_weight == 3.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mean": (0.0,)}, "mean must be 2 numbers"),
        ({"std": (0.1, 0.1, 0.1)}, "std must be a number or 2 numbers"),
        ({"std": -0.1}, "std must be a number or 2 numbers, 0 or more; got -0.1"),
        ({"prior_std": -1.0}, "prior_std must be"),
        ({"prior_weight": 0.0}, "prior_weight must be positive; got 0.0"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        InitialState(**options).build(SPACES)
