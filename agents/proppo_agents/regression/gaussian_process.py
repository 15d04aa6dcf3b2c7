"""Gaussian process regression with ARD kernels: fitted by GPyTorch, evaluated in closed form.

N data, E outputs (each a process of its own), I inputs, P particles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import gpytorch
import torch
from torch import Tensor

from proppo_agents.regression.data import check_data, check_fits_in, standardize
from proppo_agents.regression.factorization import cholesky, jitter_of_gpytorch
from proppo_agents.regression.gp_prediction import Factors, predict

# With more, the kernel matrix of a well sampled function is singular in float64.
_SMALLEST_NOISE = 1e-5
# PILCO's limit on the ratio of the signal's to the noise's standard deviation (Deisenroth,
# "Efficient Reinforcement Learning using Gaussian Processes", 2010; its published code).
_SIGNAL_TO_NOISE = 500.0
_SIGNAL_TO_NOISE_POWER = 30
# Of a kernel's logarithm, beyond which distances are not computed of squares.
_LARGEST_ROUNDING = 0.01


@dataclass(frozen=True)
class GPPosterior:
    """The posterior of E independent processes, everything that does not depend on the query.

    Inputs and outputs are standardized inside; the arguments and results of :meth:`predict` are
    in the data's own units.

    Attributes:
        input_mean: [I]; with ``input_std`` [I], the inputs' standardization. (The median, where
            the mean is far from most of them.)
        input_std: [I].
        output_mean: [E]; with ``output_std`` [E], the outputs' standardization.
        output_std: [E].
        scaled_inputs: [E, N, I], standardized and divided by the lengthscales.
        lengthscales: [E, I], in units of the inputs' standard deviations.
        signal_variance: [E], in units of the outputs' variances.
        noise_variance: [E], likewise.
        weights: [E, N], the kernel matrix's inverse times the outputs.
        inverse_factor: [E, N, N], the inverse of the kernel matrix's Cholesky factor.
        factors: what predictions are made from, computed of the others.
    """

    input_mean: Tensor
    input_std: Tensor
    output_mean: Tensor
    output_std: Tensor
    scaled_inputs: Tensor
    lengthscales: Tensor
    signal_variance: Tensor
    noise_variance: Tensor
    weights: Tensor
    inverse_factor: Tensor
    factors: Factors = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Not at the first prediction: that may be in inference mode or inside torch.func, whose
        # tensors are of no use outside.
        object.__setattr__(self, "factors", self._factors())

    @property
    def noise_std(self) -> Tensor:
        """The standard deviation [E] of the noise, in the outputs' units."""
        return self.noise_variance.sqrt() * self.output_std

    def to(self, like: Tensor) -> GPPosterior:
        """Return it with another tensor's dtype and device."""
        return GPPosterior(
            **{f.name: getattr(self, f.name).to(like) for f in fields(self) if f.init}
        )

    def predict(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the mean [P, E] and the variance [P, E] of noisy outputs at inputs [P, I].

        :math:`m = k^\top K^{-1} y` and :math:`v = \sigma_f^2 - |L^{-1} k|^2 + \sigma_n^2` with
        :math:`K = L L^\top` (Rasmussen and Williams 2006, Algorithm 2.1). Differentiable with
        respect to the inputs.
        """
        return predict(self.factors, inputs)

    def _factors(self) -> Factors:
        weights = self.weights.unsqueeze(1)
        squares = self.scaled_inputs.square().sum(-1)
        return Factors(
            shift=self.input_mean.unsqueeze(1),
            scale=1 / (self.input_std * self.lengthscales).unsqueeze(2),
            data=self.scaled_inputs,
            log_prior=(self.signal_variance.log().unsqueeze(1) - 0.5 * squares).unsqueeze(2),
            readout=torch.cat([weights, weights * self.scaled_inputs.mT], 1),
            inverse_factor=self.inverse_factor,
            signal=self.signal_variance.unsqueeze(1),
            noise=self.noise_variance.unsqueeze(1),
            output_mean=self.output_mean.unsqueeze(1),
            output_std=self.output_std.unsqueeze(1),
            scattered=scattered(self.scaled_inputs, squares.dtype),
        )


def scattered(scaled: Tensor, dtype: torch.dtype) -> bool:
    """Return whether points [E, N, I] over lengthscales are too far off for a precision.

    That is where rounding their squares changes kernels: where a datum is a huge outlier. The
    others then lie far from the mean, and near the median.
    """
    largest = float(scaled.detach().square().sum(-1).max())
    return largest * torch.finfo(dtype).eps > _LARGEST_ROUNDING


class _BatchGP(gpytorch.models.ExactGP):  # type: ignore[misc]  # GPyTorch has no types
    """E processes with zero mean and ARD squared exponential kernels over the same inputs."""

    def __init__(self, inputs: Tensor, outputs: Tensor, likelihood: Any) -> None:
        super().__init__(inputs, outputs, likelihood)
        shape = torch.Size([outputs.shape[0]])
        self.mean_module = gpytorch.means.ZeroMean(batch_shape=shape)
        self.covar_module = gpytorch.kernels.ScaleKernel(
            gpytorch.kernels.RBFKernel(ard_num_dims=inputs.shape[-1], batch_shape=shape),
            batch_shape=shape,
        )

    def forward(self, inputs: Tensor) -> Any:
        """Return the prior at the inputs [E, N, I]."""
        return gpytorch.distributions.MultivariateNormal(
            self.mean_module(inputs), self.covar_module(inputs)
        )


@dataclass(frozen=True)
class Hyperparameters:
    """Of E processes whose inputs and outputs have mean 0 and standard deviation 1.

    Attributes:
        lengthscales: [E, I].
        signal_variance: [E].
        noise_variance: [E].
    """

    lengthscales: Tensor
    signal_variance: Tensor
    noise_variance: Tensor


def fit_gaussian_process(
    inputs: Tensor, outputs: Tensor, steps: int = 150, learning_rate: float = 0.1
) -> GPPosterior:
    """Fit E processes by their marginal likelihood, and return their posterior.

    Hyperparameters start at lengthscales of the inputs' full spread, and are Adam's after
    ``steps`` steps in float64. As in PILCO, a signal far above the noise is penalized.

    Args:
        inputs: [N, I], at least 1 row.
        outputs: [N, E].
        steps: Adam's steps.
        learning_rate: Adam's.

    Returns:
        The posterior, in the inputs' dtype.

    Raises:
        ValueError: if the shapes do not fit together, not all values are finite, or they are so
            large that their squares are not.
    """
    check_data(inputs, outputs)
    for name, value in (("inputs", inputs), ("outputs", outputs)):
        check_fits_in(name, value, inputs.dtype)
    x, y = inputs.detach().double(), outputs.detach().double()
    return condition(x, y, fit_hyperparameters(x, y, steps, learning_rate)).to(inputs)


def condition(inputs: Tensor, outputs: Tensor, found: Hyperparameters) -> GPPosterior:
    """Return the posterior after data [N, I] and [N, E], both float64."""
    x, input_mean, input_std = standardize(inputs)
    y, output_mean, output_std = standardize(outputs)
    found = Hyperparameters(**{name: value.to(x) for name, value in vars(found).items()})
    scaled = x / found.lengthscales.unsqueeze(1)
    if scattered(scaled, torch.float32):
        middle = x.median(0).values
        input_mean = input_mean + middle * input_std
        scaled = (x - middle) / found.lengthscales.unsqueeze(1)
    kernel = covariance(scaled, scaled, found.signal_variance)
    kernel = kernel + torch.diag_embed(found.noise_variance.unsqueeze(1).expand(-1, len(x)))
    factor = cholesky(kernel, f"the kernel matrix of {len(x)} data")
    eye = torch.eye(len(x), dtype=x.dtype, device=x.device).expand_as(factor)
    return GPPosterior(
        input_mean=input_mean,
        input_std=input_std,
        output_mean=output_mean,
        output_std=output_std,
        scaled_inputs=scaled,
        lengthscales=found.lengthscales,
        signal_variance=found.signal_variance,
        noise_variance=found.noise_variance,
        weights=torch.cholesky_solve(y.mT.unsqueeze(-1), factor).squeeze(-1),
        # solve_triangular's result has its columns together; products are faster with rows.
        inverse_factor=torch.linalg.solve_triangular(factor, eye, upper=False).contiguous(),
    )


def covariance(a: Tensor, b: Tensor, signal_variance: Tensor) -> Tensor:
    """Return the kernel [E, N, M] between points [E, N, I] and [E, M, I] over lengthscales."""
    return signal_variance[:, None, None] * torch.exp(-0.5 * torch.cdist(a, b).square())


def fit_hyperparameters(
    inputs: Tensor, outputs: Tensor, steps: int, learning_rate: float
) -> Hyperparameters:
    """Maximize the marginal likelihood of data [N, I] and [N, E]."""
    x, y = standardize(inputs)[0], standardize(outputs)[0].mT
    count = len(y)
    likelihood = gpytorch.likelihoods.GaussianLikelihood(
        batch_shape=torch.Size([count]),
        noise_constraint=gpytorch.constraints.GreaterThan(_SMALLEST_NOISE),
    )
    inputs = x.expand(count, -1, -1)
    model = _BatchGP(inputs, y, likelihood).to(x)
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
    return Hyperparameters(
        model.covar_module.base_kernel.lengthscale.detach().squeeze(1),
        model.covar_module.outputscale.detach(),
        likelihood.noise.detach().squeeze(-1),
    )
