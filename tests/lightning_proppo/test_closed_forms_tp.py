"""Total propagation against its mixture by hand: weights, means and variances.

TP's weights are made of the particles that they weigh: its bias is of order 1/P, and beside the
standard error of N rollouts of order sqrt(N / P). So most tests here take one rollout of very many
particles. In it the weights are constants but for an error that the test of the weights allows
for, and that the others leave out by mixing by hand with the weights that TP reports.

The weight V_RP / (V_LR + V_RP) is the best one for estimates that are not correlated. LR and RP of
the same particles are; that enters the mixture's variance here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import TotalProp

from .exact_moments import (
    CHAIN,
    COEFFICIENTS,
    QUADRATIC,
    SINGLE,
    Chain,
    Options,
    Points,
    Problem,
    Single,
    assert_mean,
    assert_variance,
    lr_with_many_particles,
    no_options,
    quantile,
    rollout_estimates,
    rp,
    single_particle,
    single_particle_estimates,
)

MANY = 1_500_000


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(21)


# By hand


class Mixture:
    """The mixing by hand on a problem's quadrature, from the last sample back to the first.

    Args:
        problem: what is rolled out.
        compared: parameters whose variances are summed; None: at the sample itself.
    """

    def __init__(self, problem: Problem, compared: Sequence[int] | None) -> None:
        self.problem, self.compared = problem, compared
        self.points = problem.points()

    def mix(self, baselines: Tensor, given: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """Mix with given weights of LR, the last sample's first.

        Returns:
            The estimates, as far as the weights reach; LR's and RP's part that are compared where
            they end.
        """
        points, horizon = self.points, self.problem.horizon
        losses = points.losses - baselines
        total = torch.zeros(())
        slopes, direct, carry, sigma = self._slopes()
        cotangent = slopes[:, -1]
        for step, k in zip(range(horizon - 1, -1, -1), [*given, None], strict=False):
            # At the sample: LR's and RP's gradient with respect to its mean.
            at_sample = losses[:, step] * points.noise[:, step] / sigma
            of_lr = losses[:, step, None] * points.scores[:, step]
            of_rp = cotangent[:, None] * direct[:, step]
            if k is None:
                if self.compared is None:
                    return total, at_sample[:, None], cotangent[:, None]
                return total, of_lr[:, self.compared], of_rp[:, self.compared]
            total = total + k * of_lr + (1 - k) * of_rp
            if step:
                mixed = k * at_sample + (1 - k) * cotangent
                cotangent = slopes[:, step - 1] + carry * mixed
        return total, total, total

    def _slopes(self) -> tuple[Tensor, Tensor, float, float]:
        """The costs' own derivatives [Q, H]; dx/dparameters [Q, H, K]; dx[t+1]/dx[t]; sigma."""
        points, noise = self.points, self.points.noise
        if isinstance(self.problem, Chain):
            x = self.problem.states(noise)
            direct = torch.stack([x[:, :-1], torch.ones_like(noise), noise], -1)
            return x[:, 1:] - self.problem.goal, direct, self.problem.values[0], CHAIN.values[2]
        direct = torch.stack([torch.ones_like(noise), noise], -1)
        return points.pathwise[:, :1], direct, 0.0, self.problem.values[1]

    def estimates(self, baselines: Tensor, weights: Sequence[float]) -> Tensor:
        return self.mix(baselines, weights)[0]

    def optimum(self, given: Sequence[float]) -> tuple[float, float, float]:
        """The inverse-variance weight at the next sample.

        Returns:
            The weight; the standard deviation and the skewness of a particle's share in it.
        """
        w, baselines = self.points.weights, self.points.expected_losses()

        def weight(baselines: Tensor) -> Tensor:
            _, lr, rp = self.mix(baselines, given)
            v_lr, v_rp = (w @ (g - w @ g).square() for g in (lr, rp))
            return v_rp.sum() / (v_lr.sum() + v_rp.sum())

        _, lr, rp = self.mix(baselines, given)
        squares = [(g - w @ g).square().sum(1) for g in (lr, rp)]
        v_lr, v_rp = (w @ s for s in squares)
        # What a particle adds to the weight: through both variances, and through the baselines.
        share = (v_lr * (squares[1] - v_rp) - v_rp * (squares[0] - v_lr)) / (v_lr + v_rp) ** 2
        slope = torch.autograd.functional.jacobian(weight, baselines)
        share = share + (self.points.losses - baselines) @ slope
        error = (w @ share.square()).sqrt()
        return float(weight(baselines)), float(error), float(w @ (share / error).pow(3))


def assert_weights(
    found: Sequence[Tensor], mixture: Mixture, particles: int, kept: int = 1
) -> None:
    """Each weight of LR, the last sample's first, is the optimum, given those before it."""
    weights, limit = [float(k) for k in found], quantile(len(found))
    assert len(weights) == mixture.problem.horizon
    for i, weight in enumerate(weights):
        if i % kept:
            assert weight == weights[i - 1]
            continue
        optimum, error, skewness = mixture.optimum(weights[:i])
        error /= particles**0.5
        shift = (limit**2 - 1) * skewness / (6 * particles**0.5)  # Cornish-Fisher
        assert (limit + abs(shift)) * error < 0.1 * optimum, "too few particles to tell"
        deviation = (weight - optimum) / error
        assert abs(deviation - shift) < limit, f"weight {i} is {weight}, not {optimum}"


# What TP may be told to compare, of the parameters, and what that is by hand

Target = tuple[Options, Sequence[int] | None, int]


def at(ivw_target: Any) -> Options:
    return lambda module, used: {"ivw_target": ivw_target}


SCALARS: dict[str, Target] = {
    "default": (no_options, (0, 1, 2), 1),
    "parameters": (at("parameters"), (0, 1, 2), 1),
    "module": (lambda module, used: {"ivw_target": module}, (0, 1, 2), 1),
    "one parameter": (lambda module, used: {"ivw_target": module.values[2]}, (2,), 1),
    "list of two": (lambda module, used: {"ivw_target": list(module.values)[:2]}, (0, 1), 1),
    "node": (at("node"), None, 1),
    "at intervals": (lambda module, used: {"k_interval": 2}, (0, 1, 2), 2),
    "node, at intervals": (lambda m, u: {"ivw_target": "node", "k_interval": 2}, None, 2),
}
EXPANDED: dict[str, Target] = {
    "expanded": (lambda module, used: {"ivw_target": used}, (0, 1, 2), 1),
    "one expanded": (lambda module, used: {"ivw_target": used[0]}, (0,), 1),
    "node": SCALARS["node"],
    "expanded, at intervals": (lambda m, used: {"ivw_target": used, "k_interval": 2}, (0, 1, 2), 2),
}


@pytest.mark.parametrize("target", [*SCALARS, "expanded", "one expanded"])
def test_the_weights_on_a_chain_are_the_inverse_variance_optimum(target: str) -> None:
    options, compared, kept = {**SCALARS, **EXPANDED}[target]
    particles = 400_000
    manager = PropagationManager("TP")
    rollout_estimates(manager, CHAIN, particles, 1, options, expanded=target in EXPANDED)
    mixture = Mixture(CHAIN, compared)
    assert_weights(manager.statistics["lr_weight"], mixture, particles, kept)


@pytest.mark.parametrize("target", EXPANDED)
def test_tp_on_a_chain_has_the_exact_mean_and_variance(target: str) -> None:
    options, compared, kept = EXPANDED[target]
    manager = PropagationManager("TP")
    estimates = single_particle_estimates(manager, CHAIN, MANY, options)
    found = manager.statistics["lr_weight"]
    mixture = Mixture(CHAIN, compared)
    assert_weights(found, mixture, MANY, kept)
    weights = [float(k) for k in found]
    exact = single_particle(mixture.points, lambda b: mixture.estimates(b, weights))
    torch.testing.assert_close(exact.mean, rp(mixture.points).mean)  # whatever the weights
    assert_mean(estimates, exact.mean, exact.variance)
    assert_variance(estimates, exact)


@pytest.mark.parametrize("cost", SINGLE, ids=str)
@pytest.mark.parametrize("target", ["expanded", "node"])
def test_tp_on_a_single_sample_has_the_exact_mean_and_variance(target: str, cost: Single) -> None:
    options, compared, _ = EXPANDED[target]
    manager = PropagationManager(TotalProp())
    estimates = single_particle_estimates(manager, cost, MANY, options)
    (found,) = manager.statistics["lr_weight"]
    points, k = cost.points(), float(found)
    mixture = Mixture(cost, compared and (0, 1))
    if target == "node" and cost.name == "linear":
        assert k == pytest.approx(0.0, abs=1e-12)  # RP's gradient at the sample is constant
    else:
        assert_weights([found], mixture, MANY)
    exact = single_particle(points, lambda b: mixture.estimates(b, [k]))
    v_lr, v_rp = lr_with_many_particles(points).variance, rp(points).variance
    expected = k**2 * v_lr + (1 - k) ** 2 * v_rp + 2 * k * (1 - k) * covariance(points)
    torch.testing.assert_close(exact.variance, expected)
    assert_mean(estimates, exact.mean, exact.variance)
    assert_variance(estimates, exact)


def covariance(points: Points) -> Tensor:
    """[K]: of LR, with the expected cost for a baseline, and RP."""
    lr = points.likelihood_ratio(points.expected_losses())
    return points.weights @ (lr * points.pathwise) - rp(points).mean ** 2


def test_the_mixture_of_a_quadratic_is_that_of_the_closed_forms() -> None:
    """Cost A + B eps + C eps^2, baseline A + C."""
    (mu, sigma), (_, c1, c2) = QUADRATIC.values, COEFFICIENTS["quadratic"]
    b, c = sigma * (c1 + 2 * c2 * mu), sigma**2 * c2
    v_rp = torch.tensor([4 * c**2, b**2 + 8 * c**2], dtype=torch.float64) / sigma**2
    v_lr = torch.tensor([2 * b**2 + 10 * c**2, 10 * b**2 + 56 * c**2], dtype=torch.float64)
    v_lr /= sigma**2
    both = torch.tensor([4 * c**2, 2 * b**2 + 16 * c**2], dtype=torch.float64) / sigma**2
    torch.testing.assert_close(covariance(QUADRATIC.points()), both)
    k = float(v_rp.sum() / (v_lr.sum() + v_rp.sum()))
    assert Mixture(QUADRATIC, (0, 1)).optimum([])[0] == pytest.approx(k, rel=1e-9)
    manager = PropagationManager("TP")
    rollout_estimates(manager, QUADRATIC, 400_000, 1)
    assert float(manager.statistics["lr_weight"][0]) == pytest.approx(k, rel=0.05)


# Scalar parameters, in repeated rollouts. By the influence function of the weights on the chain,
# the bias is a tenth of the standard error.


@pytest.mark.parametrize("target", [*SCALARS, "expanded"])
def test_tp_on_a_chain_has_the_exact_mean_in_repeated_rollouts(target: str) -> None:
    options, _, _ = {**SCALARS, **EXPANDED}[target]
    expanded = target in EXPANDED
    estimates = rollout_estimates(PropagationManager("TP"), CHAIN, 10_000, 60, options, expanded)
    assert_mean(estimates, rp(CHAIN.points()).mean)


# The checks can fail


def by_standard_deviation(lr: list[Tensor], rp: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Weights that are not the optimum."""
    s_lr, s_rp = (torch.cat(g, 1).var(0).sum().sqrt() for g in (lr, rp))
    return s_rp / (s_lr + s_rp), s_lr / (s_lr + s_rp)


@pytest.mark.parametrize(
    "weigh",
    [by_standard_deviation, lambda lr, rp: (0.5, 0.5), lambda lr, rp: (0.0, 1.0)],
    ids=["standard deviations", "halves", "RP alone"],
)
def test_other_weights_are_found_out(weigh: Callable[..., Any]) -> None:
    manager = PropagationManager(TotalProp(base={"var_weighting_func": weigh}))
    options, compared, _ = EXPANDED["expanded"]
    rollout_estimates(manager, CHAIN, 400_000, 1, options, expanded=True)
    with pytest.raises(AssertionError, match="weight 0 is"):
        assert_weights(manager.statistics["lr_weight"], Mixture(CHAIN, compared), 400_000)


def test_weights_that_add_up_to_more_than_one_are_found_out() -> None:
    manager = PropagationManager(TotalProp(base={"var_weighting_func": lambda *_: (0.11, 0.9)}))
    estimates = single_particle_estimates(manager, CHAIN, 100_000, EXPANDED["expanded"][0])
    with pytest.raises(AssertionError, match="z-scores"):
        assert_mean(estimates, rp(CHAIN.points()).mean)


def test_a_mixture_with_another_weight_has_another_variance() -> None:
    manager = PropagationManager("TP")
    options, compared, _ = EXPANDED["expanded"]
    estimates = single_particle_estimates(manager, CHAIN, MANY, options)
    mixture = Mixture(CHAIN, compared)
    weights = [1.4 * float(k) for k in manager.statistics["lr_weight"]]
    exact = single_particle(mixture.points, lambda b: mixture.estimates(b, weights))
    with pytest.raises(AssertionError, match="ratios"):
        assert_variance(estimates, exact)
