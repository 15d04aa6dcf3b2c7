"""The Gaussian process, against GPyTorch's own predictions and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from .gp_reference import data, fit_gaussian_process, reference


def test_predictions_are_gpytorchs() -> None:
    x, y = data()
    posterior = fit_gaussian_process(x, y, steps=20)
    query = torch.cat([x[:5], 1.5 * x[5:10], 100 * x[10:12]])
    expected = reference(posterior, x, y, query)
    for found, truth in zip(posterior.predict(query), expected, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9)


def test_predictions_are_differentiable_with_respect_to_the_inputs() -> None:
    x, y = data()
    posterior = fit_gaussian_process(x, y, steps=20)
    query = (1.1 * x[:4]).requires_grad_()
    assert torch.autograd.gradcheck(posterior.predict, (query,))


def test_a_smooth_function_is_learned_and_its_noise_found() -> None:
    x, y = data(count=150)
    posterior = fit_gaussian_process(x[:120], y[:120])
    mean, variance = posterior.predict(x[120:])
    residual = y[120:] - mean
    explained = 1 - residual.square().sum(0) / (y[120:] - y[120:].mean(0)).square().sum(0)
    assert bool((explained > 0.95).all())
    # The third input is irrelevant, and gets the longest lengthscales.
    assert posterior.lengthscales.argmax(1).tolist() == [2, 2] or bool(
        (posterior.lengthscales[:, 2] > 1.5).all()
    )
    assert 0.005 < float(posterior.noise_std[0]) < 0.06
    # Standardized residuals have variance about 1: the error bars are honest.
    assert bool(((residual.square() / variance).mean(0) < 4).all())


def test_lengthscales_start_at_the_inputs_spread() -> None:
    x, y = data()
    posterior = fit_gaussian_process(x, y, steps=0)
    torch.testing.assert_close(posterior.lengthscales, torch.ones(2, 3, dtype=torch.float64))


def test_far_from_all_data_the_prior_is_predicted() -> None:
    x, y = data()
    posterior = fit_gaussian_process(x, y, steps=20)
    mean, variance = posterior.predict(torch.full((1, 3), 1e4, dtype=torch.float64))
    torch.testing.assert_close(mean[0], posterior.output_mean)
    prior = (posterior.signal_variance + posterior.noise_variance) * posterior.output_std.square()
    torch.testing.assert_close(variance[0], prior)


def test_a_coordinate_that_never_varies_is_no_obstacle() -> None:
    x, y = data()
    x[:, 2] = 1.0
    y[:, 1] = 0.0
    mean, variance = fit_gaussian_process(x, y, steps=20).predict(x)
    assert bool(torch.isfinite(mean).all())
    assert bool((variance > 0).all())


def test_the_posterior_has_the_datas_dtype() -> None:
    x, y = data()
    posterior = fit_gaussian_process(x.float(), y.float(), steps=20)
    mean, variance = posterior.predict(x.float())
    assert mean.dtype == variance.dtype == torch.float32
    exact = fit_gaussian_process(x, y, steps=20).predict(x)[0]
    torch.testing.assert_close(mean.double(), exact, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (torch.zeros(3, 2), torch.zeros(4, 1), r"\[3, 2\] and \[4, 1\]"),
        (torch.zeros(3), torch.zeros(3, 1), r"\[3\]"),
        (torch.zeros(0, 2), torch.zeros(0, 1), "at least 1"),
        (torch.zeros(3, 2), torch.full((3, 1), torch.nan), "outputs must be finite; got 3"),
    ],
)
def test_wrong_data_are_refused(x: Tensor, y: Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        fit_gaussian_process(x, y)
