"""Fig. 8c: the landscape is that of the perturbed network, and rough only where there is chaos."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from proppo_agents.figures import landscape
from proppo_agents.figures.experiment import silent_bar
from proppo_agents.figures.landscape import Settings, as_grid, costs, roughness

SMALL = Settings(points=150)


def test_the_settings_are_the_papers() -> None:
    settings = Settings()
    assert (settings.points, settings.beta, settings.horizon) == (500, 3.5, 15)
    assert settings.perturbation == 0.1
    (first, second), below = settings.system.weight
    assert first != -5.0
    assert abs(first + 5.0) < 0.4  # four standard deviations
    assert (second, *below) == (-25.0, 5.0, 25.0)


def test_costs_agree_with_a_loop_by_hand() -> None:
    settings = Settings(points=4, horizon=5)
    side, found = costs(settings)
    assert side.tolist() == [0.125, 0.375, 0.625, 0.875]
    (a, b), (c, d) = settings.system.weight
    for i, second_start in enumerate(side.tolist()):
        for j, first_start in enumerate(side.tolist()):
            first, second = first_start, second_start
            for _ in range(5):
                first, second = (
                    1 / (1 + math.exp(-3.5 * (a * first + c * second))),
                    1 / (1 + math.exp(-3.5 * (b * first + d * second))),
                )
            expected = 0.5 * ((1 - first) ** 2 + (1 - second) ** 2)
            assert found[i, j].item() == pytest.approx(expected, rel=1e-8)


def test_without_the_perturbation_it_depends_on_one_coordinate_only() -> None:
    """W has rank 1: only the difference of the neurons is seen, and so nothing else to draw."""
    _, found = costs(dataclasses.replace(SMALL, perturbation=0.0, horizon=5))
    torch.testing.assert_close(found[1:, 1:], found[:-1, :-1])


def test_roughness_of_smooth_and_of_random_images() -> None:
    side = torch.linspace(0, 1, 200, dtype=torch.float64)
    smooth = torch.sin(3 * side)[:, None] * side
    assert roughness(smooth) == pytest.approx(0.5, abs=0.01)
    assert roughness(torch.rand(200, 200, dtype=torch.float64)) == pytest.approx(1.0, abs=0.02)


def test_the_claim_of_the_paper_holds_in_chaos_and_not_before_it() -> None:
    for beta, rough in ((3.5, True), (1.0, False)):
        rows = list(landscape.compute(dataclasses.replace(SMALL, beta=beta), silent_bar()))
        [claim] = landscape.claims(rows)
        assert claim.holds is rough, claim


def test_the_table_is_the_image() -> None:
    settings = Settings(points=7)
    rows = list(landscape.compute(settings, silent_bar()))
    _, found = costs(settings)
    torch.testing.assert_close(as_grid(rows), found, rtol=0.0, atol=1e-6)
    assert (rows[1]["x1"], rows[1]["x2"]) == (round(1.5 / 7, 6), round(0.5 / 7, 6))
