"""The chaotic network against a loop written by hand, and against what is known of it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from proppo_envs import ChaoticRNN

RNN = ChaoticRNN()


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_the_defaults_are_the_papers() -> None:
    assert RNN.weight == ((-5.0, -25.0), (5.0, 25.0))
    assert RNN.start == (0.35, 0.55)
    assert RNN.noise_std == 0.001
    assert RNN.horizon == 100


@pytest.mark.parametrize("beta", [1.0, 2.5, 3.5])
def test_a_rollout_agrees_with_a_loop_by_hand(beta: float) -> None:
    """Chaos magnifies rounding, so that every step starts from the loop's own state."""
    particles = 3
    noise = 0.001 * np.random.default_rng(0).standard_normal((100, particles, 2))
    x = RNN.initial_state(particles, dtype=torch.float64)
    for t in range(RNN.horizon):
        expected = np.empty((particles, 2))
        for index in range(particles):
            first, second = x[index].tolist()
            expected[index, 0] = 1 / (1 + math.exp(-beta * (-5.0 * first + 5.0 * second)))
            expected[index, 1] = 1 / (1 + math.exp(-beta * (-25.0 * first + 25.0 * second)))
        actual = RNN.mean(x, scalar(beta))
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)
        x = torch.from_numpy(expected + noise[t])
    losses = [0.5 * ((1 - a) ** 2 + (1 - b) ** 2) for a, b in x.tolist()]
    np.testing.assert_allclose(RNN.cost(x).numpy(), losses, rtol=1e-14)


def test_the_transition_is_normal_around_the_mean() -> None:
    x = RNN.initial_state(4, dtype=torch.float64)
    distribution = RNN.transition(x, scalar(2.5))
    assert isinstance(distribution, torch.distributions.Normal)
    assert torch.equal(distribution.loc, RNN.mean(x, scalar(2.5)))
    assert distribution.batch_shape == (4, 2)
    assert distribution.loc.dtype == distribution.scale.dtype == torch.float64
    assert bool((distribution.scale == 0.001).all())


@pytest.mark.parametrize("shape", [(), (1,), (5, 1), (1, 1)])
def test_shapes_of_beta(shape: tuple[int, ...]) -> None:
    x = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
    beta = torch.full(shape, 2.5)
    torch.testing.assert_close(RNN.mean(x, beta), RNN.mean(x, torch.tensor(2.5)))
    assert RNN.transition(x, beta).batch_shape == (5, 2)


def test_each_particle_can_have_its_beta() -> None:
    x = torch.rand(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    betas = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    together = RNN.mean(x, betas)
    for index in range(3):
        torch.testing.assert_close(together[index], RNN.mean(x[index], betas[index]))


def test_the_initial_state() -> None:
    x = RNN.initial_state(3)
    assert x.shape == (3, 2)
    assert x.dtype == torch.get_default_dtype()
    assert RNN.initial_state(3, dtype=torch.float64, device="cpu").dtype == torch.float64
    x[0] = 9.0  # each particle has memory of its own
    torch.testing.assert_close(x[1:], torch.tensor([[0.35, 0.55]]).expand(2, 2))


def test_gradients() -> None:
    x = torch.rand(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    beta = torch.tensor([2.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(RNN.mean, (x, beta))
    assert torch.autograd.gradcheck(RNN.cost, (x,))


def lyapunov_exponent(beta: float, noise_std: float) -> float:
    """Mean logarithm of the growth of a small displacement in one step."""
    generator = torch.Generator().manual_seed(0)
    x = RNN.initial_state(50, dtype=torch.float64)
    direction = torch.ones_like(x) * torch.tensor([1.0, 0.3], dtype=torch.float64)
    total, burn_in, steps = 0.0, 200, 800
    for t in range(steps):
        mean = RNN.mean(x, scalar(beta))
        moved = (RNN.mean(x + 1e-7 * direction, scalar(beta)) - mean) / 1e-7
        growth = moved.norm(dim=-1, keepdim=True)
        direction = moved / growth
        if t >= burn_in:
            total += growth.log().mean().item()
        x = mean + noise_std * torch.randn(50, 2, generator=generator, dtype=torch.float64)
    return total / (steps - burn_in)


def test_chaos_sets_in_with_beta() -> None:
    """Contracting below the transition near 2.5 and expanding above it (Wang, 1991).

    Reading W as columns times rows would contract at every beta.
    """
    assert lyapunov_exponent(1.0, 0.0) < -0.1
    assert lyapunov_exponent(2.0, 0.001) < -0.1
    assert lyapunov_exponent(3.0, 0.001) > 0.2
    assert lyapunov_exponent(3.5, 0.001) > 0.2


def test_the_period_doubles_before_chaos() -> None:
    def period(beta: float) -> int:
        x = RNN.initial_state(1, dtype=torch.float64)
        seen = []
        for t in range(3000):
            x = RNN.mean(x, scalar(beta))
            if t >= 2900:
                seen.append(round(x[0, 0].item(), 6))
        return len(set(seen))

    assert [period(beta) for beta in (1.0, 2.0, 2.4)] == [1, 2, 4]


def test_it_is_frozen_and_its_constants_can_be_replaced() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RNN.horizon = 3  # type: ignore[misc]
    assert dataclasses.replace(RNN, horizon=15).horizon == 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": ((1.0, 2.0),)}, "weight: expected two rows of two numbers, got"),
        ({"start": (0.1,)}, "start: expected two numbers, got"),
        ({"noise_std": 0.0}, "noise_std: expected a positive finite number, got 0.0"),
        ({"noise_std": math.nan}, "noise_std: expected .*, got nan"),
        ({"horizon": 0}, "horizon: expected at least 1, got 0"),
    ],
)
def test_wrong_constants_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RNN, **options)  # type: ignore[arg-type]


def test_wrong_particles_are_refused() -> None:
    with pytest.raises(ValueError, match="particles: expected at least 1, got 0"):
        RNN.initial_state(0)


@pytest.mark.parametrize("shape", [(), (3,), (5, 1)])
def test_wrong_states_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \[P, 2\], got"):
        RNN.mean(torch.zeros(shape), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"x: expected shape \[P, 2\], got"):
        RNN.cost(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2,), (5,), (5, 2), (4, 1), (1, 5, 1)])
def test_wrong_betas_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"beta: expected shape \[\], \[1\] or \[5, 1\], got"):
        RNN.mean(torch.zeros(5, 2), torch.ones(shape))


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match=r"beta: expected a torch\.Tensor, got float"):
        RNN.transition(torch.zeros(5, 2), 2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="x: expected a floating-point tensor, got dtype"):
        RNN.cost(torch.zeros(5, 2, dtype=torch.int64))
