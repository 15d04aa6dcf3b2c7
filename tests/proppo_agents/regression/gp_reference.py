"""Data for Gaussian processes, and what GPyTorch predicts from them."""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from proppo_agents.regression import ExactGP, gp_fit
from proppo_agents.regression.gp_posterior import GPPosterior


def data(count: int = 30, noise: float = 0.02) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, dtype=torch.float64, generator=generator) * torch.tensor([1, 5, 0.1])
    y = torch.stack([x[:, 0].sin() + 2, 10 * (x[:, 1] / 5).tanh() * x[:, 0]], dim=1)
    return x, y + noise * torch.randn(y.shape, dtype=torch.float64, generator=generator)


def fit_gaussian_process(
    x: Tensor, y: Tensor, steps: int = 150, learning_rate: float = 0.1
) -> GPPosterior:
    """The posterior of exact processes, in the dtype of the data [N, I] and [N, E]."""
    regressor = ExactGP(steps, learning_rate).to(x.dtype)
    regressor.fit(x, y)
    return regressor.posterior


def reference(posterior: GPPosterior, x: Tensor, y: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """GPyTorch's prediction of noisy outputs with the posterior's hyperparameters.

    Computed in the query's dtype from data [N, I] and [N, 2]; differentiable with respect to it.
    """
    posterior, x, y = posterior.to(query), x.to(query), y.to(query)
    standardized_y = ((y - posterior.output_mean) / posterior.output_std).mT.contiguous()
    inputs = ((x - posterior.input_mean) / posterior.input_std).expand(2, -1, -1)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(
        batch_shape=torch.Size([2]), noise_constraint=gpytorch.constraints.GreaterThan(1e-8)
    )
    model = gp_fit._ExactProcesses(inputs, standardized_y, likelihood).to(query)
    model.covar_module.base_kernel.lengthscale = posterior.lengthscales.unsqueeze(1)
    model.covar_module.outputscale = posterior.signal_variance
    likelihood.noise = posterior.noise_variance.unsqueeze(1)
    model.requires_grad_(False)
    model.eval()
    likelihood.eval()
    standardized = (query - posterior.input_mean) / posterior.input_std
    exactly = gpytorch.settings.fast_computations(False, False, False)
    with exactly, gpytorch.settings.fast_pred_var(False):
        found = likelihood(model(standardized.expand(2, -1, -1)))
        mean, variance = found.mean, found.variance
    mean = mean.mT * posterior.output_std + posterior.output_mean
    return mean, variance.mT * posterior.output_std.square()
