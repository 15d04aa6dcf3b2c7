"""Calibration, of models whose errors are known in closed form.

The world is x' = a x + b u + s e with e standard normal; a model that says c s in place of s has
erf(2 c / sqrt 2) of all single steps within 2 deviations. Statistical tests are z-tests at 4
standard deviations: a false alarm in 1 of 16,000, for each number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Exponential, Normal

from proppo_agents.experience.episodes import Episode
from proppo_agents.watching.calibration import (
    draw_trajectories,
    expected_share,
    moments,
    one_step_errors,
    root_mean_square,
    share_inside,
    standardized_errors,
    too_few_inside,
    unwrapped,
)
from proppo_agents.watching.predictions import Prediction, predict_episode

A, B, S = torch.tensor([0.9, 0.5]), torch.tensor([1.0, -2.0]), torch.tensor([0.1, 3.0])


def model(wide: float = 1.0) -> Callable[[Tensor, Tensor], Normal]:
    def predict(x: Tensor, u: Tensor) -> Normal:
        return Normal(A.double() * x + B.double() * u, wide * S.double())

    return predict


def real_episode(steps: int, seed: int = 0) -> Episode:
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(steps, 1, generator=generator, dtype=torch.float64)
    x = torch.zeros(1, 2, dtype=torch.float64)
    observations = [x]
    for u in actions:
        noise = torch.randn(1, 2, generator=generator, dtype=torch.float64)
        x = A.double() * x + B.double() * u + S.double() * noise
        observations.append(x)
    return Episode(torch.cat(observations), actions, torch.zeros(steps, dtype=torch.float64), False)


def test_the_expected_shares_are_those_of_the_normal_distribution() -> None:
    assert expected_share() == pytest.approx(0.9544997361)
    assert expected_share(1.0) == pytest.approx(0.6826894921)


@pytest.mark.parametrize("wide", [0.25, 0.5, 1.0, 1.5])
def test_single_steps_have_the_calibration_of_the_model(wide: float) -> None:
    steps = 20_000
    episode = real_episode(steps)
    z = one_step_errors(model(wide), episode.observations, episode.actions)
    assert z.shape == (steps, 2)
    share = math.erf(2 * wide / math.sqrt(2))
    error = math.sqrt(share * (1 - share) / steps)
    assert bool(((share_inside(z) - share).abs() < 4 * error).all())
    # The mean square of a normal number has the relative deviation sqrt(2 / N), its root half that.
    rms = root_mean_square(z) * wide
    assert bool(((rms - 1).abs() < 4 * math.sqrt(2 / steps) / 2).all())


def test_rollouts_spread_as_the_closed_form_says() -> None:
    steps, particles = 20, 20_000
    episode = real_episode(steps)
    found = predict_episode(model(), None, episode, particles)
    assert found.trajectories.shape == (steps + 1, particles, 2)
    mean, std = moments(found.trajectories)
    expected = episode.observations[0]
    a, s = A.double(), S.double()
    for t in range(1, steps + 1):
        expected = a * expected + B.double() * episode.actions[t - 1]
        variance = s**2 * (1 - a ** (2 * t)) / (1 - a**2)
        assert bool(((mean[t] - expected).abs() < 4 * (variance / particles).sqrt()).all())
        assert bool(((std[t] / variance.sqrt() - 1).abs() < 4 / math.sqrt(2 * particles)).all())


@pytest.mark.parametrize("wide", [0.5, 1.0])
def test_rollouts_cover_as_much_as_the_model_tells_the_truth(wide: float) -> None:
    # Points of one trajectory err together: the last of each of many episodes is counted.
    episodes = 1000
    last = torch.stack(
        [
            predict_episode(model(wide), None, real_episode(5, seed), 200).rollout_errors[-1]
            for seed in range(episodes)
        ]
    )
    share = math.erf(2 * wide / math.sqrt(2))
    error = math.sqrt(share * (1 - share) / episodes)
    # A band of P particles is itself uncertain, by 1 / sqrt(2 P) of its width and in its middle:
    # z has Student's tails, which cost at most this much.
    bias = 2 * 2 * wide / (2 * 200)
    assert bool(((share_inside(last) - share).abs() < 4 * error + bias).all())


def test_a_policy_acts_in_the_rollouts_and_knows_what_they_observe() -> None:
    seen = []

    def act(step: int, x: Tensor) -> Tensor:
        seen.append((step, x))
        return x[:, :1] * 0 + 1.0

    found = draw_trajectories(torch.add, act, torch.zeros(3, 2, dtype=torch.float64), 4)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(found[:, 0, 0], torch.arange(5.0, dtype=torch.float64))
    assert torch.equal(found[2], seen[2][1])


def test_rollouts_may_draw_otherwise_than_the_model_says() -> None:
    episode = real_episode(3)
    found = predict_episode(model(), None, episode, 4, draw=lambda x, u: x * 0 + 7.0)
    assert bool((found.trajectories[1:] == 7).all())
    expected = one_step_errors(model(), episode.observations, episode.actions)
    assert torch.equal(found.one_step_errors, expected)


def test_a_policy_may_have_another_precision() -> None:
    episode = real_episode(3)
    found = predict_episode(model(), lambda x: x[:, :1].float(), episode, 4)
    assert found.trajectories.dtype == torch.float64


def test_predicting_leaves_the_training_its_random_numbers() -> None:
    episode = real_episode(3)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = predict_episode(model(), None, episode, 4, seed=5)
    assert torch.equal(torch.rand(2), expected)
    again = predict_episode(model(), None, episode, 4, seed=5)
    assert torch.equal(first.trajectories, again.trajectories)


def test_errors_where_a_prediction_is_certain_or_broken() -> None:
    real = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    mean = torch.tensor([1.0, 0.0, 0.0, math.nan, math.inf])
    std = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0])
    z = standardized_errors(real, mean, std)
    assert z.tolist() == [0.0, math.inf, 2.0, math.inf, math.inf]
    assert standardized_errors(real[:1], mean[:1] * 0, torch.tensor([math.inf])).isinf().all()
    assert float(share_inside(z[:, None])) == pytest.approx(0.4)  # 2 deviations are inside


def test_angles_err_the_shorter_way_round() -> None:
    wrapped = torch.tensor([[3.0], [-3.0], [3.1]], dtype=torch.float64)

    def turning(x: Tensor, u: Tensor) -> Normal:
        return Normal(x + 2 * math.pi - 6.0, torch.ones_like(x))

    z = one_step_errors(turning, wrapped, torch.zeros(2, 1, dtype=torch.float64), angles=(0,))
    assert float(z[0, 0]) == pytest.approx(0.0, abs=1e-12)
    assert float(z[1, 0]) == pytest.approx(6.1 - 2 * (2 * math.pi) + 6.0, abs=1e-12)
    went_on = unwrapped(wrapped, (0,))
    assert went_on[:, 0].tolist() == pytest.approx([3.0, 2 * math.pi - 3.0, 3.1])
    straight = torch.linspace(0, 20, 30, dtype=torch.float64)[:, None].repeat(1, 2)
    torch.testing.assert_close(unwrapped(straight, (1,)), straight)
    closed = torch.atan2(straight.sin(), straight.cos())
    torch.testing.assert_close(unwrapped(closed, (0, 1)), straight)


def test_only_normal_predictions_have_deviations() -> None:
    episode = real_episode(3)
    with pytest.raises(TypeError, match="must return a Normal; got Exponential"):
        one_step_errors(
            lambda x, u: Exponential(torch.ones_like(x)), episode.observations, episode.actions
        )


def test_a_true_model_is_seldom_called_too_sure_and_a_false_one_mostly() -> None:
    z = torch.randn(25, 20_000, dtype=torch.float64)
    # Of 25, 20 or fewer are inside with probability 0.0046, 21 or fewer with 0.024.
    rate = float(too_few_inside(z).double().mean())
    exact = sum(
        math.comb(25, k) * expected_share() ** k * (1 - expected_share()) ** (25 - k)
        for k in range(21)
    )
    assert exact < 0.01
    assert rate == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))
    assert float(too_few_inside(3 * z).double().mean()) > 0.99
    assert not too_few_inside(0.1 * z).any()


def test_what_is_logged_are_means_over_coordinates() -> None:
    rollout = torch.tensor([[0.0, 3.0], [0.0, 0.0]], dtype=torch.float64)
    step = torch.tensor([[3.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    found = Prediction(torch.zeros(3, 2), torch.zeros(3, 4, 2), rollout, step, ())
    assert found.metrics() == pytest.approx(
        {
            "calibration/rollout_inside": 0.75,
            "calibration/one_step_inside": 0.25,
            "calibration/one_step_rms": (3 + math.sqrt(8)) / 2,
        }
    )
