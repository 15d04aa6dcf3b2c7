"""Batch importance weighted gradients and the stochastic mesh, through the public manager."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Gamma, Independent, Normal

from lightning_proppo import PropagationManager
from lightning_proppo.mathematics.mixtures import share_samples
from lightning_proppo.propagators import BIWProp, LRProp, Propagator, TotalProp, TPXProp

A, B, SIGMA, START, GOAL, HORIZON = 0.8, 0.3, 0.5, 1.0, 0.4, 3
LIMIT = 5.2  # of the largest of three z-scores: a right estimator is beyond it in 6e-7 of tests


def truth() -> Tensor:
    """The gradient of E sum_t (x_t - r)^2 / 2 for x' = a x + b + sigma eps, from its moments."""
    a, b, sigma = values = parameters()
    mean, variance, total = torch.tensor(START).double(), torch.zeros(()).double(), 0.0
    for _ in range(HORIZON):
        mean, variance = a * mean + b, a**2 * variance + sigma**2
        total = total + 0.5 * ((mean - GOAL) ** 2 + variance)
    return torch.stack(torch.autograd.grad(total, values))


def parameters() -> list[Tensor]:
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (A, B, SIGMA)]


def gradient(propagator: Propagator, particles: int) -> Tensor:
    a, b, sigma = values = parameters()
    manager = PropagationManager(propagator)
    x = torch.full((particles, 1), START, dtype=torch.float64)
    for _ in range(HORIZON):
        loc = a * x + b
        x = manager.sample(Normal(loc, sigma.expand_as(loc)))
        manager.append_loss(0.5 * (x - GOAL).square())
    return torch.stack(torch.autograd.grad(manager.loss(), values))


def z_scores(estimates: Tensor) -> Tensor:
    return (estimates.mean(0) - truth()) / (estimates.std(0) / len(estimates) ** 0.5)


@pytest.mark.parametrize("target", ["parameters", "node"])
def test_variances_are_those_of_the_samples_contributions(target: str) -> None:
    """Neighbours' cotangents are made of the same samples, and look too much alike."""
    theta = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    manager = PropagationManager(TotalProp(share="likelihoods", ivw_target=target))
    locs = theta + torch.linspace(-0.3, 0.3, 12, dtype=torch.float64).unsqueeze(1)
    x = manager.sample(Normal(locs, SIGMA))
    torch.autograd.grad(manager.loss((x**3).sin()), theta)
    x = x.detach()
    shared = share_samples(x, locs, torch.full_like(x, SIGMA))
    deviations, _ = shared.deviations((x**3).sin())
    (lr,) = shared.lr_contributions(deviations, with_scale=False)
    rp = (x**3).cos() * 3 * x**2 / 12
    expected = rp.var() / (rp.var() + lr.var())
    assert float(manager.statistics["lr_weight"][0]) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("noise", ["independent", "quasi-random"])
@pytest.mark.parametrize("share", ["likelihoods", "mesh"])
def test_sharing_in_groups_is_unbiased(share: str, noise: str) -> None:
    """With as few particles as 24; quasi-random noise has a bias of O(1/P), too small to show."""
    particles = 24 if noise == "independent" else 120
    propagator = BIWProp(share=share, group_size=particles // 4, noise=noise)
    found = torch.stack([gradient(propagator, particles) for _ in range(400)])
    assert bool((z_scores(found).abs() < LIMIT).all()), z_scores(found)


@pytest.mark.parametrize("share", ["likelihoods", "mesh"])
def test_sharing_in_the_whole_batch(share: str) -> None:
    found = torch.stack([gradient(BIWProp(share=share), 200) for _ in range(200)])
    assert bool((z_scores(found).abs() < LIMIT).all()), z_scores(found)


@pytest.mark.parametrize("share", ["likelihoods", "mesh"])
@pytest.mark.parametrize("target", ["parameters", "node"])
def test_total_propagation_with_shared_samples(share: str, target: str) -> None:
    propagator = TotalProp(share=share, group_size=50, ivw_target=target)
    found = torch.stack([gradient(propagator, 1000) for _ in range(100)])
    assert bool((z_scores(found).abs() < LIMIT).all()), z_scores(found)


def chaotic_gradient(propagator: Propagator) -> Tensor:
    """Of a map that stretches and folds, and so forgets its noise."""
    theta = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    manager = PropagationManager(propagator)
    x = torch.full((200, 1), 0.5, dtype=torch.float64)
    for _ in range(15):
        loc = 2.0 * torch.sin(3.0 * x + theta)
        x = manager.sample(Normal(loc, torch.full_like(loc, 0.05)))
    return torch.autograd.grad(manager.loss(x.square()), theta)[0]


def test_sharing_lowers_the_variance_where_noise_is_forgotten() -> None:
    """The F-test's bound for 100 against 100 repetitions at 1e-6 is 2.7."""
    variance = {
        name: torch.stack([chaotic_gradient(propagator) for _ in range(100)]).var(0)
        for name, propagator in (
            ("LR", LRProp()),
            ("BIW", BIWProp(group_size=20)),
            ("LR+mesh", BIWProp(share="mesh", group_size=20)),
            ("TP", TotalProp()),
            ("TP+mesh", TotalProp(share="mesh", group_size=20)),
        )
    }
    assert variance["LR"] > 2.7 * variance["BIW"], variance
    assert variance["BIW"] > 2.7 * variance["LR+mesh"], variance
    assert variance["TP"] > 2.7 * variance["TP+mesh"], variance


def test_particles_that_share_nothing_have_plain_gradients() -> None:
    """Far apart, the likelihoods of the others vanish."""
    start = 1e6 * torch.arange(6, dtype=torch.float64).unsqueeze(1)
    found = []
    for propagator in (LRProp(), BIWProp(), BIWProp(share="mesh")):
        theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        torch.manual_seed(1)
        manager = PropagationManager(propagator)
        x = start
        for _ in range(3):
            x = manager.sample(Normal(x + theta, 1.0))
        found.append(torch.autograd.grad(manager.loss(torch.cos(x)), theta)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=0)
    torch.testing.assert_close(found[2], found[0], rtol=1e-8, atol=0)


@pytest.mark.parametrize("propagator", [BIWProp(), BIWProp(share="mesh", group_size=3)])
def test_events_of_several_axes_and_the_papers_form(propagator: BIWProp) -> None:
    """Shapes make no difference, nor whether the location is in x or in the distribution."""
    theta = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for form in ("flat", "event", "offset"):
        torch.manual_seed(2)
        manager = PropagationManager(propagator)
        loc = theta.expand(9, 2, 3) * torch.arange(9).double().reshape(9, 1, 1) / 9
        if form == "flat":
            x = manager.sample(Normal(loc.flatten(1), 0.7)).reshape(9, 2, 3)
        elif form == "event":
            x = manager.sample(Independent(Normal(loc, 0.7), 2))
        else:
            params = {"loc": torch.zeros_like(loc), "scale": 0.7}
            x = manager.forward(loc, dist_class=Normal, dist_params=params)
        loss = manager.loss(x.square().flatten(1).sum(1))
        found.append(torch.autograd.grad(loss, theta)[0])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_nothing_is_sent_without_costs_after_the_sample() -> None:
    first, second = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    manager = PropagationManager("BIW")
    manager.append_loss(manager.sample(Normal(first.expand(5, 1), 1.0)))
    manager.sample(Normal(second.expand(5, 1), 1.0))
    found = torch.autograd.grad(manager.loss(), [first, second], allow_unused=True)
    assert float(found[0]) != 0
    assert found[1] is None


ONES = torch.ones(5, 2)


@pytest.mark.parametrize("make", [BIWProp, TotalProp])
@pytest.mark.parametrize(
    ("options", "dist", "error", "message"),
    [
        ({"share": "mash"}, Normal(ONES, ONES), ValueError, "share must be one of.*'mesh'"),
        ({"share": "mesh", "group_size": 1}, Normal(ONES, ONES), ValueError, "group_size .*got 1"),
        ({"share": "mesh"}, Gamma(ONES, ONES), TypeError, "share='mesh' is for normally.*Gamma"),
        (
            {"noise": "quasi"},
            Normal(ONES, ONES),
            ValueError,
            "noise must be one of.*quasi-random; got 'quasi'",
        ),
        ({"noise": "quasi-random"}, Gamma(ONES, ONES), TypeError, "normally dist.*got Gamma"),
        ({"share": "mesh"}, Normal(torch.ones(()), 1.0), ValueError, "particles first"),
    ],
)
def test_what_cannot_be_shared_is_named(
    make: Any, options: dict[str, Any], dist: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PropagationManager(make(**options)).sample(dist)


def test_a_discrete_distribution_is_not_shared() -> None:
    with pytest.raises(TypeError, match="got Categorical"):
        PropagationManager("BIW").sample(Categorical(logits=ONES))


def test_what_is_shared_is_not_cross_fitted() -> None:
    manager = PropagationManager(TPXProp(share="mesh", weighting="cross-fitted"))
    with pytest.raises(ValueError, match="particles that do not share; got share='mesh'"):
        manager.sample(Normal(ONES, ONES))
