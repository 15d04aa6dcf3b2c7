r"""Problems whose estimators have exact moments, runs of them, and the checks of one by the other.

Two problems: a cost of one Gaussian sample, ``x = mu + sigma eps``, and the chain
``x[t+1] = a x[t] + b + sigma eps[t]`` with a quadratic cost at every step. Every estimator on them
is a function of the noise eps, and its moments are integrals over eps, which Gauss-Hermite
quadrature gives exactly where that function is a polynomial (of the sine: to rounding).

Shapes: P particles, H steps, K parameters, Q points of the quadrature, N independent estimates.

A check raises a false alarm about once in a million seeds: its limit is the normal quantile of that
rate, shared among the K coordinates and two sides (Bonferroni), and moved by what skewness is left
in a mean of N (Cornish-Fisher).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from lightning_proppo import PropagationManager, expand

FALSE_ALARM_RATE = 1e-6


# The problems


@dataclass
class Points:
    """A problem's particles, by hand from their noise; of a quadrature with ``weights``."""

    weights: Tensor  # [Q]
    losses: Tensor  # [Q, H], the sums of this and all later costs
    scores: Tensor  # [Q, H, K], of each step's noise
    pathwise: Tensor  # [Q, K], RP's estimate
    noise: Tensor  # [Q, H]

    def expected_losses(self) -> Tensor:
        return self.weights @ self.losses

    def likelihood_ratio(self, baselines: Tensor | float) -> Tensor:
        """[Q, K]: sum over steps of (L_t - b_t) score_t."""
        return ((self.losses - baselines).unsqueeze(-1) * self.scores).sum(1)


def _or_equal(weights: Tensor | None, noise: Tensor) -> Tensor:
    return torch.full_like(noise[:, 0], 1 / len(noise)) if weights is None else weights


class Problem:
    """A rollout, through a manager and by hand."""

    values: tuple[float, ...]
    horizon: int
    quadrature_nodes: int

    def by_hand(self, noise: Tensor, weights: Tensor | None = None) -> Points:
        """Particles with this noise [Q, H]; without ``weights``, equal ones."""
        raise NotImplementedError

    def record(
        self, manager: PropagationManager, values: list[Tensor], particles: int, **options: Any
    ) -> None:
        """Roll out; ``values`` are [] or [P, 1]."""
        raise NotImplementedError

    def points(self) -> Points:
        """A quadrature over the noise of all steps."""
        x, w = np.polynomial.hermite_e.hermegauss(self.quadrature_nodes)
        nodes, weights = torch.as_tensor(x), torch.as_tensor(w / w.sum())
        every = [nodes] * self.horizon
        noise = torch.cartesian_prod(*every).reshape(-1, self.horizon)
        each = torch.cartesian_prod(*[weights] * self.horizon).reshape(-1, self.horizon)
        return self.by_hand(noise, each.prod(1))


class Single(Problem):
    """``f(x)`` of one sample ``x = mu + sigma eps``; parameters mu and sigma."""

    values = (0.7, 0.6)
    horizon = 1
    quadrature_nodes = 60

    def __init__(self, name: str, cost: Callable[[Tensor], Tensor]) -> None:
        self.name, self.cost = name, cost

    def __repr__(self) -> str:
        return self.name

    def by_hand(self, noise: Tensor, weights: Tensor | None = None) -> Points:
        mu, sigma = self.values
        x = (mu + sigma * noise).requires_grad_()
        losses = self.cost(x)
        (slope,) = torch.autograd.grad(losses.sum(), x)
        scores = torch.stack([noise / sigma, (noise.square() - 1) / sigma], -1)
        pathwise = torch.cat([slope, slope * noise], -1)
        return Points(_or_equal(weights, noise), losses.detach(), scores, pathwise, noise)

    def record(
        self, manager: PropagationManager, values: list[Tensor], particles: int, **options: Any
    ) -> None:
        loc, scale = (p.expand(particles, 1) for p in values)
        manager.append_loss(manager.sample(Normal(loc, scale), **options), lossfunc=self.cost)


class Chain(Problem):
    """``x[t+1] = a x[t] + b + sigma eps[t]``, costs (x - goal)^2 / 2; parameters a, b, sigma."""

    values = (0.8, 0.5, 0.3)
    start, goal = 1.0, 0.0
    # Exact to degree 25: the estimators are polynomials of degree 4.
    quadrature_nodes = 13

    def __init__(self, horizon: int = 3) -> None:
        self.horizon = horizon

    def __repr__(self) -> str:
        return "chain"

    def cost(self, x: Tensor) -> Tensor:
        return 0.5 * (x - self.goal).square()

    def states(self, noise: Tensor) -> Tensor:
        """[Q, H + 1], with the start."""
        a, b, sigma = self.values
        x = [torch.full_like(noise[:, 0], self.start)]
        for t in range(self.horizon):
            x.append(a * x[-1] + b + sigma * noise[:, t])
        return torch.stack(x, 1)

    def by_hand(self, noise: Tensor, weights: Tensor | None = None) -> Points:
        a, _, sigma = self.values
        x = self.states(noise)
        before, after, ones = x[:, :-1], x[:, 1:], torch.ones_like(noise)
        losses = self.cost(after).flip(1).cumsum(1).flip(1)
        parts = [noise * before, noise, noise.square() - 1]
        direct = torch.stack([before, ones, noise], -1)
        slope, pathwise = torch.zeros(()), torch.zeros(())
        for t in range(self.horizon):
            slope = a * slope + direct[:, t]
            pathwise = pathwise + (after[:, t, None] - self.goal) * slope
        scores = torch.stack(parts, -1) / sigma
        return Points(_or_equal(weights, noise), losses, scores, pathwise, noise)

    def record(
        self, manager: PropagationManager, values: list[Tensor], particles: int, **options: Any
    ) -> None:
        a, b, sigma = values
        x = torch.full((particles, 1), self.start, dtype=torch.float64)
        for _ in range(self.horizon):
            loc = a * x + b
            x = manager.sample(Normal(loc, sigma.expand_as(loc)), **options)
            manager.append_loss(x, lossfunc=self.cost)


# c0 + c1 x + c2 x^2. A stronger curvature would only give the squares of LR heavier tails.
COEFFICIENTS = {"linear": (2.0, -3.0, 0.0), "quadratic": (0.5, 2.0, -0.3)}
FREQUENCY = 1.3

LINEAR = Single("linear", lambda x: 2.0 - 3.0 * x)
QUADRATIC = Single("quadratic", lambda x: 0.5 + 2.0 * x - 0.3 * x.square())
SINE = Single("sine", lambda x: torch.sin(FREQUENCY * x))
SINGLE = [LINEAR, QUADRATIC, SINE]
CHAIN = Chain()


# Running them


class Parameters(nn.Module):
    """A problem's parameters: scalars, or with ``particles`` a value for each."""

    def __init__(self, problem: Problem, particles: int | None = None) -> None:
        super().__init__()
        shape = () if particles is None else (particles, 1)
        self.values = nn.ParameterList(
            nn.Parameter(torch.full(shape, v, dtype=torch.float64)) for v in problem.values
        )

    def gradient(self) -> Tensor:
        """[K], or of each particle alone [P, K]; forgets it."""
        found = [p.grad if p.dim() == 0 else p.grad.squeeze(1) * p.shape[0] for p in self.values]
        self.zero_grad()
        return torch.stack(found, dim=-1)


# Of the parameters and of what the rollout uses of them: a sample's options.
Options = Callable[[Parameters, list[Tensor]], dict[str, Any]]


def no_options(module: Parameters, used: list[Tensor]) -> dict[str, Any]:
    return {}


def single_particle_estimates(
    manager: PropagationManager, problem: Problem, particles: int, options: Options = no_options
) -> Tensor:
    """[P, K]: what each particle of one rollout adds, from parameters of its own."""
    module = Parameters(problem, particles)
    used = [1.0 * p for p in module.values]
    problem.record(manager, used, particles, **options(module, used))
    manager.loss().backward()
    return module.gradient()


def rollout_estimates(
    manager: PropagationManager,
    problem: Problem,
    particles: int,
    repeats: int,
    options: Options = no_options,
    expanded: bool = False,
) -> Tensor:
    """[N, K]: the gradients of independent rollouts."""
    module = Parameters(problem)
    found = []
    for _ in range(repeats):
        values = list(module.values)
        used = [expand(p, particles).unsqueeze(1) for p in values] if expanded else values
        problem.record(manager, used, particles, **options(module, used))
        manager.loss().backward()
        found.append(module.gradient())
    return torch.stack(found)


# Exact moments


@dataclass
class Exact:
    """Moments of an estimate, [K] each, and how well independent estimates tell its variance."""

    mean: Tensor
    variance: Tensor
    error: Tensor  # standard deviation of one estimate's share in the empirical variance
    skewness: Tensor  # of that share

    @classmethod
    def of(cls, mean: Tensor, variance: Tensor, shares: Tensor, weights: Tensor) -> Exact:
        error = (weights @ shares.square()).sqrt()
        return cls(mean, variance, error, weights @ shares.pow(3) / error.clamp_min(1e-20).pow(3))


def single_particle(points: Points, estimator: Callable[[Tensor], Tensor]) -> Exact:
    """Return the moments of a single particle's estimate.

    Args:
        points: the problem's quadrature.
        estimator: of the baselines [H], the estimates [Q, K]. Baselines are the expected losses;
            an LR that takes the mean of the other particles for them has them up to an error. To
            first order in it the mean does not change, but the variance does, and an empirical
            variance is that much less certain.
    """
    weights = points.weights

    def variance(baselines: Tensor) -> Tensor:
        values = estimator(baselines)
        return weights @ (values - weights @ values).square()

    baselines = points.expected_losses()
    values, slope = estimator(baselines), torch.autograd.functional.jacobian(variance, baselines)
    mean, exact = weights @ values, variance(baselines)
    exact = torch.where(exact < 1e-20, 0.0, exact)
    shares = (values - mean).square() - exact + (points.losses - baselines) @ slope.T
    return Exact.of(mean, exact, shares, weights)


def lr_with_many_particles(points: Points) -> Exact:
    return single_particle(points, points.likelihood_ratio)


def lr_without_baseline(points: Points) -> Exact:
    return single_particle(points, lambda baselines: points.likelihood_ratio(0.0))


def rp(points: Points) -> Exact:
    return single_particle(points, lambda baselines: points.pathwise)


def leave_one_out_variance(points: Points, particles: int) -> Tensor:
    r"""Return the exact variance [K] of LR with P particles and a leave-one-out baseline.

    It is the sum over steps of the unbiased sample covariances of score and loss, a U-statistic:

    .. math:: \frac{V[\psi]}{P} + \frac{\sum_{tu} (S_{tu} \Lambda_{tu} + C_{tu} C_{ut})}{P (P - 1)}

    with :math:`\psi = \sum_t (L_t - E L_t) s_t`, S and :math:`\Lambda` the covariances [H, H] of
    scores and of losses, and C those of scores with losses.
    """
    w, scores = points.weights, points.scores
    losses = points.losses - points.expected_losses()
    psi = lr_with_many_particles(points).variance
    s = torch.einsum("q,qtk,quk->ktu", w, scores, scores)
    c = torch.einsum("q,qtk,qu->ktu", w, scores, losses)
    between = torch.einsum("ktu,tu->k", s, torch.einsum("q,qt,qu->tu", w, losses, losses))
    between = between + torch.einsum("ktu,kut->k", c, c)
    return psi / particles + between / (particles * (particles - 1))


def leave_one_out_by_hand(
    problem: Problem, particles: int, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """[N, K]: independent LR gradients of P particles, each with the mean of the others."""
    shape = count * particles, problem.horizon
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    points = problem.by_hand(noise)
    losses = points.losses.reshape(count, particles, -1)
    scores = points.scores.reshape(count, particles, problem.horizon, -1)
    total = torch.zeros(())
    for i in range(particles):
        others = [j for j in range(particles) if j != i]
        advantage = losses[:, i] - losses[:, others].mean(1)
        total = total + (advantage.unsqueeze(-1) * scores[:, i]).sum(1)
    return total / particles


# The checks


def quantile(comparisons: int) -> float:
    """The normal deviation that one of these comparisons exceeds at the false-alarm rate."""
    return NormalDist().inv_cdf(1 - FALSE_ALARM_RATE / (2 * comparisons))


def z_scores(estimates: Tensor, mean: Tensor, variance: Tensor | None = None) -> Tensor:
    """[K]: the mean of independent estimates [N, K], in its standard errors from ``mean``.

    Standard errors are from the exact ``variance`` of an estimate, or else the empirical one. An
    estimate that does not vary must equal the mean to rounding.
    """
    error = estimates.mean(0) - mean
    variance = estimates.var(0) if variance is None else variance
    standard = (variance / len(estimates)).sqrt()
    exact = (error.abs() < 1e-9) & (standard < 1e-9)
    return torch.where(exact, 0.0, error / standard).abs()


def assert_mean(estimates: Tensor, mean: Tensor, variance: Tensor | None = None) -> None:
    """The z-scores are within the limit, with room for what the mean keeps of skewness."""
    count, scores, limit = len(estimates), z_scores(estimates, mean, variance), quantile(len(mean))
    centred = estimates - estimates.mean(0)
    skewness = centred.pow(3).mean(0) / centred.square().mean(0).clamp_min(1e-20).pow(1.5)
    # Cornish-Fisher, for the exact standard error and for the empirical one.
    share = limit**2 - 1 if variance is not None else 2 * limit**2 + 1
    room = share * skewness.abs() / (6 * count**0.5)
    if variance is None:  # Student's quantile, by its expansion in the degrees of freedom
        limit += (limit**3 + limit) / (4 * (count - 1))
    assert bool((scores < limit + room).all()), (
        f"z-scores {scores.tolist()}, limit {limit:.2f} and {room.tolist()} for skewness"
    )


def assert_variance(estimates: Tensor, exact: Exact, detects: float = 0.1) -> None:
    """The ratio of empirical to exact variance is one within its confidence bound.

    The bound is from the fourth moment of the estimates; the third moment of their squares, whose
    tails are heavy, shifts it (Cornish-Fisher). There must be estimates enough that a variance
    wrong by the share ``detects`` would be found out.
    """
    count, varies = len(estimates), exact.variance > 0
    limit = quantile(len(exact.mean))
    assert bool(((estimates - exact.mean)[:, ~varies].abs() < 1e-9).all())
    variance = exact.variance[varies]
    ratio = (estimates - exact.mean).square().mean(0)[varies] / variance
    error = exact.error[varies] / variance / count**0.5
    shift = (limit**2 - 1) * exact.skewness[varies] / (6 * count**0.5)
    assert bool(((limit + shift) * error < 0.6 * detects).all()), "too few estimates to tell"
    deviation = (ratio - 1) / error
    within = (deviation - shift).abs() < limit
    assert bool(within.all()), f"ratios {ratio.tolist()}, {deviation.tolist()} standard errors"
