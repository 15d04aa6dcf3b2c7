"""The prediction from cached factors: against GPyTorch, and against PyTorch's own derivatives."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import lightning_proppo
from lightning_proppo import PropagationManager
from proppo_agents.regression import gp_prediction
from proppo_agents.regression.gp_posterior import GPPosterior
from proppo_agents.regression.gp_prediction import Factors, predict, predict_plainly

from ...largest_tensor import LargestTensor
from .gp_reference import data, fit_gaussian_process, reference

BLOCK = gp_prediction._BLOCK


def fitted(count: int) -> tuple[GPPosterior, Tensor, Tensor]:
    x, y = data(count)
    return fit_gaussian_process(x, y, steps=10), x, y


def queries(x: Tensor) -> Tensor:
    """Some at the data, some between, one far away."""
    return torch.cat([x[:5], 1.1 * x[5:12], 100 * x[:1]]).requires_grad_()


def pulled(outputs: tuple[Tensor, Tensor], inputs: Tensor, **options: Any) -> list[Tensor]:
    """The gradients of a weighted sum of the means, and of the variances."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for output in outputs:
        b = torch.randn(output.shape, dtype=output.dtype, generator=generator)
        found += torch.autograd.grad(output, inputs, b, retain_graph=True, **options)
    return found


@pytest.mark.parametrize("count", [BLOCK // 2, BLOCK + 1, 250])
def test_prediction_and_gradient_are_gpytorchs(count: int) -> None:
    posterior, x, y = fitted(count)
    query = queries(x)
    expected, found = reference(posterior, x, y, query), posterior.predict(query)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    for one, other in zip(pulled(found, query), pulled(expected, query), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_in_float32_it_is_as_exact_as_gpytorch() -> None:
    posterior, x, y = fitted(250)
    query = queries(x).detach().float()
    truth = reference(posterior, x, y, query.double())
    found, theirs = posterior.to(query).predict(query), reference(posterior, x, y, query)
    scales = posterior.output_std, posterior.output_std.square()
    for one, other, exact, scale in zip(found, theirs, truth, scales, strict=True):
        # The kernel matrix's condition amplifies the rounding of the data, for both.
        error, allowed = ((v - exact).abs().div(scale).max() for v in (one, other))
        assert float(error) <= 1.5 * float(allowed) + 1e-5


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_products_with_a_triangular_matrix(count: int) -> None:
    lower = torch.randn(2, count, count, dtype=torch.float64).tril()
    x = torch.randn(2, count, 5, dtype=torch.float64)
    torch.testing.assert_close(gp_prediction._times_lower(lower, x), lower @ x)
    torch.testing.assert_close(gp_prediction._times_upper(lower, x), lower.mT @ x)


def overexplained(factors: Factors) -> Factors:
    """As if rounding had taken the variance below zero at some queries."""
    return dataclasses.replace(factors, signal=0.9 * factors.signal)


@pytest.mark.parametrize("change", [lambda factors: factors, overexplained])
def test_the_fast_way_is_the_plain_one(change: Any) -> None:
    posterior, x, _ = fitted(BLOCK + 20)
    factors, query = change(posterior.factors), queries(x)
    found, expected = predict(factors, query), predict_plainly(factors, query)
    if change is overexplained:
        clamped = factors.noise.squeeze(1) * factors.output_std.squeeze(1).square()
        assert 0 < int((found[1] == clamped).sum()) < found[1].numel()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(pulled(found, query), pulled(expected, query))
    with torch.no_grad():
        torch.testing.assert_close(predict(factors, query), expected)


def test_derivatives_of_any_order() -> None:
    posterior, x, _ = fitted(30)
    query = (1.1 * x[:3]).requires_grad_()
    assert torch.autograd.gradcheck(posterior.predict, (query,), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(posterior.predict, (query,))


def test_it_can_be_mapped_over_batches() -> None:
    posterior, x, _ = fitted(30)
    query = 1.1 * x[:6].reshape(2, 3, 3)

    def slope(rows: Tensor) -> Tensor:
        mean, variance = posterior.predict(rows)
        return (mean * variance).sum()

    found = torch.func.vmap(torch.func.grad(slope))(query)
    expected = torch.stack([torch.func.grad(slope)(rows) for rows in query])
    torch.testing.assert_close(found, expected)


def test_a_first_prediction_in_inference_mode_spoils_nothing() -> None:
    posterior, x, _ = fitted(30)
    with torch.inference_mode():
        expected = posterior.predict(x)
    query = x.clone().requires_grad_()
    found = posterior.predict(query)
    torch.testing.assert_close(found, tuple(v.clone() for v in expected))
    assert all(bool(torch.isfinite(g).all()) for g in pulled(found, query))


def test_a_graph_can_be_pulled_through_again() -> None:
    posterior, x, _ = fitted(30)
    query = queries(x)
    outputs = posterior.predict(query)
    torch.testing.assert_close(pulled(outputs, query), pulled(outputs, query), rtol=0.0, atol=0.0)


def test_a_posterior_that_needs_gradients_has_them() -> None:
    posterior, x, _ = fitted(30)
    signal = posterior.factors.signal.clone().requires_grad_()
    factors = dataclasses.replace(posterior.factors, signal=signal)
    variance = predict(factors, x[:5])[1]
    (found,) = torch.autograd.grad(variance.sum(), signal)
    torch.testing.assert_close(found, 5 * factors.output_std.square())


def test_nothing_of_particles_times_data_times_inputs_is_formed() -> None:
    posterior = fitted(100)[0]
    query = torch.randn(200, 3, dtype=torch.float64, requires_grad=True)
    with LargestTensor() as watch:
        mean, variance = posterior.predict(query)
        torch.autograd.grad((mean + variance).sum(), query)
    assert watch.elements <= 2 * 100 * 200


def test_total_propagation_follows_particles_through_a_prediction() -> None:
    posterior, x, _ = fitted(30)
    particles = 16

    def statistics(target: Tensor | None) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        w = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
        expanded = None if target is None else lightning_proppo.expand(w, particles)
        used = w if expanded is None else expanded
        manager = PropagationManager("TP")
        state = x[:particles, :2]
        for _ in range(3):
            action = (state * used[..., :2]).sum(1, keepdim=True) + used[..., 2:]
            mean, variance = posterior.predict(torch.cat([state, action], 1))
            state = manager.sample(Normal(mean, variance.sqrt()), ivw_target=[used])
        manager.loss(state.square().sum(1)).backward()
        assert w.grad is not None
        return torch.stack(manager.statistics["lr_weight"]), w.grad

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = statistics(None)
    torch.testing.assert_close(found, statistics(x), rtol=1e-5, atol=1e-8)
