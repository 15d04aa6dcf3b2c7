"""Posteriors of Gaussian processes with ARD kernels, in closed form.

N data, E outputs (each a process of its own), I inputs, P particles.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from proppo_agents.regression.data import standardize
from proppo_agents.regression.factorization import cholesky
from proppo_agents.regression.gp_prediction import Factors, predict

# Of a kernel's logarithm, beyond which distances are not computed of squares.
_LARGEST_ROUNDING = 0.01


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


def condition(inputs: Tensor, outputs: Tensor, found: Hyperparameters) -> GPPosterior:
    """Return the posterior after data [N, I] and [N, E], both float64."""
    x, input_mean, input_std = standardize(inputs)
    y, output_mean, output_std = standardize(outputs)
    found = Hyperparameters(**{name: value.to(x) for name, value in vars(found).items()})
    scaled, middle = scale(x, x, found)
    kernel = covariance(scaled, scaled, found.signal_variance)
    kernel = kernel + torch.diag_embed(found.noise_variance.unsqueeze(1).expand(-1, len(x)))
    factor = cholesky(kernel, f"the kernel matrix of {len(x)} data")
    eye = torch.eye(len(x), dtype=x.dtype, device=x.device).expand_as(factor)
    return GPPosterior(
        input_mean=input_mean + middle * input_std,
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


def scale(points: Tensor, data: Tensor, found: Hyperparameters) -> tuple[Tensor, Tensor]:
    """Divide standardized points by lengthscales, those far off less the data's median.

    Args:
        points: [N, I], or [E, M, I].
        data: [N, I], of which the points are or which they stand for.
        found: the lengthscales.

    Returns:
        [E, N or M, I]; and what was subtracted, [I]: 0, or the median.
    """
    lengthscales = found.lengthscales.unsqueeze(1)
    scaled = points / lengthscales
    if not scattered(scaled, torch.float32):
        return scaled, torch.zeros_like(data[0])
    middle = data.median(0).values
    return (points - middle) / lengthscales, middle


def covariance(a: Tensor, b: Tensor, signal_variance: Tensor) -> Tensor:
    """Return the kernel [E, N, M] between points [E, N, I] and [E, M, I] over lengthscales."""
    return signal_variance[:, None, None] * torch.exp(-0.5 * torch.cdist(a, b).square())
