"""The mathematics of the guard: significance, differences by feature, folding, doubt."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_proppo.mathematics.disagreement import (
    LEAST,
    MOST,
    SKETCH,
    differences_by_feature,
    doubt,
    fold,
    limit,
    squared_error,
)

F = torch.float64


def test_a_squared_error_is_that_about_zero() -> None:
    d = torch.randn(20, 3, dtype=F)
    total = d.sum(0, keepdim=True)
    squares = (d - d.mean(0)).square().sum().reshape(1)
    torch.testing.assert_close(squared_error(total, squares, 20), d.square().sum().reshape(1))


@pytest.mark.parametrize("weight", [0.5, 1e-2, 1e-9, 0.0])
def test_the_limit_rises_as_lr_becomes_dear_and_ends_at_five_errors(weight: float) -> None:
    found = limit(torch.tensor(weight, dtype=F), 1)
    expected = min(LEAST - 2 * math.log(weight), MOST) if weight else MOST
    assert float(found) == pytest.approx(expected)


def test_the_limit_of_few_particles_is_a_t_tests() -> None:
    """Of |u|^2 = t^2 P / (P - 1 + t^2), where t^2 is a difference over its centred error."""
    particles = 30
    found = float(limit(torch.tensor(0.0), 1, particles))
    t_squared = (particles - 1) * found / (particles - found)
    nu = particles - 1
    assert t_squared == pytest.approx(nu * math.expm1(MOST / nu))
    # Student's t with 29 degrees of freedom exceeds 6.3 in 7e-7 of all cases.
    assert math.sqrt(t_squared) == pytest.approx(6.3, abs=0.05)


def test_one_particle_proves_nothing() -> None:
    assert float(limit(torch.tensor(0.0), 1, 1)) == math.inf


def test_more_tests_take_more_evidence() -> None:
    one, many = (float(limit(torch.tensor(0.5), tests)) for tests in (1, 20))
    assert many - one == pytest.approx(2 * math.log(20))


def test_differences_by_feature_are_sums_over_particles() -> None:
    rows, past = torch.randn(2, 9, 3, dtype=F), torch.randn(2, 9, 4, dtype=F)
    mean = past.mean(1)
    values, scales = differences_by_feature(rows, past, mean)
    for t in range(2):
        for a in range(3):
            for f in range(5):
                phi = torch.ones(9, dtype=F) if f == 0 else past[t, :, f - 1] - mean[t, f - 1]
                product = rows[t, :, a] * phi
                assert float(values[t, a, f]) == pytest.approx(float(product.sum()))
                assert float(scales[t, a, f]) == pytest.approx(float(product.square().sum()))


def test_folding_keeps_squares_and_products_on_average() -> None:
    """Over 400 draws of signs; 4.5 standard errors, by chance exceeded once in 1e5."""
    x, y = torch.randn(5, 200, dtype=F), torch.randn(5, 200, dtype=F)
    draws = [2.0 * torch.randint(0, 2, (200,)) - 1.0 for _ in range(400)]
    products = torch.stack([(fold(x, s) * fold(y, s)).sum(-1) for s in draws])
    error = products.std(0) / 20
    assert bool(((products.mean(0) - (x * y).sum(-1)).abs() < 4.5 * error).all())
    assert fold(x, draws[0]).shape == (5, SKETCH)


def test_doubt_makes_the_mean_squared_error_of_an_average_least() -> None:
    """Among all weights k on LR: k^2 V_LR / M + (1 - k)^2 (V_RP / M + b^2)."""
    grid = torch.linspace(0, 1, 100_001, dtype=F)
    for v_lr, v_rp, b, gradients in [(1.0, 0.1, 0.3, 30), (2.0, 3.0, 0.1, 10), (1.0, 0.0, 0.2, 1)]:
        k = v_rp / (v_lr + v_rp)
        q = float(doubt(torch.tensor(b**2 / (v_lr + v_rp), dtype=F), gradients))
        found = k + (1 - k) * q
        error = grid**2 * v_lr / gradients + (1 - grid) ** 2 * (v_rp / gradients + b**2)
        assert found == pytest.approx(float(grid[error.argmin()]), abs=2e-5)
