"""Sparse variational Gaussian processes: what a fit learns of many data stands at a few points.

N data, M inducing points, E outputs (each a process of its own), I inputs.
"""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from torch import Tensor

from proppo_agents.arguments import check_count, check_fit
from proppo_agents.regression.base import Regressor
from proppo_agents.regression.data import standardize
from proppo_agents.regression.factorization import cholesky, jitter_of_gpytorch
from proppo_agents.regression.gp_fit import (
    add_prior,
    fit_hyperparameters,
    hyperparameters_of,
    prior_of,
)
from proppo_agents.regression.gp_posterior import GPPosterior, Hyperparameters, covariance, scale

# Data for the exact process that the hyperparameters start from.
_FIRST = 200
_BATCH = 500
# Of kernel matrices between inducing points, relative to the signal's variance.
_JITTER = 1e-6
# What the variance may be too small by, relative to the signal's: far below the smallest noise.
_EXPLAINED_JITTER = 1e-9


class SparseGP(Regressor):
    r"""Independent sparse variational Gaussian processes with ARD kernels, one for each output.

    Kernels as in :class:`ExactGP`, for more than about 1,000 data: a step of a fit costs 500 times
    the square of the number M of inducing points, and a prediction what an exact process with M
    data costs.

    Hyperparameters start from an exact process for some of the data, inducing points at data. All
    then maximize the evidence lower bound over minibatches (Hensman et al. 2013; GPyTorch's). In
    the end the distribution at the inducing points is put at its optimum for all data, which has a
    closed form (Titsias 2009): with :math:`K_{uu} = L L^\top`, :math:`A = L^{-1} K_{uf}`,
    :math:`B = I + A A^\top / \sigma_n^2` and :math:`w = L^{-1} k_*`,

    .. math::
        m_* = w^\top B^{-1} A y / \sigma_n^2, \qquad
        v_* = \sigma_f^2 - w^\top (I - B^{-1}) w + \sigma_n^2

    Args:
        inducing: M at most; there are no more than data.
        steps: of the fit, with minibatches of 500 data.
        learning_rate: Adam's.

    Raises:
        ValueError: if an argument is not as said here.
    """

    posterior: GPPosterior

    def __init__(self, inducing: int = 150, steps: int = 200, learning_rate: float = 0.02) -> None:
        super().__init__()
        check_fit(steps, learning_rate)
        check_count("inducing", inducing)
        self.inducing, self.steps, self.learning_rate = inducing, steps, learning_rate

    def _fit(self, inputs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        x, input_mean, input_std = standardize(inputs)
        y, output_mean, output_std = standardize(outputs)
        some = torch.randperm(len(x))[:_FIRST]
        found = fit_hyperparameters(x[some], y[some], steps=100, learning_rate=0.1)
        # Those of a subset are in units of its own spread.
        subset_std, subset_output_std = standardize(x[some])[2], standardize(y[some])[2]
        found = Hyperparameters(
            found.lengthscales * subset_std,
            found.signal_variance * subset_output_std.square(),
            found.noise_variance * subset_output_std.square(),
        )
        points = _spread_out(x, found.lengthscales.min(0).values, min(self.inducing, len(x)))
        points = points.expand(y.shape[1], -1, -1).clone()
        if self.steps:
            found, points = _polish(x, y.mT, found, points, self.steps, self.learning_rate)
        weights, factor = _optimum(x, y.mT, points / found.lengthscales.unsqueeze(1), found)
        scaled, middle = scale(points, x, found)
        return {
            "input_mean": input_mean + middle * input_std,
            "input_std": input_std,
            "output_mean": output_mean,
            "output_std": output_std,
            "scaled_inputs": scaled,
            "weights": weights,
            "inverse_factor": factor,
            **vars(found),
        }

    def _prepare(self, state: dict[str, Tensor], like: Tensor) -> None:
        self.posterior = GPPosterior(**state).to(like)

    def _predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.posterior.predict(inputs)

    def _noise_std(self) -> Tensor:
        return self.posterior.noise_std.detach()


class _SparseProcesses(gpytorch.models.ApproximateGP):  # type: ignore[misc]  # it has no types
    """E processes with zero mean, each with inducing points of its own [E, M, I]."""

    def __init__(self, points: Tensor) -> None:
        distribution = gpytorch.variational.CholeskyVariationalDistribution(
            points.shape[1], batch_shape=points.shape[:1]
        )
        super().__init__(
            gpytorch.variational.VariationalStrategy(
                self, points, distribution, learn_inducing_locations=True, jitter_val=_JITTER
            )
        )
        add_prior(self, len(points), points.shape[-1])

    def forward(self, inputs: Tensor) -> Any:
        """Return the prior at inputs [E, N, I]."""
        return prior_of(self, inputs)


def _polish(
    x: Tensor, y: Tensor, found: Hyperparameters, points: Tensor, steps: int, learning_rate: float
) -> tuple[Hyperparameters, Tensor]:
    """Maximize the evidence lower bound for x [N, I] and y [E, N] from a start."""
    count = len(y)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(
        batch_shape=torch.Size([count]), noise_constraint=gpytorch.constraints.GreaterThan(1e-6)
    ).to(x)
    model = _SparseProcesses(points).to(x)
    model.covar_module.base_kernel.lengthscale = found.lengthscales.unsqueeze(1)
    model.covar_module.outputscale = found.signal_variance
    likelihood.noise = found.noise_variance.clamp_min(1e-5).unsqueeze(1)
    bound = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(x))
    _start_at_optimum(model, x, y, points, found)
    parameters = [*model.parameters(), *likelihood.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    model.train()
    likelihood.train()
    with jitter_of_gpytorch():
        for _ in range(steps):
            some = torch.randperm(len(x))[:_BATCH]
            optimizer.zero_grad()
            (-bound(model(x[some].expand(count, -1, -1)), y[:, some]).sum()).backward()
            optimizer.step()
    return hyperparameters_of(
        model, likelihood
    ), model.variational_strategy.inducing_points.detach()


def _start_at_optimum(
    model: _SparseProcesses, x: Tensor, y: Tensor, points: Tensor, found: Hyperparameters
) -> None:
    """Put GPyTorch's (whitened) distribution at the inducing points at its optimum."""
    _, b, projected = _whitened(x, y, points / found.lengthscales.unsqueeze(1), found)
    strategy = model.variational_strategy
    distribution = strategy._variational_distribution
    with torch.no_grad():
        distribution.variational_mean.copy_(_solve(b, projected))
        covariance_there = cholesky(_symmetric(b.inverse()), "the inducing points' covariance")
        distribution.chol_variational_covar.copy_(covariance_there)
        # Or the first call would put it at the prior.
        strategy.variational_params_initialized.fill_(1)


def _whitened(
    x: Tensor, y: Tensor, scaled: Tensor, found: Hyperparameters
) -> tuple[Tensor, Tensor, Tensor]:
    """Return L, B [E, M, M] and A y / noise [E, M]; points [E, M, I] over the lengthscales."""
    eye = torch.eye(scaled.shape[1], dtype=x.dtype)
    signal = found.signal_variance
    kernel = covariance(scaled, scaled, signal) + _JITTER * signal[:, None, None] * eye
    lower = cholesky(kernel, "the inducing points' kernel matrix")
    cross = covariance(scaled, x / found.lengthscales.unsqueeze(1), signal)
    a = torch.linalg.solve_triangular(lower, cross, upper=False)
    noise = found.noise_variance[:, None, None]
    b = eye + a @ a.mT / noise
    return lower, b, (a @ y.unsqueeze(-1) / noise).squeeze(-1)


def _optimum(x: Tensor, y: Tensor, scaled: Tensor, found: Hyperparameters) -> tuple[Tensor, Tensor]:
    r"""Return weights [E, M] and a lower triangular factor R [E, M, M] for predictions.

    The mean is the weights' product with the kernel, and the variance explained is that of
    :math:`R k`: :math:`R^\top R = L^{-\top} (I - B^{-1}) L^{-1}`.
    """
    lower, b, projected = _whitened(x, y, scaled, found)
    eye = torch.eye(scaled.shape[1], dtype=x.dtype)
    inverse = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    weights = (inverse.mT @ _solve(b, projected).unsqueeze(-1)).squeeze(-1)
    explained = (1 + _EXPLAINED_JITTER) * eye - _symmetric(b.inverse())
    # A factor of the reversed matrix, reversed again, is upper triangular; its transpose times the
    # lower triangular inverse is lower triangular, as an exact posterior's factor is.
    upper = cholesky(explained.flip(-2, -1), "what inducing points explain").flip(-2, -1)
    return weights, (upper.mT @ inverse).contiguous()


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    factor = cholesky(matrix, "the inducing points' precision")
    return torch.cholesky_solve(vector.unsqueeze(-1), factor).squeeze(-1)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


def _spread_out(x: Tensor, lengthscales: Tensor, count: int) -> Tensor:
    """Choose [count, I] of the data [N, I], each as far from those before as there is one."""
    scaled = x / lengthscales
    distance = (scaled - scaled.mean(0)).square().sum(1)
    chosen = []
    nearest = torch.full_like(distance, torch.inf)
    following = int(distance.argmin())
    for _ in range(count):
        chosen.append(following)
        nearest = torch.minimum(nearest, (scaled - scaled[following]).square().sum(1))
        following = int(nearest.argmax())
    return x[chosen]
