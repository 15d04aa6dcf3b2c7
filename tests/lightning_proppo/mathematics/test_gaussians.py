"""Fitted Gaussians and the shaped statistic, against numpy, autograd and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from lightning_proppo import PropagationManager, expand, mean_baseline, no_baseline
from lightning_proppo.mathematics.gaussians import (
    cholesky,
    combine_gaussians,
    fit_gaussian,
    gaussian_moments,
    sample_gaussian,
    shaped_statistic,
)
from lightning_proppo.mathematics.precision import full_precision
from lightning_proppo.propagators import GSLoss, LRProp, TotalProp

P, D = 9, 3


def particles(seed=0, count=P, dimensions=D):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, dimensions, generator=generator, dtype=torch.float64)
    return noise @ mixing + 2.0


def symmetric(seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    return matrix + matrix.T


@given(st.integers(0, 100), st.integers(2, 12), st.integers(1, 4))
def test_the_fit_is_that_of_numpy(seed, count, dimensions):
    x = particles(seed, count, dimensions)
    mean, covariance = fit_gaussian(x)
    np.testing.assert_allclose(mean, x.numpy().mean(0), rtol=1e-10)
    expected = np.cov(x.numpy().T, ddof=1).reshape(dimensions, dimensions)
    np.testing.assert_allclose(covariance, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(covariance, covariance.T, rtol=1e-12, atol=1e-12)


def test_the_fit_is_differentiable():
    x = particles().requires_grad_()
    assert torch.autograd.gradcheck(fit_gaussian, [x])


def test_a_single_particle_has_no_fit():
    with pytest.raises(ValueError, match=r"at least 2 particles; got .*\[1, 3\]"):
        fit_gaussian(torch.zeros(1, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_fit_has_32_bits_at_least(dtype):
    mean, covariance = fit_gaussian(particles().to(dtype))
    expected = torch.promote_types(dtype, torch.float32)
    assert mean.dtype == covariance.dtype == expected


def test_autocast_changes_nothing():
    x = particles().float()
    plain = fit_gaussian(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x.T).dtype == torch.bfloat16
        assert all(torch.equal(a, b) for a, b in zip(plain, fit_gaussian(x), strict=True))
        with full_precision(x):
            assert (x @ x.T).dtype == torch.float32


@given(st.integers(0, 100))
def test_the_factor_of_a_positive_definite_matrix_is_exact(seed):
    _, covariance = fit_gaussian(particles(seed, count=20))
    factor = cholesky(covariance)
    torch.testing.assert_close(factor @ factor.T, covariance)
    assert torch.equal(factor, factor.tril())
    assert bool((factor.diagonal() > 0).all())


def test_a_singular_matrix_gets_as_little_jitter_as_it_takes():
    """Fewer particles than dimensions, and coordinates that depend on each other."""
    few = fit_gaussian(particles(count=3))[1]
    line = torch.ones(3, 3, dtype=torch.float64)
    for covariance in (few, line):
        factor = cholesky(covariance)
        off = (factor @ factor.T - covariance).abs().amax() / covariance.diagonal().mean()
        assert float(off) < 1e-7  # in 64 bits the first jitter is enough


@pytest.mark.parametrize(
    ("matrix", "came"),
    [
        (torch.zeros(2, 2), r"\[0.0, 0.0\]"),
        (torch.full((2, 2), float("nan")), "nan"),
        (torch.full((2, 2), float("inf")), "inf"),
        (-torch.eye(2), r"\[-1.0, -1.0\]"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), r"\[1.0, 1.0\]"),
    ],
)
def test_a_matrix_that_is_no_covariance_is_refused(matrix, came):
    with pytest.raises(
        ValueError, match=f"finite and positive definite; got a diagonal of .*{came}"
    ):
        cholesky(matrix)


def test_samples_have_the_moments_of_their_gaussian():
    mean, covariance = fit_gaussian(particles())
    x = sample_gaussian(mean, covariance, 200_000)
    error = (covariance.diagonal() / 200_000).sqrt()
    # Of 12 numbers one is beyond 5 deviations once in 140,000 times.
    assert bool(((x.mean(0) - mean).abs() < 5 * error).all())
    found = fit_gaussian(x)[1]
    spread = (covariance**2 + covariance.diagonal().outer(covariance.diagonal())) / 200_000
    assert bool(((found - covariance).abs() < 5 * spread.sqrt()).all())


def test_samples_are_differentiable_functions_of_mean_and_covariance():
    mean, covariance = (t.clone().requires_grad_() for t in fit_gaussian(particles(count=20)))

    def draw(mean, covariance):
        torch.manual_seed(0)
        return sample_gaussian(mean, (covariance + covariance.T) / 2, 4)

    assert torch.autograd.gradcheck(draw, [mean, covariance])


# -- the shaped statistic ------------------------------------------------------------------------


def statistic_by_loops(x, mean_gradient, covariance_gradient):
    centred = [row - x.mean(0) for row in x]
    scatter = sum(torch.outer(d, d) for d in centred) / len(centred)
    values = [
        mean_gradient @ d + ((torch.outer(d, d) - scatter) * covariance_gradient).sum()
        for d in centred
    ]
    return torch.stack(values).unsqueeze(1)


def shaped(x, mean_gradient, covariance_gradient):
    centred = x - x.mean(0)
    scatter = centred.T @ centred / len(x)
    return shaped_statistic(centred, scatter, mean_gradient, covariance_gradient)


@given(st.integers(0, 100))
def test_the_statistic_is_that_of_its_formula(seed):
    x, mean_gradient, matrix = particles(seed), particles(seed + 1)[0], symmetric(seed)
    found = shaped(x, mean_gradient, matrix)
    assert found.shape == (P, 1)
    torch.testing.assert_close(found, statistic_by_loops(x, mean_gradient, matrix))
    torch.testing.assert_close(found.mean(), torch.zeros((), dtype=torch.float64))


@given(st.integers(0, 30))
def test_the_statistic_is_the_derivative_with_respect_to_each_particles_weight(seed):
    """Of E[c] under the Gaussian fitted to weighted particles, weights w_i / sum w, at w_i = 1.

    For c(x) = b x + x' A x that expectation is b mu + mu' A mu + tr(A Sigma).
    """
    x, slope, matrix = particles(seed), particles(seed + 1)[0], symmetric(seed)

    def expectation(weights):
        share = weights / weights.sum()
        mean = share @ x
        centred = x - mean
        covariance = (share * centred.T) @ centred
        return slope @ mean + mean @ matrix @ mean + (matrix * covariance).sum()

    weights = torch.ones(P, dtype=torch.float64, requires_grad=True)
    (by_weight,) = torch.autograd.grad(expectation(weights), weights)
    mean = x.mean(0)
    found = shaped(x, slope + 2.0 * matrix @ mean, matrix)
    torch.testing.assert_close(found.squeeze(1) / P, by_weight)


def test_the_statistic_of_a_quadratic_cost_is_the_cost_less_its_mean():
    """So that Gaussian shaping is then LR with the mean cost for a baseline."""
    x, slope, matrix = particles(), particles(1)[0], symmetric(0)
    cost = x @ slope + ((x @ matrix) * x).sum(1)
    found = shaped(x, slope + 2.0 * matrix @ x.mean(0), matrix)
    torch.testing.assert_close(found.squeeze(1), cost - cost.mean())


# -- in use: against the same computation written out by hand --------------------------------------


def dynamics(x, theta):
    return Normal((x + theta).sin(), 0.3)


def cost(x):
    return (x.square() * torch.tensor([1.0, 0.5], dtype=x.dtype)).sum(1) + x.sin().prod(1)


@pytest.fixture
def theta():
    return torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("horizon", [1, 3])
def test_gaussian_resampling_is_back_propagation_through_fit_and_draw(horizon, theta):
    def unrolled(sample):
        torch.manual_seed(0)
        x = torch.zeros(P, 2, dtype=torch.float64)
        total = torch.zeros(P, dtype=torch.float64)
        for _ in range(horizon):
            x = sample(dynamics(x, theta))
            total = total + cost(x)
        return total

    def by_hand(dist):
        return sample_gaussian(*fit_gaussian(dist.rsample()), P)

    (expected,) = torch.autograd.grad(unrolled(by_hand).mean(), theta)
    manager = PropagationManager("GR")
    (found,) = torch.autograd.grad(manager.loss(unrolled(manager.sample)), theta)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("name", ["GS", "GS without baseline", "TP+GS"])
def test_gaussian_shaping_is_lr_with_the_shaped_statistics_for_losses(name, horizon, theta):
    """With TP's weights all on LR; each score is weighed by the statistics from its step on."""
    if name == "GS":
        manager = PropagationManager("GS")
    elif name == "GS without baseline":
        manager = PropagationManager(LRProp(baseline=False), GSLoss())
    else:
        sampler = TotalProp(base={"var_weighting_func": lambda lr, rp: (1.0, 0.0)})
        manager = PropagationManager(sampler, GSLoss())
    torch.manual_seed(0)
    x = torch.zeros(P, 2, dtype=torch.float64)
    state = torch.get_rng_state()
    for _ in range(horizon):
        each = expand(theta, P)
        options = {"ivw_target": each} if name == "TP+GS" else {}
        x = manager.sample(dynamics(x, each), **options)
        manager.append_loss(x, lossfunc=cost)
    (found,) = torch.autograd.grad(manager.loss(), theta)

    torch.set_rng_state(state)
    x = torch.zeros(P, 2, dtype=torch.float64)
    scores, statistics = [], []
    for _ in range(horizon):
        each = theta.detach().expand(P, 2).clone().requires_grad_()
        dist = dynamics(x, each)
        x = dist.sample()
        (score,) = torch.autograd.grad(dist.log_prob(x).sum(), each)
        mean, covariance = (t.requires_grad_() for t in fit_gaussian(x))
        fresh = sample_gaussian(mean, covariance, P)
        slope, matrix = torch.autograd.grad(cost(fresh).mean(), [mean, covariance])
        scores.append(score)
        statistics.append(shaped(x, slope, matrix))
    baseline = no_baseline if name == "GS without baseline" else mean_baseline
    expected = sum(
        (baseline(sum(statistics[t:])) * score).mean(0) for t, score in enumerate(scores)
    )
    torch.testing.assert_close(found, expected)


def test_a_state_may_be_in_parts_of_any_shape(theta):
    """A dict, a tuple or a list is shaped as the same numbers side by side are."""
    gradients = []

    def parts_cost(position, rest):
        return cost(torch.cat([position.unsqueeze(1), rest.flatten(1)], 1))

    forms = {
        "whole": (lambda x: x, cost),
        "dict": (lambda x: {"position": x[:, 0], "rest": x[:, 1:].unsqueeze(2)}, parts_cost),
        "tuple": (lambda x: (x[:, 0], x[:, 1:]), lambda parts: parts_cost(*parts)),
        "list": (
            lambda x: [x[:, :1], x[:, 1]],
            lambda parts: cost(torch.cat([parts[0], parts[1][:, None]], 1)),
        ),
    }
    for make, function in forms.values():
        manager = PropagationManager("GS")
        torch.manual_seed(0)
        x = manager.sample(dynamics(torch.zeros(P, 2, dtype=torch.float64), theta))
        manager.append_loss(make(x), lossfunc=function)
        gradients.append(torch.autograd.grad(manager.loss(), theta)[0])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0])


def test_batches_combine_to_the_fit_of_all():
    x = particles(count=12) + torch.arange(12, dtype=torch.float64).unsqueeze(1)
    means, scatters = zip(*(gaussian_moments(batch) for batch in x.split(4)), strict=True)
    found = combine_gaussians(torch.stack(means), torch.stack(scatters), 4)
    for a, b in zip(found, fit_gaussian(x), strict=True):
        torch.testing.assert_close(a, b)
