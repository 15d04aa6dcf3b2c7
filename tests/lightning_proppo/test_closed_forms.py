"""RP and LR, through the public manager, against exact gradients and variances.

``exact_moments.py`` beside this file has the problems, the quadrature and the checks, and says at
what rate they raise a false alarm. Two ways to many independent estimates: a leaf with a value of
its own for each particle collects the single-particle estimates of one large rollout; where an
estimator couples few particles, rollouts are repeated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_proppo import PropagationManager, mean_baseline
from lightning_proppo.propagators import LRProp, RPProp

from .exact_moments import (
    CHAIN,
    COEFFICIENTS,
    FREQUENCY,
    SINE,
    SINGLE,
    Chain,
    Exact,
    Problem,
    Single,
    assert_mean,
    assert_variance,
    leave_one_out_by_hand,
    leave_one_out_variance,
    lr_with_many_particles,
    lr_without_baseline,
    rollout_estimates,
    rp,
    single_particle_estimates,
    z_scores,
)

MANY = 1_500_000
PROBLEMS = [*SINGLE, CHAIN]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# What is true, by hand. Of a single sample: gradient, and variances of RP and LR.


def polynomial_forms(cost: Single, baseline: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """With the cost A + B eps + C eps^2; a baseline of None is the expected cost A + C."""
    mu, sigma = cost.values
    c0, c1, c2 = COEFFICIENTS[cost.name]
    a, b, c = c0 + c1 * mu + c2 * mu**2, sigma * (c1 + 2 * c2 * mu), sigma**2 * c2
    delta = a + c - (a + c if baseline is None else baseline)
    gradient = vector(b, 2 * c) / sigma
    v_rp = vector(4 * c**2, b**2 + 8 * c**2) / sigma**2
    v_lr = vector(
        delta**2 + 2 * b**2 + 10 * c**2 + 4 * delta * c,
        2 * delta**2 + 10 * b**2 + 56 * c**2 + 16 * delta * c,
    )
    return gradient, v_rp, v_lr / sigma**2


def sine_forms(baseline: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """From E[He_n(eps) exp(i s eps)] = (i s)^n exp(-s^2 / 2)."""
    (mu, sigma), omega = SINE.values, FREQUENCY
    t = omega * sigma
    e1, e2 = math.exp(-(t**2) / 2), math.exp(-2 * t**2)
    sin, cos2 = e1 * math.sin(omega * mu), e2 * math.cos(2 * omega * mu)
    gradient = vector(omega * e1 * math.cos(omega * mu), -omega * t * sin)
    b = sin if baseline is None else baseline
    v_rp = omega**2 / 2 * vector(1 + cos2, 1 + (1 - 4 * t**2) * cos2)
    v_lr = vector(
        (1 - (1 - 4 * t**2) * cos2) / 2 - 2 * b * (1 - t**2) * sin + b**2,
        1 - (8 * t**4 - 8 * t**2 + 1) * cos2 - 2 * b * (t**4 - 4 * t**2 + 2) * sin + 2 * b**2,
    )
    return gradient, v_rp - gradient**2, v_lr / sigma**2 - gradient**2


def single_forms(cost: Single, baseline: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    return sine_forms(baseline) if cost is SINE else polynomial_forms(cost, baseline)


@pytest.mark.parametrize("cost", SINGLE, ids=str)
def test_the_quadrature_of_a_single_sample_gives_the_closed_forms(cost: Single) -> None:
    points = cost.points()
    for exact, baseline in ((lr_with_many_particles, None), (lr_without_baseline, 0.0)):
        gradient, v_rp, v_lr = single_forms(cost, baseline)
        for found, variance in ((rp(points), v_rp), (exact(points), v_lr)):
            torch.testing.assert_close(found.mean, gradient, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found.variance, variance, rtol=1e-9, atol=1e-9)


def chain_forms(chain: Chain) -> tuple[Tensor, Tensor]:
    """Of the sum of all steps' costs: the gradient, and RP's variance.

    With S = sum a^j, mean m, its derivative m' and variance v of x[h], and its derivatives
    x = m + sigma N.eps, dx/da = m' + sigma N'.eps, dx/db = S, dx/dsigma = N.eps, RP's estimate is
    a constant + l.eps + eps' M eps, whose variance is l.l + 2 tr M^2 for symmetric M.
    """
    a, b, sigma = chain.values
    gradient = torch.zeros(3, dtype=torch.float64)
    linear = torch.zeros(3, chain.horizon, dtype=torch.float64)
    square = torch.zeros(3, chain.horizon, chain.horizon, dtype=torch.float64)
    for h in range(1, chain.horizon + 1):
        steps = range(h)
        s = sum(a**j for j in steps)
        d = a**h * chain.start + b * s - chain.goal
        slope = h * a ** (h - 1) * chain.start + b * sum(j * a ** (j - 1) for j in steps)
        v = sigma**2 * sum(a ** (2 * j) for j in steps)
        u = sigma**2 * sum(j * a ** (2 * j - 1) for j in steps)
        gradient += vector(d * slope + u, d * s, v / sigma)
        later = [0.0] * (chain.horizon - h)
        n = vector(*(a ** (h - 1 - t) for t in steps), *later)
        dn = vector(*((h - 1 - t) * a ** (h - 2 - t) for t in steps), *later)
        linear += torch.stack([sigma * (d * dn + slope * n), sigma * s * n, d * n])
        square[0] += sigma**2 * (torch.outer(n, dn) + torch.outer(dn, n)) / 2
        square[2] += sigma * torch.outer(n, n)
    return gradient, linear.square().sum(1) + 2 * square.square().sum((1, 2))


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_the_quadrature_of_the_chain_gives_the_closed_forms(horizon: int) -> None:
    chain = Chain(horizon)
    points, (gradient, v_rp) = chain.points(), chain_forms(chain)
    for found in (rp(points), lr_with_many_particles(points), lr_without_baseline(points)):
        torch.testing.assert_close(found.mean, gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rp(points).variance, v_rp, rtol=1e-9, atol=1e-9)


def test_the_closed_form_of_the_chain_is_the_derivative_of_the_expected_cost() -> None:
    def expected(a: Tensor, b: Tensor, sigma: Tensor) -> Tensor:
        mean, variance, total = vector(CHAIN.start), torch.zeros(()), torch.zeros(())
        for _ in range(CHAIN.horizon):
            mean, variance = a * mean + b, a**2 * variance + sigma**2
            total = total + 0.5 * ((mean - CHAIN.goal) ** 2 + variance)
        return total.squeeze()

    found = torch.autograd.functional.jacobian(expected, tuple(vector(*CHAIN.values)))
    torch.testing.assert_close(torch.stack(found), chain_forms(CHAIN)[0])


def test_lr_on_a_chain_of_one_step_has_the_variance_of_a_quadratic() -> None:
    """The score of a is that of b, times the start."""
    chain = Chain(1)
    a, b, sigma = chain.values
    d = a * chain.start + b - chain.goal
    linear, square = sigma * d, sigma**2 / 2
    of_mean, of_scale = 2 * linear**2 + 10 * square**2, 10 * linear**2 + 56 * square**2
    expected = vector(chain.start**2 * of_mean, of_mean, of_scale) / sigma**2
    torch.testing.assert_close(lr_with_many_particles(chain.points()).variance, expected)


# Single-particle estimates of one large rollout


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("propagator", ["RP", RPProp()], ids=["uncut", "cut"])
def test_rp_has_the_exact_mean_and_variance(propagator: Any, problem: Problem) -> None:
    estimates = single_particle_estimates(PropagationManager(propagator), problem, MANY)
    exact = rp(problem.points())
    assert_mean(estimates, exact.mean, exact.variance)
    assert_variance(estimates, exact)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_lr_has_the_exact_mean_and_variance(problem: Problem) -> None:
    # Of so many particles the mean of the others is the expectation.
    estimates = single_particle_estimates(PropagationManager("LR"), problem, MANY)
    exact = lr_with_many_particles(problem.points())
    assert_mean(estimates, exact.mean, exact.variance)
    assert_variance(estimates, exact)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_lr_without_baseline_has_the_exact_mean_and_variance(problem: Problem) -> None:
    manager = PropagationManager(LRProp(baseline=False))
    estimates = single_particle_estimates(manager, problem, MANY)
    exact = lr_without_baseline(problem.points())
    assert_mean(estimates, exact.mean, exact.variance)
    assert_variance(estimates, exact)


# Few particles, where it matters that the baseline leaves one out

FEW = [(SINE, 2), (SINE, 5), (CHAIN, 2), (CHAIN, 5)]
REPEATS, GROUPS = 800, 400_000


@functools.cache
def leave_one_out(problem: Problem, particles: int) -> Exact:
    """With the fourth moment from many gradients by hand: the exact one is a long sum."""
    # A generator of its own: what is kept must not depend on which test came first.
    generator = torch.Generator().manual_seed(7)
    points = problem.points()
    mean, variance = rp(points).mean, leave_one_out_variance(points, particles)
    by_hand = leave_one_out_by_hand(problem, particles, GROUPS, generator)
    shares = (by_hand - mean).square() - variance
    return Exact.of(mean, variance, shares, torch.full_like(shares[:, 0], 1 / GROUPS))


def repeated(propagator: Any, problem: Problem, particles: int) -> Tensor:
    return rollout_estimates(PropagationManager(propagator), problem, particles, REPEATS)


def grouped(baseline: Callable[[Tensor], Tensor], problem: Problem, particles: int) -> Tensor:
    """[N, K]: very many gradients of few particles in one rollout, a baseline for each group."""

    def of_each_group(local_losses: Tensor, node: Any = None) -> Tensor:
        return torch.vmap(baseline)(local_losses.reshape(GROUPS, particles)).reshape(-1, 1)

    manager = PropagationManager(LRProp(baseline=(True, {"baseline_func": of_each_group})))
    estimates = single_particle_estimates(manager, problem, GROUPS * particles)
    return estimates.reshape(GROUPS, particles, -1).mean(1)


@pytest.mark.parametrize(("problem", "particles"), FEW, ids=str)
def test_the_leave_one_out_variance_is_that_of_gradients_by_hand(
    problem: Problem, particles: int
) -> None:
    exact = leave_one_out(problem, particles)
    by_hand = leave_one_out_by_hand(problem, particles, GROUPS)
    assert_mean(by_hand, exact.mean, exact.variance)
    assert_variance(by_hand, exact, detects=0.2)


@pytest.mark.parametrize("particles", [1, 3])
def test_rp_averages_its_particles(particles: int) -> None:
    exact = rp(CHAIN.points())
    estimates = repeated(RPProp(), CHAIN, particles)
    assert_mean(estimates, exact.mean, exact.variance / particles)


@pytest.mark.parametrize(("problem", "particles"), FEW, ids=str)
def test_lr_has_the_exact_mean_with_few_particles(problem: Problem, particles: int) -> None:
    variance = leave_one_out_variance(problem.points(), particles)
    assert_mean(repeated("LR", problem, particles), rp(problem.points()).mean, variance)


@pytest.mark.parametrize(("problem", "particles"), FEW, ids=str)
def test_lr_has_the_exact_mean_and_variance_in_groups(problem: Problem, particles: int) -> None:
    exact = leave_one_out(problem, particles)
    estimates = grouped(mean_baseline, problem, particles)
    assert_mean(estimates, exact.mean, exact.variance)
    assert_variance(estimates, exact, detects=0.2)


def mean_of_all(local_losses: Tensor, node: Any = None) -> Tensor:
    return local_losses - local_losses.mean(0)


@pytest.mark.parametrize(("problem", "particles"), FEW, ids=str)
def test_a_baseline_that_leaves_none_out_is_found_out(problem: Problem, particles: int) -> None:
    mean = rp(problem.points()).mean
    variance = leave_one_out_variance(problem.points(), particles)
    biased = LRProp(baseline=(True, {"baseline_func": mean_of_all}))
    estimates = repeated(biased, problem, particles)
    with pytest.raises(AssertionError, match="z-scores"):
        assert_mean(estimates, mean, variance)
    # It shrinks the gradient by the particle's own share in the mean.
    share = 1 - 1 / particles
    assert_mean(estimates, share * mean, share**2 * variance)


def half_of_another(local_losses: Tensor) -> Tensor:
    """Unbiased, but not the baseline that we promise."""
    return local_losses - 0.5 * local_losses.roll(1, 0)


@pytest.mark.parametrize(("problem", "particles"), FEW, ids=str)
def test_an_unbiased_baseline_of_another_variance_is_found_out(
    problem: Problem, particles: int
) -> None:
    exact = leave_one_out(problem, particles)
    estimates = grouped(half_of_another, problem, particles)
    assert_mean(estimates, exact.mean)
    with pytest.raises(AssertionError, match="ratios"):
        assert_variance(estimates, exact, detects=0.2)


# The checks can fail


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_a_variance_ten_per_cent_off_is_found_out(problem: Problem) -> None:
    exact = lr_with_many_particles(problem.points())
    estimates = single_particle_estimates(PropagationManager("LR"), problem, MANY)
    for ratio in (0.9, 1.1):
        wrong = exact.mean + ratio**0.5 * (estimates - exact.mean)
        assert_mean(wrong, exact.mean, exact.variance)
        for k in range(len(exact.mean)):
            one = Exact(*(getattr(exact, name)[[k]] for name in vars(exact)))
            with pytest.raises(AssertionError, match="ratios"):
                assert_variance(wrong[:, [k]], one)


def test_a_mean_one_per_cent_off_is_found_out() -> None:
    exact = rp(CHAIN.points())
    estimates = single_particle_estimates(PropagationManager("RP"), CHAIN, MANY)
    with pytest.raises(AssertionError, match="z-scores"):
        assert_mean(1.01 * estimates, exact.mean, exact.variance)
    assert bool((z_scores(1.01 * estimates, exact.mean) > 5).any())
