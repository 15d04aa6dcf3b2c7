"""16 bits: parameters under autocast, samples of them, and rollouts."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    MultivariateNormal,
    Normal,
)

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import RPProp

from ..distribution_catalogue import (
    CATALOGUE,
    NO_RSAMPLE,
    F,
    P,
    Shape,
    made,
    parameters_in,
    some_cost,
)
from ..exact_expectations import (
    MANY,
    Case,
    Sampler,
    particle_estimates,
)
from ..exact_moments import assert_mean

# -- over the catalogue ----------------------------------------------------------------------------


BF16 = torch.bfloat16


# torch itself makes no such distribution, or no such sample, in 16 bits.
ONLY_WIDE = {
    "LowRankMultivariateNormal",
    "MultivariateNormal of covariances",
    "MultivariateNormal of precisions",
}


NARROW = [name for name in CATALOGUE if name not in ONLY_WIDE]


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    a, b = (torch.cat([g.to(F).flatten() for g in gs]) for gs in (found, expected))
    return float((a - b).norm() / (b.norm() + 1e-12))  # a gradient of zero may be rounded


def run_in(
    dtype: torch.dtype, autocast: bool, estimator: Any, name: str, shape: Shape = (P, 2)
) -> tuple[Tensor, list[Tensor]]:
    with parameters_in(dtype), torch.autocast("cpu", BF16, enabled=autocast):
        dist, leaves = made(name, shape, 0)
        manager = PropagationManager(estimator)
        torch.manual_seed(3)
        x = manager.sample(dist)
        loss = manager.loss(some_cost(x))
        return x.detach(), list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        (name, estimator)
        for name in NARROW
        for estimator in (("LR",) if name in NO_RSAMPLE else ("LR", "TP", "TPX"))
    ],
)
def test_16_bit_parameters_under_autocast_give_what_32_bits_give(name: str, estimator: str) -> None:
    """The same samples in float32, and gradients that were rounded once or twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        expected, gradients_32 = run_in(torch.float32, False, estimator, name)
        x, gradients_16 = run_in(BF16, True, estimator, name)
        same, unchanged = run_in(torch.float32, True, estimator, name)
    assert x.dtype == expected.dtype
    torch.testing.assert_close(x, expected, rtol=0.01, atol=0.01)
    assert {g.dtype for g in gradients_16} == {BF16}
    # In bfloat16 a number is known to 0.4 %.
    assert relative_error(gradients_16, gradients_32) < 0.02
    # And 32-bit parameters are not touched at all.
    assert torch.equal(same, expected)
    assert relative_error(unchanged, gradients_32) < 1e-6


@pytest.mark.parametrize("name", NARROW)
def test_16_bit_samples_are_weighed_before_they_are_rounded(name: str) -> None:
    expected, _ = run_in(torch.float32, False, "LR", name)
    x, found = run_in(BF16, False, "LR", name)
    assert x.dtype == (BF16 if expected.is_floating_point() else torch.int64)
    torch.testing.assert_close(x.float(), expected.float(), rtol=0.02, atol=0.02)
    with parameters_in(torch.float32):
        dist, leaves = made(name, (P, 2), 0)
    costs = some_cost(x)
    deviations = costs - (costs.sum() - costs) / (P - 1)
    scores = dist.log_prob(expected).reshape(P, -1).sum(1)
    by_hand = torch.autograd.grad((deviations * scores).mean(), leaves)
    assert relative_error(found, list(by_hand)) < 0.02


@pytest.mark.parametrize("autocast", [False, True])
def test_attached_rp_is_exactly_what_pytorch_does(autocast: bool) -> None:
    loc = torch.linspace(0, 1, P).to(BF16).requires_grad_()
    scale = torch.full((P,), 0.5, dtype=BF16, requires_grad=True)
    tril = torch.diag_embed(torch.full((P, 2), 0.5)).requires_grad_()
    with torch.autocast("cpu", BF16, enabled=autocast):
        for dist in (Normal(loc, scale), MultivariateNormal(torch.zeros(P, 2), scale_tril=tril)):
            torch.manual_seed(0)
            x = PropagationManager("RP").sample(dist)
            torch.manual_seed(0)
            y = dist.rsample()
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


def test_detached_rp_draws_in_32_bits() -> None:
    loc = torch.ones(P, 2, dtype=BF16, requires_grad=True)
    for autocast, dtype in ((True, torch.float32), (False, BF16)):
        with torch.autocast("cpu", BF16, enabled=autocast):
            manager = PropagationManager(RPProp())
            x = manager.sample(Normal(loc, 1e-3))
            assert x.dtype == dtype
            (found,) = torch.autograd.grad(manager.loss(x.float().sum(1)), loc)
        assert (len(x.unique()) == 2 * P) == autocast
        torch.testing.assert_close(found, torch.full_like(loc, 1 / P))


def test_noise_around_a_state_of_16_bits() -> None:
    x = torch.ones(P, 2, dtype=BF16, requires_grad=True)
    options = {"dist_class": Normal, "dist_params": (torch.zeros(P, 2, dtype=BF16), 1e-3)}
    for estimator in ("LR", "TP", "BIW"):
        for autocast, dtype in ((True, torch.float32), (False, BF16)):
            with torch.autocast("cpu", BF16, enabled=autocast):
                manager = PropagationManager(estimator)
                y = manager.forward(x, **options)
                assert y.dtype == dtype
                (found,) = torch.autograd.grad(manager.loss(y.float().sum(1)), x)
            assert bool(torch.isfinite(found).all())


# -- against exact gradients, rounding included ----------------------------------------------------


# Noise of one rounding step of bfloat16 around 1.0, which 16 bits would lose.
STEP = 2.0**-7


def steps(x: Tensor) -> Tensor:
    z = (x.to(F) - 1.0) / STEP
    return z.square() + z


@pytest.mark.parametrize("estimator", ["LR", "TP", "TPX"])
def test_noise_too_small_for_16_bits_is_not_lost_under_autocast(estimator: str) -> None:
    small = STEP / 16

    def costs(sample: Sampler, t: Tensor) -> Tensor:
        with torch.autocast("cpu", BF16):
            x = sample(Normal(t[:, 0].to(BF16), t[:, 1].to(BF16)))
            assert x.dtype == torch.float32
            return steps(x)

    def exact(t: Tensor) -> Tensor:
        z = (t[0] - 1) / STEP
        return z.square() + z + (t[1] / STEP).square()

    assert_mean(*particle_estimates(estimator, Case("small", [1.0, small], costs, exact)))


def rounded_mean(t: Tensor) -> Tensor:
    """Of the costs of samples rounded to bfloat16: a sum over the cells of the rounding."""
    below, above = 1 - torch.arange(40, 0, -1) * STEP / 2, 1 + torch.arange(40) * STEP
    values = torch.cat([below, above]).to(F)
    edges = (values[1:] + values[:-1]) / 2
    cdf = torch.special.ndtr((edges - t[0]) / t[1])
    ends = torch.zeros(1, dtype=F), torch.ones(1, dtype=F)
    return torch.cat([ends[0], cdf, ends[1]]).diff() @ steps(values)


@pytest.mark.parametrize("general", [False, True])
def test_lr_of_a_pure_16_bit_model_is_exact_rounding_included(general: bool) -> None:
    def costs(sample: Sampler, t: Tensor) -> Tensor:
        dist: Distribution = Normal(t[:, 0].to(BF16), t[:, 1].to(BF16))
        if general:
            dist = MultivariateNormal(dist.loc[:, None], scale_tril=dist.scale[:, None, None])
        x = sample(dist).reshape(-1)
        assert x.dtype == BF16
        return steps(x)

    assert_mean(*particle_estimates("LR", Case("rounded", [1.0, STEP], costs, rounded_mean)))


def test_the_density_at_the_rounded_sample_would_be_found_out() -> None:
    torch.manual_seed(0)
    loc, scale = torch.tensor([1.0, STEP], dtype=F)
    x = (loc + scale * torch.randn(MANY, dtype=F)).to(BF16).to(F)
    z = (x - loc) / scale
    scores = torch.stack([z / scale, (z.square() - 1) / scale], 1)
    value = torch.stack([loc, scale]).requires_grad_()
    (exact,) = torch.autograd.grad(rounded_mean(value), value)
    costs = steps(x)
    with pytest.raises(AssertionError, match="z-scores"):
        assert_mean((costs - costs.mean())[:, None] * scores, exact)


# -- rollouts --------------------------------------------------------------------------------------


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.reshape(len(x), 4)).reshape(x.shape)


ESTIMATORS = ["LR", "TP", "TPX", "BIW", "TP+BIW", "TP+MESH", "GS", "TP+GS", "GR"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("mode", ["autocast", "autocast, backward within", "pure"])
def test_rollouts_in_16_bits_have_the_gradients_of_32(estimator: str, mode: str) -> None:
    """Samples are float32 under autocast; of the parameters' dtype in a pure 16-bit model."""

    def gradient(mode: str) -> list[Tensor]:
        torch.manual_seed(2)
        net = Step().to(BF16).to(BF16 if mode == "pure" else torch.float32)
        dtype = net.layers[0].weight.dtype
        manager = PropagationManager(estimator)
        x = torch.zeros(256, 2, 2, dtype=dtype)
        torch.manual_seed(4)
        with torch.autocast("cpu", BF16, enabled=mode.startswith("autocast")):
            for _ in range(3):
                x = manager.sample(Normal(net(x), torch.full((), 0.25, dtype=dtype)))
                assert x.dtype == dtype
                options = {"lossfunc": lambda s: (s - 0.5).square().sum((1, 2))}
                manager.append_loss(x, **options)
            if mode == "autocast, backward within":
                manager.loss().backward()
        if mode != "autocast, backward within":
            manager.loss().backward()
        return [p.grad for p in net.parameters()]

    assert 0 < relative_error(gradient(mode), gradient("32")) < (0.05 if mode == "pure" else 0.03)
