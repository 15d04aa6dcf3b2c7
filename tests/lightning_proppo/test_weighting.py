"""The weights of total propagation: inverse variances, with covariance, cross-fitted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Gamma, Independent, MultivariateNormal, Normal

from lightning_proppo import PropagationManager, expand
from lightning_proppo.mathematics.variances import (
    inverse_variance_weighting,
    weights_from_variances,
)
from lightning_proppo.propagators import TotalProp, TPXProp

MU, SIGMA = 0.7, 0.6
F = torch.float64


def variance_of_mixture(k: Tensor, v1: Tensor, v2: Tensor, c: Tensor) -> Tensor:
    return k**2 * v1 + (1 - k) ** 2 * v2 + 2 * k * (1 - k) * c


def test_plain_weights_may_be_an_eighth_worse_than_rp_and_the_covariances_are_not() -> None:
    """LR is RP and independent noise besides: C = V_RP. The worst case is V_LR = 3 V_RP."""
    v_lr, v_rp, c = (torch.tensor(v, dtype=F) for v in (3.0, 1.0, 1.0))
    k, _ = weights_from_variances(v_lr, v_rp)
    torch.testing.assert_close(variance_of_mixture(k, v_lr, v_rp, c), torch.tensor(1.125, dtype=F))
    k, _ = weights_from_variances(v_lr, v_rp, c)
    assert variance_of_mixture(k, v_lr, v_rp, c) <= v_rp


def test_the_covariances_weights_have_the_least_variance() -> None:
    grid = torch.linspace(0, 1, 10001, dtype=F)
    for _ in range(50):
        factor = torch.randn(2, 2, dtype=F)
        (v1, c), (_, v2) = factor @ factor.T
        k, other = weights_from_variances(v1, v2, c)
        assert float(k + other) == pytest.approx(1.0)
        best = variance_of_mixture(grid, v1, v2, c).min()
        assert float(variance_of_mixture(k, v1, v2, c)) <= float(best) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(
    ("v1", "v2", "c", "k"),
    [
        (1.0, 1e300, -1e160, 1.0),
        (1e300, 1.0, 1e290, 0.0),  # more than can be: rounding of a huge variance
        (0.0, 0.0, 0.0, 0.5),
        (2.0, 2.0, 2.0, 0.5),
        (float("inf"), 1.0, float("nan"), 0.0),
        (1.0, float("nan"), float("nan"), 1.0),
        (float("nan"), float("inf"), float("nan"), 1.0),
    ],
)
def test_weights_are_finite_whatever_the_covariance(
    v1: float, v2: float, c: float, k: float
) -> None:
    found = weights_from_variances(*(torch.tensor(v, dtype=F) for v in (v1, v2, c)))
    assert [float(w) for w in found] == pytest.approx([k, 1 - k], abs=1e-9)


@pytest.mark.parametrize("scalar", [True, False])
def test_gradients_are_weighed_with_their_covariance(scalar: bool) -> None:
    x1, x2 = torch.randn(20, 3, dtype=F), torch.randn(20, 3, dtype=F)
    x2 = x2 + 0.7 * x1
    d1, d2 = x1 - x1.mean(0), x2 - x2.mean(0)
    sums = [(d1 * d1).sum(0), (d2 * d2).sum(0), (d1 * d2).sum(0)]
    expected = weights_from_variances(*([s.sum() for s in sums] if scalar else sums))
    found = inverse_variance_weighting(x1, x2, scalar, with_covariance=True)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


# In the propagator, on f(x) = x^2 with x ~ N(mu, sigma^2). With A = mu^2, B = 2 sigma mu,
# C = sigma^2 (f in powers of the noise) and LR's baseline at the mean, for mu and sigma in turn:
# V_RP = 4C^2, B^2 + 8C^2; V_LR = 2B^2 + 10C^2, 10B^2 + 56C^2; Cov = 4C^2, 2B^2 + 16C^2; / sigma^2.


def exact_moments() -> tuple[Tensor, Tensor, Tensor]:
    b2, c2 = (2 * SIGMA * MU) ** 2, SIGMA**4
    sums = (12 * b2 + 66 * c2, b2 + 12 * c2, 2 * b2 + 20 * c2)
    return tuple(torch.tensor(s / SIGMA**2, dtype=F) for s in sums)  # type: ignore[return-value]


def one_sample(propagator: TotalProp, particles: int, target: str = "parameters") -> Any:
    values = [torch.tensor(v, dtype=F, requires_grad=True) for v in (MU, SIGMA)]
    loc, scale = (v.expand(particles, 1) for v in values)
    options: dict[str, Any] = {}
    if target == "expanded":
        loc, scale = (expand(v, particles).unsqueeze(1) for v in values)
        options = {"ivw_target": [loc, scale]}
    manager = PropagationManager(propagator)
    x = manager.sample(Normal(loc, scale), **options)
    gradient = torch.stack(torch.autograd.grad(manager.loss(x.square()), values))
    return gradient, float(manager.statistics["lr_weight"][0])


@pytest.mark.parametrize("target", ["parameters", "expanded"])
@pytest.mark.parametrize("weighting", ["inverse-variance", "covariance", "cross-fitted"])
def test_the_weight_is_the_optimum_computed_by_hand(weighting: str, target: str) -> None:
    v_lr, v_rp, c = exact_moments()
    k, _ = weights_from_variances(v_lr, v_rp, c if weighting == "covariance" else None)
    _, found = one_sample(TotalProp(weighting=weighting), 400_000, target)
    assert found == pytest.approx(float(k), rel=0.05)


# The closed form for normal samples against the general way


class General(Normal):
    """A normal distribution that nobody recognizes."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4)).to(F)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.layers(x).chunk(2, 1)
        return loc, log_scale.exp()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ivw_target": "node"},
        {"weighting": "covariance"},
        {"weighting": "covariance", "ivw_target": "node"},
        {"weighting": "cross-fitted"},
        {"weighting": "cross-fitted", "ivw_target": "node"},
        {"k_interval": 2},
        {"k_interval": 2, "weighting": "cross-fitted"},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["dist", "offset"])
def test_normal_samples_are_treated_as_any_others(options: dict[str, Any], form: str) -> None:
    torch.manual_seed(3)
    net = Net()
    found = []
    for family in (Normal, General):
        torch.manual_seed(4)
        manager = PropagationManager(TotalProp(**options))
        x = torch.linspace(-1, 1, 12, dtype=F).reshape(6, 2)
        for _ in range(4):
            loc, scale = net(x)
            if form == "dist":
                x = manager.sample(family(loc, scale))
            else:
                params = {"loc": torch.zeros_like(loc), "scale": scale}
                x = manager.forward(loc, dist_class=family, dist_params=params)
            manager.append_loss(torch.sin(x).sum(1))
        gradients = torch.autograd.grad(manager.loss(), net.parameters())
        found.append((gradients, manager.statistics["lr_weight"]))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda loc: Independent(Normal(loc, 0.5), 1),
        lambda loc: MultivariateNormal(loc, 0.25 * torch.eye(2, dtype=F)),
        lambda loc: Gamma(loc.exp(), 1.0),
    ],
)
@pytest.mark.parametrize("weighting", ["inverse-variance", "covariance", "cross-fitted"])
@pytest.mark.parametrize("target", ["parameters", "node"])
def test_every_weighting_takes_any_distribution(make: Any, weighting: str, target: str) -> None:
    theta = torch.tensor([0.3, -0.2], dtype=F, requires_grad=True)
    manager = PropagationManager(TotalProp(weighting=weighting, ivw_target=target))
    x = torch.zeros(8, 2, dtype=F)
    for _ in range(3):
        x = manager.sample(make(0.5 * x + theta))
    (gradient,) = torch.autograd.grad(manager.loss(x.square().sum(1)), theta)
    assert bool(gradient.isfinite().all())
    assert len(manager.statistics["lr_weight"]) == 3


@pytest.mark.parametrize("k_interval", [1, 2, 3, 100])
def test_weights_are_kept_for_an_interval_of_nodes(k_interval: int) -> None:
    theta = torch.ones(1, dtype=F, requires_grad=True)
    manager = PropagationManager(TotalProp(k_interval=k_interval))
    x = torch.zeros(50, 1, dtype=F)
    for _ in range(6):
        x = manager.sample(Normal((x + theta).sin(), 0.1))
        manager.append_loss(x.square())
    manager.loss().backward()
    weights = torch.stack(manager.statistics["lr_weight"])
    assert len(weights.unique()) == -(-6 // k_interval)
    assert [float(weights[i - i % k_interval]) for i in range(6)] == weights.tolist()


def test_tpx_is_total_propagation_weighted_at_the_samples() -> None:
    found = []
    for propagator in (TPXProp(), TotalProp(ivw_target="node"), "TPX"):
        torch.manual_seed(5)
        theta = torch.zeros(2, dtype=F, requires_grad=True)
        manager = PropagationManager(propagator)
        x = manager.sample(Normal(theta.expand(9, 2), 1.0))
        found.append(torch.autograd.grad(manager.loss(x.square().sum(1)), theta)[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_an_unknown_weighting_is_named() -> None:
    told = r"weighting must be one of .*Did you mean 'covariance'\?"
    with pytest.raises(ValueError, match=told):
        TotalProp(weighting="covariant")
    with pytest.raises(ValueError, match=told):
        PropagationManager("TP").sample(Normal(torch.zeros(3, 1), 1.0), weighting="covariant")


def test_a_function_of_ones_own_goes_with_no_other_weighting() -> None:
    base = {"var_weighting_func": lambda lr, rp: (0.5, 0.5)}
    manager = PropagationManager(TotalProp(base=base, weighting="covariance"))
    theta = expand(torch.zeros(1, requires_grad=True), 3)
    with pytest.raises(TypeError, match="weighting must be left as it is"):
        manager.sample(Normal(theta, 1.0), ivw_target=theta)


def test_a_half_is_told_of_by_nothing_of_the_other() -> None:
    """Its losses are less a mean of its own, and its weights do not move with the other's."""

    def weights(cost_of_an_odd_one: float) -> list[float]:
        torch.manual_seed(6)
        theta = torch.zeros(1, dtype=F, requires_grad=True)
        manager = PropagationManager(TotalProp(weighting="cross-fitted"))
        x = manager.sample(Normal(theta.expand(8, 1), 1.0))
        constant = torch.zeros(8, 1, dtype=F)
        constant[3] = cost_of_an_odd_one
        message = manager.backward(x.square() + constant)
        return [float(k_lr) for k_lr, _ in message["k_lr_k_rp"]]

    even, odd = zip(weights(0.0), weights(7.0), strict=True)
    assert even[0] == even[1]
    assert odd[0] != odd[1]


# The bias, in many repetitions


def z_score(propagator: TotalProp, target: str, repetitions: int, particles: int) -> float:
    """Of the gradients with respect to mean and scale, against 2 mu and 2 sigma; the larger."""
    found = torch.stack([one_sample(propagator, particles, target)[0] for _ in range(repetitions)])
    truth = torch.tensor([2 * MU, 2 * SIGMA], dtype=F)
    scores = (found.mean(0) - truth) / (found.std(0) / repetitions**0.5)
    return float(scores.abs().max())


@pytest.mark.parametrize("target", ["parameters", "expanded"])
def test_cross_fitted_weights_leave_no_bias_with_few_particles(target: str) -> None:
    """Beyond 5 once in a million tests. A baseline that the halves share would show here."""
    assert z_score(TotalProp(weighting="cross-fitted"), target, 4000, 8) < 5


def test_weights_of_the_particles_themselves_do() -> None:
    """Else the test above could not fail."""
    assert z_score(TotalProp(), "parameters", 4000, 8) > 5


def test_cross_fitted_weights_at_the_sample_leave_no_bias() -> None:
    found = z_score(TotalProp(weighting="cross-fitted", ivw_target="node"), "parameters", 4000, 8)
    assert found < 5
