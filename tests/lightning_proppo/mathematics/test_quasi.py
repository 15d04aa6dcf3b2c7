"""Quasi-random noise: each particle's is normal, the batch's is even."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from lightning_proppo import PropagationManager
from lightning_proppo.mathematics.quasi import quasi_random_normal
from lightning_proppo.propagators.normal import draw_normal


def test_each_particle_has_normal_noise() -> None:
    """Kolmogorov-Smirnov for one particle's noise over repetitions, at a level of 1e-6."""
    loc = torch.randn(16, 2, dtype=torch.float64)
    draws = torch.stack([quasi_random_normal(loc)[3] for _ in range(2000)])
    for column in draws.T:
        ranks = torch.arange(1, 2001, dtype=torch.float64) / 2000
        distance = (torch.special.ndtr(column.sort().values) - ranks).abs().max()
        assert float(distance) < (-0.5 * torch.log(torch.tensor(0.5e-6)) / 2000).sqrt()
    assert abs(float(torch.corrcoef(draws.T)[0, 1])) < 5 / 2000**0.5


def test_the_mean_is_far_closer_to_zero_than_of_independent_noise() -> None:
    loc = torch.randn(1024, 3, dtype=torch.float64)
    means = torch.stack([quasi_random_normal(loc).mean(0) for _ in range(50)])
    assert float(means.square().mean()) < 0.01 / 1024


def test_neighbours_get_noise_unlike_each_others() -> None:
    loc = torch.arange(512, dtype=torch.float64).unsqueeze(1)[torch.randperm(512)]
    noise = quasi_random_normal(loc)[loc[:, 0].argsort()]
    sums = noise.reshape(32, 16).mean(1)
    assert float(sums.square().mean()) < 0.2 / 16


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 2, 3)])
def test_shape_and_type_are_those_of_the_location(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.float64):
        noise = quasi_random_normal(torch.zeros(shape, dtype=dtype))
        assert noise.shape == shape
        assert noise.dtype == dtype
        assert bool(noise.isfinite().all())


def test_too_many_dimensions_are_named() -> None:
    with pytest.raises(ValueError, match=r"fewer than 21201 dimensions.*\[2, 30000\]"):
        quasi_random_normal(torch.zeros(2, 30000))


@pytest.mark.parametrize("noise", ["independent", "quasi-random"])
def test_a_sample_is_made_of_the_noise_that_is_kept(noise: str) -> None:
    loc, scale = torch.randn(8, 2, dtype=torch.float64), torch.rand(8, 2, dtype=torch.float64)
    draw = draw_normal(Normal(loc, scale), None, noise)
    torch.testing.assert_close(draw.sample, loc + scale * draw.noise)
    torch.testing.assert_close(draw.path(), draw.sample)


def test_back_propagation_goes_through_it() -> None:
    loc, scale = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, 0.3))
    manager = PropagationManager("RP", noise="quasi-random")
    x = manager.sample(Normal(loc.expand(8, 1), scale.expand(8, 1)))
    of_loc, of_scale = torch.autograd.grad(manager.loss(x), [loc, scale])
    assert float(of_loc) == pytest.approx(1.0)
    assert float(of_scale) == pytest.approx(float(((x - loc) / scale).detach().mean()))
