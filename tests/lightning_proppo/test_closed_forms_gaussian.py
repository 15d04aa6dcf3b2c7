"""Gaussian resampling, Gaussian shaping and what they combine with, against exact gradients.

Both take the cost's expectation under a Gaussian that is fitted to the particles. Where the
particles are Gaussian (all problems of ``exact_moments.py``), a bias of order 1/P at most is left;
for quadratic costs it is known for any number of particles. Where the particles are not Gaussian,
the bias is that of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import GRProp, GSLoss, LRProp, RPProp

from .exact_moments import (
    CHAIN,
    COEFFICIENTS,
    LINEAR,
    QUADRATIC,
    SINGLE,
    Chain,
    Problem,
    Single,
    assert_mean,
    rollout_estimates,
    rp,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(22)


MANAGERS: dict[str, Callable[[], PropagationManager]] = {
    "GR": lambda: PropagationManager("GR"),
    "GR+GSLoss": lambda: PropagationManager(GRProp(), loss_propagator=GSLoss()),
    "RP+GSLoss": lambda: PropagationManager(RPProp(), loss_propagator=GSLoss()),
    "uncut RP+GSLoss": lambda: PropagationManager("RP", loss_propagator=GSLoss()),
    "GS": lambda: PropagationManager("GS"),
    "LR+GSLoss": lambda: PropagationManager(LRProp(baseline=False), loss_propagator=GSLoss()),
    "TP+GS": lambda: PropagationManager("TP+GS"),
}

# By its bias the widest off: its gradient is that of the variance alone.
SQUARE = Single("square", lambda x: (x - 0.7).square())
QUADRATICS = [LINEAR, QUADRATIC, SQUARE, CHAIN]


# Many particles. The bias of order 1/P is beside the standard error of order sqrt(N / P): less
# than an eighth of it where it is known, below, and a fifth where TP adds its own.

PARTICLES, REPEATS = 4000, 60


@pytest.mark.parametrize("problem", [*SINGLE, CHAIN], ids=str)
@pytest.mark.parametrize("name", MANAGERS)
def test_gaussian_particles_give_the_exact_mean(name: str, problem: Problem) -> None:
    estimates = rollout_estimates(MANAGERS[name](), problem, PARTICLES, REPEATS)
    assert_mean(estimates, rp(problem.points()).mean)


# Few particles


def fitted_cost(problem: Problem, particles: int, name: str, values: Sequence[Tensor]) -> Tensor:
    """The expectation of the quadratic cost of particles that were drawn anew from their fits.

    A Gaussian fitted to P particles of variance V and covariance C among each other has a mean of
    variance C + (V - C) / P, and a variance that is V - C in expectation. The new particles share
    the former and have the sum of both: (V - C) / P more than the old ones.
    """
    chain = isinstance(problem, Chain)
    a, b, sigma = values if chain else (torch.zeros(()), *values)
    mean, own, shared = torch.tensor(Chain.start), torch.zeros(()), torch.zeros(())
    total = torch.zeros(())
    for _ in range(problem.horizon):
        mean, own, shared = a * mean + b, a**2 * own + sigma**2, a**2 * shared
        if "GR" in name:
            shared = shared + own / particles
        variance = own + shared + (own / particles if "GSLoss" in name else 0.0)
        c0, c1, c2 = (0.0, 0.0, 0.5) if chain else POLYNOMIALS[str(problem)]
        total = total + c0 + c1 * mean + c2 * (mean**2 + variance)
    return total


POLYNOMIALS = {**COEFFICIENTS, "square": (0.49, -1.4, 1.0)}


def fitted_gradient(problem: Problem, particles: int, name: str) -> Tensor:
    values = tuple(torch.tensor(v, dtype=torch.float64) for v in problem.values)

    def cost(*values: Tensor) -> Tensor:
        return fitted_cost(problem, particles, name, values)

    return torch.stack(torch.autograd.functional.jacobian(cost, values))


@pytest.mark.parametrize("problem", QUADRATICS, ids=str)
def test_what_is_expected_without_a_fit_is_exact(problem: Problem) -> None:
    torch.testing.assert_close(fitted_gradient(problem, 3, "RP"), rp(problem.points()).mean)


def few(name: str, problem: Problem, particles: int, repeats: int = 600) -> Tensor:
    return rollout_estimates(MANAGERS[name](), problem, particles, repeats)


@pytest.mark.parametrize("problem", QUADRATICS, ids=str)
@pytest.mark.parametrize("name", ["GR", "GR+GSLoss", "RP+GSLoss"])
def test_fits_to_few_particles_are_biased_by_the_variance_of_their_mean(
    name: str, problem: Problem
) -> None:
    assert_mean(few(name, problem, 4), fitted_gradient(problem, 4, name))


def test_the_bias_of_resampling_few_particles_is_found_out() -> None:
    # It is a fifth of a rollout's standard deviation, so ten of the standard errors.
    estimates = few("GR", SQUARE, 3, repeats=3000)
    assert_mean(estimates, fitted_gradient(SQUARE, 3, "GR"))
    with pytest.raises(AssertionError, match="z-scores"):
        assert_mean(estimates, rp(SQUARE.points()).mean)


@pytest.mark.parametrize("problem", QUADRATICS, ids=str)
def test_shaping_for_lr_is_unbiased_with_few_particles(problem: Problem) -> None:
    """The mean over the fit's noise is LR's estimate from the costs themselves."""
    assert_mean(few("GS", problem, 4), rp(problem.points()).mean)


@pytest.mark.parametrize("problem", QUADRATICS, ids=str)
def test_shaping_for_lr_without_baseline_is_biased_by_a_particles_share(problem: Problem) -> None:
    estimates, mean = few("LR+GSLoss", problem, 3), rp(problem.points()).mean
    assert_mean(estimates, mean * 2 / 3)
    if problem is not SQUARE:
        with pytest.raises(AssertionError, match="z-scores"):
            assert_mean(estimates, mean)


# Particles that are not Gaussian: half of them at mu + 1, half at mu - 1, each with noise sigma

FREQUENCY = 1.5


def two_modes(manager: PropagationManager) -> Tensor:
    mu, sigma = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, 0.5))
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(PARTICLES // 2).unsqueeze(1)
    found = []
    for _ in range(REPEATS):
        x = manager.sample(Normal(mu + signs, sigma.expand_as(signs)))
        manager.append_loss(x, lossfunc=lambda x: torch.sin(FREQUENCY * x))
        found.append(torch.stack(torch.autograd.grad(manager.loss(), [mu, sigma])))
    return torch.stack(found)


def sine_gradient(damping: float, mu: float = 0.4, sigma: float = 0.5) -> Tensor:
    """Of sin(w mu) exp(-w^2 sigma^2 / 2) times what the modes leave of it."""
    angle, factor = FREQUENCY * mu, damping * math.exp(-((FREQUENCY * sigma) ** 2) / 2)
    gradient = [FREQUENCY * math.cos(angle), -(FREQUENCY**2) * sigma * math.sin(angle)]
    return factor * torch.tensor(gradient, dtype=torch.float64)


TRUE, FITTED = math.cos(FREQUENCY), math.exp(-(FREQUENCY**2) / 2)


@pytest.mark.parametrize("name", MANAGERS)
def test_two_modes_give_the_gradient_of_the_fitted_gaussian(name: str) -> None:
    estimates = two_modes(MANAGERS[name]())
    assert_mean(estimates, sine_gradient(FITTED))
    with pytest.raises(AssertionError, match="z-scores"):
        assert_mean(estimates, sine_gradient(TRUE))


@pytest.mark.parametrize("name", ["RP", "LR", "TP"])
def test_two_modes_give_the_exact_gradient_without_a_fit(name: str) -> None:
    assert_mean(two_modes(PropagationManager(name)), sine_gradient(TRUE))


# States in parts, shaped as the same numbers side by side are


class Parts(NamedTuple):
    position: Tensor
    velocity: Tensor


def parts_cost(position: Tensor, velocity: Tensor) -> Tensor:
    """Of [P, 2] and [P, 2, 1]: quadratic, within the parts and across them."""
    velocity = velocity.squeeze(2)
    inner = position.square().sum(1) - 0.3 * velocity.square().sum(1)
    return inner + 0.5 * position[:, 0] * velocity[:, 1] + velocity.sum(1)


def split_parts(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :, 0], x[:, :, 1:]


FORMS: dict[str, tuple[Callable[[Tensor], Any], Callable[..., Tensor]]] = {
    "tensor": (lambda x: x, lambda x: parts_cost(*split_parts(x))),
    "dict": (
        lambda x: dict(zip(("position", "velocity"), split_parts(x), strict=True)),
        parts_cost,
    ),
    "tuple": (split_parts, lambda parts: parts_cost(*parts)),
    "list": (lambda x: list(split_parts(x)), lambda parts: parts_cost(*parts)),
    "named tuple": (
        lambda x: Parts(*split_parts(x)),
        lambda parts: parts_cost(parts.position, parts.velocity),
    ),
}


def linear_rollout(estimator: Any, form: str, t: Tensor, particles: int) -> Tensor:
    """x1 = m + s e1, x2 = a x1 + m + s e2, of 2 x 2 numbers each; a cost at both steps."""
    make, cost = FORMS[form]
    manager = PropagationManager(estimator, GSLoss())
    m, s, a = t
    x = torch.zeros(particles, 2, 2, dtype=torch.float64)
    for _ in range(2):
        x = manager.sample(Normal(a * x + m, s))
        manager.append_loss(make(x), lossfunc=cost)
    return torch.autograd.grad(manager.loss(), t)[0]


def linear_rollout_exact(t: Tensor) -> Tensor:
    m, s, a = t
    mean, variance, total = (
        torch.zeros((), dtype=torch.float64),
        torch.zeros((), dtype=torch.float64),
        0.0,
    )
    for _ in range(2):
        mean, variance = a * mean + m, a.square() * variance + s.square()
        total = total + 1.4 * (mean.square() + variance) + 0.5 * mean.square() + 2 * mean
    return total  # type: ignore[return-value]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("baseline", [True, False])
def test_gaussian_shaping_of_parts_has_the_exact_gradient(form: str, baseline: bool) -> None:
    """With the baseline without bias for few particles; without it (P - 1)/P of the true one."""
    torch.manual_seed(5)
    particles = 9
    t = torch.tensor([0.4, 0.6, 0.7], dtype=torch.float64, requires_grad=True)
    (exact,) = torch.autograd.grad(linear_rollout_exact(t), t)
    propagator = LRProp() if baseline else LRProp(baseline=False)
    found = torch.stack([linear_rollout(propagator, form, t, particles) for _ in range(250)])
    assert_mean(found, exact if baseline else exact * (particles - 1) / particles)


def test_parts_of_a_named_tuple_keep_shapes_and_type() -> None:
    seen: list[Any] = []

    def cost(parts: Parts) -> Tensor:
        seen.append(parts)
        return parts_cost(*parts)

    manager = PropagationManager("GS")
    x = manager.sample(Normal(torch.zeros(7, 2, 2), torch.ones((), requires_grad=True)))
    manager.append_loss(Parts(*split_parts(x)), lossfunc=cost)
    assert type(seen[0]) is Parts
    assert [part.shape for part in seen[0]] == [(7, 2), (7, 2, 1)]
