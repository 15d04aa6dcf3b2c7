"""Densities below transforms, and distributions in higher precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Bernoulli,
    Binomial,
    Categorical,
    ComposeTransform,
    HalfCauchy,
    Independent,
    Normal,
    OneHotCategorical,
    TanhTransform,
    TransformedDistribution,
)
from torch.distributions.transforms import Transform

from lightning_proppo.mathematics.densities import flatten_transforms, log_density, with_parameters
from lightning_proppo.mathematics.precision import floating_tensors, widen

from ..distribution_catalogue import CATALOGUE, P, made

BF16 = torch.bfloat16


class Captures(Transform):
    """A transform whose parameters stand nowhere in its attributes."""

    domain = codomain = torch.distributions.constraints.real
    bijective = True

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def _call(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_parameters_of_transforms_are_found_wherever_they_are() -> None:
    w = torch.ones(2, requires_grad=True)
    fixed, learnt, module = (
        Captures(torch.exp),
        Captures(lambda x: x * w),
        Captures(nn.Linear(2, 2)),
    )
    x = torch.ones(P, 2, requires_grad=True)
    for transforms, count in (
        ([], 0),
        ([fixed], 0),
        ([fixed, TanhTransform()], 0),
        ([learnt], 1),
        ([fixed, learnt, fixed], 2),
        ([module, fixed], 1),
        ([AffineTransform(w, 1.0), TanhTransform()], 1),
        ([AffineTransform(w.detach(), 1.0), TanhTransform()], 0),
    ):
        assert with_parameters(transforms, x) == count
        with torch.no_grad():
            assert with_parameters(transforms, x) == count


def test_nested_transforms_are_found_below_one_another() -> None:
    tanh, affine = TanhTransform(), AffineTransform(0.0, 2.0)
    normal = Normal(torch.zeros(P, 2, 3), 1.0)
    inner = Independent(TransformedDistribution(Independent(normal, 1), [tanh]), 1)
    dist = TransformedDistribution(inner, [ComposeTransform([affine, ComposeTransform([tanh])])])
    base, transforms = flatten_transforms(dist)
    assert base is normal
    assert transforms == [tanh, affine, tanh]
    assert log_density(base, normal.sample(), len(dist.batch_shape)).shape == (P,)
    for other in (normal, inner.base_dist.base_dist, HalfCauchy(torch.ones(P))):
        assert flatten_transforms(other) == (other, [])


def test_wide_distributions_are_not_copied() -> None:
    for name in CATALOGUE:
        dist, _ = made(name, (P, 2), 1)
        wide = widen(dist)
        assert wide.dist is dist
        assert wide.dtype is None


def test_widening_goes_everywhere_and_is_differentiable() -> None:
    module = nn.Linear(2, 2).to(BF16)
    scale = torch.ones(2, dtype=BF16, requires_grad=True)
    normal = Normal(torch.zeros(P, 2, dtype=BF16), scale)
    squash = AffineTransform(torch.zeros(2, dtype=BF16), scale, cache_size=1)
    base = TransformedDistribution(normal, [squash.inv, squash, Captures(module)])
    dist = Independent(base, 1)
    wide = widen(dist)
    assert wide.dtype == BF16
    assert {t.dtype for t in floating_tensors(wide.dist)} == {torch.float32}
    assert {t.dtype for t in floating_tensors(dist)} == {BF16}
    x = wide.dist.rsample()
    assert x.dtype == torch.float32
    assert x.shape == (P, 2)
    found = torch.autograd.grad(x.square().sum(), [scale, module.weight], allow_unused=True)
    assert [g.dtype for g in found] == [BF16, BF16]
    inverse, forward, _ = wide.dist.base_dist.transforms
    assert inverse.inv is forward
    mixed = widen(Normal(torch.zeros(P, 2, dtype=BF16), torch.ones(P, 2)))
    assert mixed.dtype is None


def test_what_was_derived_in_16_bits_is_derived_anew() -> None:
    logits = torch.tensor([6.5, -3.0, 0.5], dtype=BF16)
    for dist in (Bernoulli(logits=logits), Binomial(4, logits=logits)):
        assert dist.probs.dtype == BF16  # which keeps it
        torch.testing.assert_close(widen(dist).dist.probs, logits.float().sigmoid())
    for categorical in (Categorical(logits=logits), OneHotCategorical(logits=logits)):
        assert categorical.probs.dtype == BF16
        wide = widen(categorical).dist
        assert float(wide.probs.sum()) == pytest.approx(1.0, abs=1e-6)
        assert float(wide.logits.logsumexp(-1)) == pytest.approx(0.0, abs=1e-6)
    wide = widen(Categorical(probs=torch.tensor([0.3, 0.3, 0.3], dtype=BF16))).dist
    assert float(wide.probs.sum()) == pytest.approx(1.0, abs=1e-6)
