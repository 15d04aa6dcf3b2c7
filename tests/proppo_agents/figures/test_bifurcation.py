"""Fig. 8a: what the noiseless network does in the end, and that the diagram keeps all of it."""

from __future__ import annotations

import math

import pytest
import torch

from proppo_agents.figures import bifurcation
from proppo_agents.figures.bifurcation import RESOLUTION, Settings, periods, trajectories
from proppo_agents.figures.experiment import Row, silent_bar

SETTINGS = Settings(betas=61, steps=3000, kept=200)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(bifurcation.compute(SETTINGS, silent_bar()))


def test_a_trajectory_agrees_with_a_loop_by_hand() -> None:
    """For a few steps: chaos magnifies rounding."""
    found = trajectories(torch.tensor([1.5, 3.5], dtype=torch.float64), 20, 5, silent_bar())
    assert found.shape == (5, 2)
    for column, beta in enumerate((1.5, 3.5)):
        first, second = 0.35, 0.55
        seen = []
        for _ in range(20):
            first, second = (
                1 / (1 + math.exp(-beta * (-5.0 * first + 5.0 * second))),
                1 / (1 + math.exp(-beta * (-25.0 * first + 25.0 * second))),
            )
            seen.append(first)
        torch.testing.assert_close(
            found[:, column], torch.tensor(seen[-5:], dtype=torch.float64), rtol=1e-6, atol=0.0
        )


def test_every_kept_state_is_in_the_table(rows: list[Row]) -> None:
    visits: dict[float, int] = {}
    for row in rows:
        visits[row["beta"]] = visits.get(row["beta"], 0) + row["visits"]
    assert list(visits) == [round(1 + 0.05 * step, 6) for step in range(61)]
    assert set(visits.values()) == {SETTINGS.kept}
    assert all(0 < row["x1"] < 1 for row in rows)


def test_a_fixed_point_then_two_cycles_then_four_then_chaos(rows: list[Row]) -> None:
    found = periods(rows)
    assert found[1.0] == found[1.2] == 1
    assert [found[beta] for beta in (1.3, 1.5, 2.0, 2.15)] == [2, 2, 2, 2]
    assert [found[beta] for beta in (2.25, 2.4, 2.45)] == [4, 4, 4]
    assert found[2.55] == 8
    assert all(found[beta] > 64 for beta in (2.7, 3.0, 3.3, 3.6, 4.0))


def test_the_claims_of_the_paper(rows: list[Row]) -> None:
    fixed_point, order, onset = bifurcation.claims(rows)
    assert fixed_point.holds
    assert order.holds
    # Without noise chaos begins a little later than "around 2.5": docs/figures.md says so.
    assert "is 2.65" in onset.measured
    assert not onset.holds


def test_with_the_papers_noise_chaos_begins_between_2_50_and_2_57() -> None:
    """The largest Lyapunov exponent, from the product of the Jacobians."""
    system = bifurcation.ChaoticRNN()
    weight = torch.tensor(system.weight, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    betas = torch.tensor([2.50, 2.57], dtype=torch.float64)[:, None, None]
    x = system.initial_state(50, torch.float64).expand(2, 50, 2)
    direction = torch.tensor([1.0, 0.3], dtype=torch.float64).expand(2, 50, 2)
    growth = torch.zeros(2, 50, dtype=torch.float64)
    steps, burn_in = 1500, 300
    for step in range(steps):
        mean = system.mean(x, betas)
        moved = mean * (1 - mean) * betas * (direction @ weight)
        size = moved.norm(dim=-1, keepdim=True)
        direction = moved / size
        if step >= burn_in:
            growth += size.log().squeeze(-1)
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = mean + system.noise_std * noise
    exponents = growth / (steps - burn_in)
    mean, error = exponents.mean(1), exponents.std(1) / 50**0.5
    # Independent trajectories; a false alarm at 5 standard errors has a chance below 1e-6.
    assert mean[0] + 5 * error[0] < 0 < mean[1] - 5 * error[1]


def test_cells_side_by_side_are_one_state() -> None:
    cells = [0.5, 0.5 + RESOLUTION, 0.5 + 2 * RESOLUTION, 0.6]
    assert periods([{"beta": 1.0, "x1": x1, "visits": 1} for x1 in cells]) == {1.0: 2}
