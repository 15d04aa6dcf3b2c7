"""Every estimator with every distribution: a contract over a catalogue."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

from lightning_proppo import PropagationManager

from .distribution_catalogue import (
    CATALOGUE,
    NO_RSAMPLE,
    SHAPES,
    WITH_RSAMPLE,
    P,
    Shape,
    made,
    some_cost,
)


def gradients(
    estimator: str, name: str, shape: Shape, reinterpreted: int
) -> tuple[list[Tensor], Tensor, float | None]:
    """Of each parameter; the sample; the weight of LR."""
    dist, leaves = made(name, shape, reinterpreted)
    manager = PropagationManager(estimator)
    torch.manual_seed(3)
    x = manager.sample(dist)
    assert x.shape == dist.batch_shape + dist.event_shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = torch.autograd.grad(manager.loss(some_cost(x)), leaves)
    weights = manager.statistics.get("lr_weight")
    return list(found), x.detach(), None if not weights else float(weights[0])


@pytest.mark.parametrize("name", CATALOGUE)
def test_lr_is_the_score_times_the_deviation_from_the_others(name: str) -> None:
    for shape, reinterpreted in SHAPES:
        found, x, _ = gradients("LR", name, shape, reinterpreted)
        dist, leaves = made(name, shape, reinterpreted)
        torch.manual_seed(3)
        torch.testing.assert_close(dist.sample(), x)
        costs = some_cost(x)
        deviations = costs - (costs.sum() - costs) / (P - 1)
        scores = dist.log_prob(x).reshape(P, -1).sum(1)
        expected = torch.autograd.grad((deviations * scores).mean(), leaves)
        torch.testing.assert_close(found, list(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", WITH_RSAMPLE)
def test_rp_is_what_autograd_says(name: str) -> None:
    for shape, reinterpreted in SHAPES:
        found, _, _ = gradients("RP", name, shape, reinterpreted)
        dist, leaves = made(name, shape, reinterpreted)
        torch.manual_seed(3)
        expected = torch.autograd.grad(some_cost(dist.rsample()).mean(), leaves)
        torch.testing.assert_close(found, list(expected))


@pytest.mark.parametrize("name", WITH_RSAMPLE)
def test_tp_is_a_mixture_of_lr_and_rp(name: str) -> None:
    """With one weight for all parameters: the one that it reports."""
    for shape, reinterpreted in SHAPES:
        lr, x, _ = gradients("LR", name, shape, reinterpreted)
        rp, y, _ = gradients("RP", name, shape, reinterpreted)
        tp, z, k = gradients("TP", name, shape, reinterpreted)
        torch.testing.assert_close(x, z)
        torch.testing.assert_close(y, z)
        assert k is not None
        assert 0 <= k <= 1
        for found, a, b in zip(tp, lr, rp, strict=True):
            # The weight is noted in 32 bits.
            allowed = 1e-9 + 2**-24 * (a - b).abs()
            assert bool(((found - (k * a + (1 - k) * b)).abs() <= allowed).all())


@pytest.mark.parametrize("name", WITH_RSAMPLE)
def test_tpx_lies_between_lr_and_rp_coordinate_by_coordinate(name: str) -> None:
    for shape, reinterpreted in SHAPES:
        lr, _, _ = gradients("LR", name, shape, reinterpreted)
        rp, _, _ = gradients("RP", name, shape, reinterpreted)
        tpx, _, k = gradients("TPX", name, shape, reinterpreted)
        assert k is not None
        assert 0 <= k <= 1
        for a, b, mixed in zip(lr, rp, tpx, strict=True):
            assert bool(torch.isfinite(mixed).all())
            if mixed.shape == shape and not torch.equal(a, b):
                # A particle's row depends on its own coordinates only, with weights in [0, 1].
                low, high = torch.minimum(a, b) - 1e-9, torch.maximum(a, b) + 1e-9
                assert bool(((low <= mixed) & (mixed <= high)).all())


@pytest.mark.parametrize("estimator", ["RP", "TP", "TPX", "GR"])
@pytest.mark.parametrize("name", NO_RSAMPLE)
def test_without_rsample_lr_must_be_used(name: str, estimator: str) -> None:
    for shape, reinterpreted in SHAPES:
        dist, _ = made(name, shape, reinterpreted)
        with pytest.raises(TypeError, match=r"has no rsample; use LR \(LRProp\)") as raised:
            PropagationManager(estimator).sample(dist)
        assert name.split()[0] in str(raised.value) or name.startswith("squashed")


def test_what_has_no_rsample_is_named_with_what_it_is_wrapped_in() -> None:
    mixed = MixtureSameFamily(Categorical(torch.ones(P, 2)), Normal(torch.zeros(P, 2), 1.0))
    dist = TransformedDistribution(mixed, [TanhTransform()])
    with pytest.raises(TypeError, match=r"TransformedDistribution\(MixtureSameFamily\) has no rs"):
        PropagationManager("TP").sample(dist)


@pytest.mark.parametrize(
    ("name", "estimator"),
    [*((name, "LR") for name in CATALOGUE), *((name, "TP") for name in WITH_RSAMPLE)],
)
def test_particles_must_come_first(name: str, estimator: str) -> None:
    dist, _ = made(name, (), 0)
    with pytest.raises(ValueError, match=r"dist must have particles first.*expand"):
        PropagationManager(estimator).sample(dist)


def test_integer_samples() -> None:
    for dist, shape in (
        (Categorical(torch.ones(P, 3)), (P,)),
        (Categorical(torch.ones(P, 2, 3)), (P, 2)),
    ):
        x = PropagationManager("LR").sample(dist)
        assert x.dtype == torch.int64
        assert x.shape == shape
        assert not x.requires_grad
    manager = PropagationManager("LR")
    with pytest.raises(TypeError, match=r"floating point; got dtype torch\.int64"):
        manager.loss(manager.sample(Categorical(torch.ones(P, 3))))


@pytest.mark.parametrize("estimator", ["LR", "RP", "TP", "TPX"])
@pytest.mark.parametrize("events", [0, 1, 2])
def test_saturated_actions_have_a_gradient(estimator: str, events: int) -> None:
    """In 32 bits they are 1.0 exactly, where tanh has no inverse."""
    loc = torch.full((P, 2, 3), 12.0, requires_grad=True)
    scale = torch.full((P, 2, 3), 0.5, requires_grad=True)
    dist: Distribution = TransformedDistribution(Normal(loc, scale), [TanhTransform()])
    dist = Independent(dist, events) if events else dist
    manager = PropagationManager(estimator)
    x = manager.sample(dist)
    assert bool((x == 1).all())
    assert not bool(torch.isfinite(Independent(dist, 3 - events).log_prob(x.detach())).any())
    costs = x.flatten(1).sum(1) + torch.arange(P)
    found = torch.autograd.grad(manager.loss(costs), [loc, scale])
    assert all(bool(torch.isfinite(g).all()) for g in found)
    if estimator == "LR":
        assert all(bool((g != 0).any()) for g in found)
