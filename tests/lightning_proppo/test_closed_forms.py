"""Means and variances of the estimators, through the public manager, against closed forms.

Two ways to many independent estimates at little cost. A leaf with a value of its own for each
particle collects the single-particle estimates of one rollout with very many particles. Where an
estimator couples its particles, rollouts are repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from lightning_proppo import PropagationManager, expand
from lightning_proppo.propagators import LRProp, RPProp, TotalProp

MANY = 400_000
LIMIT = 5.0  # a right estimator is beyond it once in two million tests

MU, SIGMA = 0.7, 0.6
START, A, B, STEP_SIGMA, GOAL, HORIZON = 1.0, 0.8, 0.3, 0.5, 0.4, 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20)


# The problems and what is true of them


def linear(x: Tensor) -> Tensor:
    return 2.0 - 3.0 * x


def quadratic(x: Tensor) -> Tensor:
    return 0.5 + 1.2 * x - 0.9 * x.square()


COEFFICIENTS = {linear: (2.0, -3.0, 0.0), quadratic: (0.5, 1.2, -0.9)}
COSTS = [linear, quadratic]


def single_truth(cost: Callable[[Tensor], Tensor]) -> Tensor:
    """Derivatives of c0 + c1 mu + c2 (mu^2 + sigma^2)."""
    _, c1, c2 = COEFFICIENTS[cost]
    return torch.tensor([c1 + 2 * c2 * MU, 2 * c2 * SIGMA], dtype=torch.float64)


def expansion(cost: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
    """The cost as a polynomial in the noise."""
    c0, c1, c2 = COEFFICIENTS[cost]
    return c0 + c1 * MU + c2 * MU**2, SIGMA * (c1 + 2 * c2 * MU), SIGMA**2 * c2


def rp_variance(cost: Callable[[Tensor], Tensor]) -> Tensor:
    _, b, c = expansion(cost)
    return torch.tensor([4 * c**2, b**2 + 8 * c**2], dtype=torch.float64) / SIGMA**2


def lr_variance(cost: Callable[[Tensor], Tensor], baseline: float) -> Tensor:
    a, b, c = expansion(cost)
    delta = a + c - baseline
    mu = delta**2 + 2 * b**2 + 10 * c**2 + 4 * delta * c
    sigma = 2 * delta**2 + 10 * b**2 + 56 * c**2 + 16 * delta * c
    return torch.tensor([mu, sigma], dtype=torch.float64) / SIGMA**2


class Chain:
    """Moments of x[H] and of its derivatives for x[t+1] = a x[t] + b + sigma eps."""

    def __init__(self) -> None:
        steps = range(HORIZON)
        self.s = sum(A**j for j in steps)
        self.v = STEP_SIGMA**2 * sum(A ** (2 * j) for j in steps)
        self.d = A**HORIZON * START + B * self.s - GOAL
        self.slope = HORIZON * A ** (HORIZON - 1) * START + B * sum(j * A ** (j - 1) for j in steps)
        self.u = STEP_SIGMA**2 * sum(j * A ** (2 * j - 1) for j in steps)
        self.w = STEP_SIGMA**2 * sum(j**2 * A ** (2 * j - 2) for j in steps)

    def truth(self) -> Tensor:
        gradient = [self.d * self.slope + self.u, self.d * self.s, self.v / STEP_SIGMA]
        return torch.tensor(gradient, dtype=torch.float64)

    def rp_variance(self) -> Tensor:
        d, v, u, w, m = self.d, self.v, self.u, self.w, self.slope
        variances = [
            d**2 * w + m**2 * v + 2 * d * m * u + v * w + u**2,
            self.s**2 * v,
            (d**2 * v + 2 * v**2) / STEP_SIGMA**2,
        ]
        return torch.tensor(variances, dtype=torch.float64)


def end_cost(x: Tensor) -> Tensor:
    return 0.5 * (x - GOAL).square()


def test_the_closed_forms_are_derivatives_of_the_expectations() -> None:
    def expected(a: Tensor, b: Tensor, sigma: Tensor) -> Tensor:
        mean, variance = torch.tensor(START, dtype=torch.float64), torch.zeros(())
        for _ in range(HORIZON):
            mean, variance = a * mean + b, a**2 * variance + sigma**2
        return 0.5 * ((mean - GOAL) ** 2 + variance)

    point = tuple(torch.tensor(v, dtype=torch.float64) for v in (A, B, STEP_SIGMA))
    found = torch.autograd.functional.jacobian(expected, point)
    torch.testing.assert_close(torch.stack(found), Chain().truth())


# Running them


class Parameters(nn.Module):
    """Scalars, or with ``particles`` a value for each."""

    def __init__(self, *values: float, particles: int | None = None) -> None:
        super().__init__()
        shape = () if particles is None else (particles, 1)
        self.values = nn.ParameterList(
            nn.Parameter(torch.full(shape, v, dtype=torch.float64)) for v in values
        )

    def gradient(self) -> Tensor:
        """[K], or of each particle alone [P, K]; forgets it."""
        found = [p.grad if p.dim() == 0 else p.grad.squeeze(1) * p.shape[0] for p in self.values]
        self.zero_grad()
        return torch.stack(found, dim=-1)


Options = Callable[[Parameters, list[Tensor]], dict[str, Any]]


def nothing(module: Parameters, used: list[Tensor]) -> dict[str, Any]:
    return {}


def roll_single(
    manager: PropagationManager,
    module: Parameters,
    cost: Callable[[Tensor], Tensor],
    particles: int,
    options: Options = nothing,
    expanded: bool = False,
) -> Tensor:
    values = list(module.values)
    used = [expand(p, particles).unsqueeze(1) for p in values] if expanded else values
    loc, scale = (p.expand(particles, 1) for p in used)
    x = manager.sample(Normal(loc, scale), **options(module, used))
    manager.append_loss(x, lossfunc=cost)
    manager.loss().backward()
    return module.gradient()


def roll_chain(
    manager: PropagationManager,
    module: Parameters,
    particles: int,
    options: Options = nothing,
    expanded: bool = False,
) -> Tensor:
    values = list(module.values)
    used = [expand(p, particles).unsqueeze(1) for p in values] if expanded else values
    a, b, sigma = used
    x = torch.full((particles, 1), START, dtype=torch.float64)
    for _ in range(HORIZON):
        loc = a * x + b
        x = manager.sample(Normal(loc, sigma.expand_as(loc)), **options(module, used))
    manager.append_loss(x, lossfunc=end_cost)
    manager.loss().backward()
    return module.gradient()


def z_scores(estimates: Tensor, truth: Tensor) -> Tensor:
    """Of the mean of independent estimates [N, K]; a constant estimate must equal the truth."""
    error = estimates.mean(0) - truth
    standard = estimates.std(0) / estimates.shape[0] ** 0.5
    exact = (error.abs() < 1e-12) & (standard < 1e-12)
    return torch.where(exact, 0.0, error / standard).abs()


def assert_unbiased(estimates: Tensor, truth: Tensor) -> None:
    scores = z_scores(estimates, truth)
    assert bool((scores < LIMIT).all()), scores.tolist()


def assert_same_variance(estimates: Tensor, truth: Tensor) -> None:
    """Within 5 standard errors, which the squares' heavy tails leave at a few per cent."""
    squares = (estimates - estimates.mean(0)).square()
    error = squares.std(0) / estimates.shape[0] ** 0.5
    assert bool((error < 0.04 * truth + 1e-12).all()), "too few estimates to tell"
    assert bool(((squares.mean(0) - truth).abs() <= LIMIT * error + 1e-12).all())
    ratio = squares.mean(0)[truth > 0] / truth[truth > 0]
    assert bool(((ratio - 1).abs() < 0.1).all()), ratio.tolist()


# RP and LR: single-particle estimates of one large rollout


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("propagator", ["RP", RPProp()], ids=["uncut", "cut"])
def test_rp_mean_and_variance(propagator: Any, cost: Any) -> None:
    module = Parameters(MU, SIGMA, particles=MANY)
    estimates = roll_single(PropagationManager(propagator), module, cost, MANY)
    assert_unbiased(estimates, single_truth(cost))
    assert_same_variance(estimates, rp_variance(cost))


@pytest.mark.parametrize("cost", COSTS)
def test_lr_mean_and_variance(cost: Any) -> None:
    module = Parameters(MU, SIGMA, particles=MANY)
    estimates = roll_single(PropagationManager("LR"), module, cost, MANY)
    assert_unbiased(estimates, single_truth(cost))
    # Of so many particles the mean of the others is the expectation.
    a, _, c = expansion(cost)
    assert_same_variance(estimates, lr_variance(cost, baseline=a + c))


@pytest.mark.parametrize("cost", COSTS)
def test_lr_mean_and_variance_without_baseline(cost: Any) -> None:
    module = Parameters(MU, SIGMA, particles=MANY)
    manager = PropagationManager(LRProp(baseline=False))
    estimates = roll_single(manager, module, cost, MANY)
    assert_unbiased(estimates, single_truth(cost))
    assert_same_variance(estimates, lr_variance(cost, baseline=0.0))


@pytest.mark.parametrize("propagator", ["RP", RPProp()], ids=["uncut", "cut"])
def test_rp_on_a_chain(propagator: Any) -> None:
    module = Parameters(A, B, STEP_SIGMA, particles=MANY)
    estimates = roll_chain(PropagationManager(propagator), module, MANY)
    assert_unbiased(estimates, Chain().truth())
    assert_same_variance(estimates, Chain().rp_variance())


def test_lr_on_a_chain() -> None:
    module = Parameters(A, B, STEP_SIGMA, particles=MANY)
    assert_unbiased(roll_chain(PropagationManager("LR"), module, MANY), Chain().truth())


@pytest.mark.parametrize("cost", COSTS)
def test_tp_mean_and_variance(cost: Any) -> None:
    """With so many particles the weights are constants: those of the summed variances."""
    module = Parameters(MU, SIGMA, particles=MANY)
    loc, scale = (1.0 * p for p in module.values)
    manager = PropagationManager("TP")
    x = manager.sample(Normal(loc, scale), ivw_target=[loc, scale])
    manager.append_loss(x, lossfunc=cost)
    manager.loss().backward()
    estimates = module.gradient()
    assert_unbiased(estimates, single_truth(cost))
    a, b, c = expansion(cost)
    v_lr, v_rp = lr_variance(cost, baseline=a + c), rp_variance(cost)
    covariance = torch.tensor([4 * c**2, 2 * b**2 + 16 * c**2], dtype=torch.float64) / SIGMA**2
    k = float(v_rp.sum() / (v_lr.sum() + v_rp.sum()))
    assert float(manager.statistics["lr_weight"][0]) == pytest.approx(k, rel=0.05)
    expected = k**2 * v_lr + (1 - k) ** 2 * v_rp + 2 * k * (1 - k) * covariance
    assert_same_variance(estimates, expected)


# The leave-one-out baseline


def mean_of_all(local_losses: Tensor, node: Any = None) -> Tensor:
    return local_losses - local_losses.mean(0)


def few_particles(propagator: LRProp, particles: int) -> Tensor:
    module = Parameters(MU, SIGMA)
    manager = PropagationManager(propagator)
    return torch.stack([roll_single(manager, module, linear, particles) for _ in range(800)])


@pytest.mark.parametrize("particles", [2, 4])
def test_lr_is_unbiased_with_few_particles(particles: int) -> None:
    assert_unbiased(few_particles(LRProp(), particles), single_truth(linear))


@pytest.mark.parametrize("particles", [2, 4])
def test_a_baseline_that_depends_on_its_particle_is_found_out(particles: int) -> None:
    biased = LRProp(baseline=(True, {"baseline_func": mean_of_all}))
    estimates = few_particles(biased, particles)
    truth = single_truth(linear)
    assert z_scores(estimates, truth)[0] > LIMIT
    # It shrinks the gradient by the particle's own share in the mean.
    assert_unbiased(estimates, truth * (1 - 1 / particles))


# Estimators that couple their particles: repeated rollouts. Their bias is of order 1/P, small
# beside the standard error of as many rollouts.

PARTICLES, REPEATS = 2000, 120


def repeated(roll: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
    return torch.stack([roll(*arguments, **options) for _ in range(REPEATS)])


TARGETS: dict[str, tuple[Options, bool]] = {
    "default": (nothing, False),
    "parameters": (lambda module, used: {"ivw_target": "parameters"}, False),
    "node": (lambda module, used: {"ivw_target": "node"}, False),
    "module": (lambda module, used: {"ivw_target": module}, False),
    "one parameter": (lambda module, used: {"ivw_target": module.values[0]}, False),
    "list of parameters": (lambda module, used: {"ivw_target": list(module.values)}, False),
    "expanded": (lambda module, used: {"ivw_target": used}, True),
    "at intervals": (lambda module, used: {"k_interval": 2}, False),
}


@pytest.mark.parametrize("target", TARGETS)
def test_tp_on_a_chain(target: str) -> None:
    options, expanded = TARGETS[target]
    module = Parameters(A, B, STEP_SIGMA)
    manager = PropagationManager("TP")
    estimates = repeated(roll_chain, manager, module, PARTICLES, options, expanded)
    assert_unbiased(estimates, Chain().truth())


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("target", ["parameters", "node", "expanded"])
def test_tp_on_a_single_sample(target: str, cost: Any) -> None:
    options, expanded = TARGETS[target]
    module = Parameters(MU, SIGMA)
    manager = PropagationManager(TotalProp())
    estimates = repeated(roll_single, manager, module, cost, PARTICLES, options, expanded)
    assert_unbiased(estimates, single_truth(cost))


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", ["GR", "GS", "TP+GS"])
def test_gaussian_estimators_on_a_single_sample(name: str, cost: Any) -> None:
    module = Parameters(MU, SIGMA)
    estimates = repeated(roll_single, PropagationManager(name), module, cost, PARTICLES)
    assert_unbiased(estimates, single_truth(cost))


@pytest.mark.parametrize("name", ["GR", "GS", "TP+GS"])
def test_gaussian_estimators_on_a_chain(name: str) -> None:
    module = Parameters(A, B, STEP_SIGMA)
    estimates = repeated(roll_chain, PropagationManager(name), module, PARTICLES)
    assert_unbiased(estimates, Chain().truth())


@pytest.mark.parametrize("particles", [4, 8])
def test_gaussian_shaping_of_a_quadratic_is_unbiased_with_few_particles(particles: int) -> None:
    # The fit's bias and the baseline's factor P / (P - 1) cancel for quadratic costs.
    module = Parameters(MU, SIGMA)
    manager = PropagationManager("GS")
    estimates = [roll_single(manager, module, quadratic, particles) for _ in range(600)]
    assert_unbiased(torch.stack(estimates), single_truth(quadratic))
