"""Hyperparameters of Gaussian processes with ARD kernels, fitted by GPyTorch.

N data, E outputs (each a process of its own), I inputs.
"""

from __future__ import annotations

import math
from typing import Any

import gpytorch
import torch
from torch import Tensor

from proppo_agents.regression.data import standardize
from proppo_agents.regression.factorization import jitter_of_gpytorch
from proppo_agents.regression.gp_posterior import Hyperparameters

# With more, the kernel matrix of a well sampled function is singular in float64.
_SMALLEST_NOISE = 1e-5
# PILCO's limit on the ratio of the signal's to the noise's standard deviation (Deisenroth,
# "Efficient Reinforcement Learning using Gaussian Processes", 2010; its published code).
_SIGNAL_TO_NOISE = 500.0
_SIGNAL_TO_NOISE_POWER = 30


def add_prior(model: Any, processes: int, inputs: int) -> None:
    """Give one of GPyTorch's models zero means and ARD squared exponential kernels."""
    shape = torch.Size([processes])
    model.mean_module = gpytorch.means.ZeroMean(batch_shape=shape)
    model.covar_module = gpytorch.kernels.ScaleKernel(
        gpytorch.kernels.RBFKernel(ard_num_dims=inputs, batch_shape=shape), batch_shape=shape
    )


def prior_of(model: Any, inputs: Tensor) -> Any:
    """Return a model's prior distribution at inputs [E, N, I]."""
    return gpytorch.distributions.MultivariateNormal(
        model.mean_module(inputs), model.covar_module(inputs)
    )


def hyperparameters_of(model: Any, likelihood: Any) -> Hyperparameters:
    """Return what a model and its likelihood have now."""
    return Hyperparameters(
        model.covar_module.base_kernel.lengthscale.detach().squeeze(1),
        model.covar_module.outputscale.detach(),
        likelihood.noise.detach().squeeze(-1),
    )


class _ExactProcesses(gpytorch.models.ExactGP):  # type: ignore[misc]  # GPyTorch has no types
    """E processes over the same inputs."""

    def __init__(self, inputs: Tensor, outputs: Tensor, likelihood: Any) -> None:
        super().__init__(inputs, outputs, likelihood)
        add_prior(self, len(outputs), inputs.shape[-1])

    def forward(self, inputs: Tensor) -> Any:
        """Return the prior at the inputs [E, N, I]."""
        return prior_of(self, inputs)


def fit_hyperparameters(
    inputs: Tensor, outputs: Tensor, steps: int, learning_rate: float
) -> Hyperparameters:
    """Maximize the marginal likelihood of data [N, I] and [N, E], both float64.

    Lengthscales start at the inputs' full spread; what there is after ``steps`` steps of Adam is
    returned. As in PILCO, a signal far above the noise is penalized.
    """
    x, y = standardize(inputs)[0], standardize(outputs)[0].mT
    count = len(y)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(
        batch_shape=torch.Size([count]),
        noise_constraint=gpytorch.constraints.GreaterThan(_SMALLEST_NOISE),
    )
    inputs = x.expand(count, -1, -1)
    model = _ExactProcesses(inputs, y, likelihood).to(x)
    model.covar_module.base_kernel.lengthscale = torch.ones(count, 1, x.shape[1])
    model.covar_module.outputscale = torch.ones(count)
    likelihood.noise = torch.full((count, 1), 0.01)
    model.train()
    likelihood.train()
    marginal = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    exactly = gpytorch.settings.fast_computations(False, False, False)
    large = gpytorch.settings.max_cholesky_size(10**6)
    with torch.enable_grad(), exactly, large, jitter_of_gpytorch():
        for _ in range(steps):
            optimizer.zero_grad()
            ratio = (model.covar_module.outputscale / likelihood.noise.squeeze(-1)).sqrt()
            excess = (ratio.log() / math.log(_SIGNAL_TO_NOISE)) ** _SIGNAL_TO_NOISE_POWER
            loss = (excess / len(x) - marginal(model(inputs), y)).sum()
            loss.backward()
            optimizer.step()
    return hyperparameters_of(model, likelihood)
