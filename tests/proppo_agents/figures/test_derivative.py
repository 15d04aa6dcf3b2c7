"""Fig. 8b: RP's derivative with the seed held is the one that the library computes."""

from __future__ import annotations

import pytest
import torch

from lightning_proppo import PropagationManager
from proppo_agents.figures import derivative
from proppo_agents.figures.derivative import CHUNK, Settings, derivatives
from proppo_agents.figures.experiment import silent_bar
from proppo_envs import ChaoticRNN

from ...given_noise import Given

HORIZON, PARTICLES = 12, 6


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(HORIZON, PARTICLES, 2, dtype=torch.float64)


def test_costs_and_derivatives_are_those_of_finite_differences(noise: torch.Tensor) -> None:
    betas = torch.tensor([1.0, 2.0, 2.4], dtype=torch.float64)
    costs, found = derivatives(betas, noise)
    assert costs.shape == found.shape == (3, PARTICLES)
    step = 1e-6
    high, low = derivatives(betas + step, noise)[0], derivatives(betas - step, noise)[0]
    torch.testing.assert_close(found, (high - low) / (2 * step), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("beta", [2.0, 3.5])
def test_it_is_the_managers_rp_with_the_same_noise(beta: float, noise: torch.Tensor) -> None:
    system = ChaoticRNN(horizon=HORIZON)
    parameter = torch.tensor([beta], dtype=torch.float64, requires_grad=True)
    manager = PropagationManager("RP")
    x = system.initial_state(PARTICLES, torch.float64)
    for step in noise:
        x = manager.sample(Given(system.mean(x, parameter), system.noise_std, step))
    (expected,) = torch.autograd.grad(manager.loss(system.cost(x)), parameter)
    _, found = derivatives(parameter.detach(), noise)
    torch.testing.assert_close(found.mean(1), expected)


def test_a_beta_does_not_depend_on_those_beside_it() -> None:
    settings = Settings(betas=CHUNK + 5, particles=4, horizon=10)
    rows = list(derivative.compute(settings, silent_bar()))
    assert [row["beta"] for row in rows] == pytest.approx(
        torch.linspace(1, 4, CHUNK + 5, dtype=torch.float64).tolist()
    )
    alone = list(derivative.compute(Settings(betas=2, particles=4, horizon=10), silent_bar()))
    assert rows[-1]["derivative"] == pytest.approx(alone[-1]["derivative"], rel=1e-9)


def test_the_claims_of_the_paper() -> None:
    rows = list(derivative.compute(Settings(betas=61, particles=50), silent_bar()))
    for claim in derivative.claims(rows):
        assert claim.holds, claim


def test_the_claims_fail_where_there_is_no_chaos() -> None:
    calm = [
        {"beta": 1 + 0.05 * i, "cost": 0.1, "derivative": 0.5, "standard_deviation": 0.1}
        for i in range(61)
    ]
    assert [claim.holds for claim in derivative.claims(calm)] == [True, False, False]
