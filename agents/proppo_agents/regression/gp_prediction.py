"""Predictions of Gaussian processes from cached factors: the hot path of a rollout.

N data, E outputs (each a process of its own), I inputs, P particles. Particles are last inside,
[E, N, P]: products with few rows are several times faster than products with few columns.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lightning_proppo import per_particle_rule

# A product with a triangular matrix leaves out the zeros of blocks of about so many rows, where
# smaller blocks would cost more than they save.
_BLOCK = 96


@dataclass(frozen=True)
class Factors:
    r"""What a prediction needs of E posteriors, prepared so that it is few and large products.

    With data :math:`X` divided by the lengthscales, :math:`K = L L^\top`,
    :math:`\alpha = K^{-1} y`. A prediction in the data's own units is affine in what is computed
    of inputs :math:`(x - \text{shift}) \cdot \text{scale}`.

    Attributes:
        shift: [I, 1].
        scale: [E, I, 1], to the units of the lengthscales.
        data: X, [E, N, I].
        log_prior: :math:`\log \sigma_f^2 - |X_n|^2 / 2`, [E, N, 1].
        readout: rows :math:`\alpha` and :math:`\alpha X_i`, [E, 1 + I, N].
        inverse_factor: :math:`L^{-1}`, [E, N, N], lower triangular.
        signal: :math:`\sigma_f^2`, [E, 1].
        noise: :math:`\sigma_n^2`, [E, 1].
        output_mean: [E, 1].
        output_std: [E, 1].
        scattered: whether some data lie so many lengthscales from their middle that rounding
            :math:`|X_n|^2` would change kernels: as where one of them is a huge outlier.
    """

    shift: Tensor
    scale: Tensor
    data: Tensor
    log_prior: Tensor
    readout: Tensor
    inverse_factor: Tensor
    signal: Tensor
    noise: Tensor
    output_mean: Tensor
    output_std: Tensor
    scattered: bool

    def need_gradient(self) -> bool:
        """Return whether the posterior itself is to be differentiated."""
        given = (getattr(self, field.name) for field in fields(self))
        return any(isinstance(value, Tensor) and value.requires_grad for value in given)


def predict(factors: Factors, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance [P, E] of noisy outputs at inputs [P, I].

    Differentiable with respect to the inputs, any number of times; gradients cost one product with
    the triangular factor, paid with the prediction, however often they are pulled back.
    """
    if factors.need_gradient():
        return predict_plainly(factors, inputs)
    if not (torch.is_grad_enabled() and inputs.requires_grad):
        return _evaluate(factors, inputs, with_slopes=False)[:2]
    mean, variance, _ = _Prediction.apply(inputs, factors)  # type: ignore[no-untyped-call]  # PyTorch's
    return mean, variance


def predict_plainly(factors: Factors, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Do as :func:`predict`, with a graph of PyTorch's own operations."""
    query = _scaled(factors, inputs)
    kernel = _log_kernel(factors, query).exp()
    whitened = factors.inverse_factor @ kernel
    mean = (factors.readout[:, :1] @ kernel).squeeze(1)
    latent = (factors.signal - whitened.square().sum(1)).clamp_min(0.0)
    return _in_own_units(factors, mean, latent)


def _scaled(factors: Factors, inputs: Tensor) -> Tensor:
    """Return inputs [P, I] in the units of the lengthscales, [E, I, P]."""
    # Contiguous, or the products would inherit the order of the transposed inputs.
    return (inputs.mT - factors.shift).contiguous() * factors.scale


def _log_kernel(factors: Factors, query: Tensor) -> Tensor:
    """Return the logarithm [E, N, P] of the kernel between the data and a query [E, I, P]."""
    if factors.scattered:
        squares = torch.zeros((), dtype=query.dtype, device=query.device)
        for a, b in zip(factors.data.unbind(2), query.unbind(1), strict=True):
            squares = squares + (a.unsqueeze(2) - b.unsqueeze(1)).square()
        return factors.signal.log().unsqueeze(2) - 0.5 * squares
    # |a - b|^2 as |a|^2 + |b|^2 - 2ab: one product of matrices, no [E, N, P, I].
    log = torch.baddbmm(factors.log_prior, factors.data, query)
    return log.sub_(0.5 * query.square().sum(1, keepdim=True))


def _in_own_units(factors: Factors, mean: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
    mean = mean * factors.output_std + factors.output_mean
    variance = (latent + factors.noise) * factors.output_std.square()
    return mean.mT.contiguous(), variance.mT.contiguous()


def _evaluate(
    factors: Factors, inputs: Tensor, with_slopes: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    r"""Return mean and variance [P, E], and their derivatives [2, E, I, P] by the inputs.

    With k the kernel, :math:`w = L^{-1} k`, :math:`u = L^{-\top} w` and inputs x in the units of
    the lengthscales:

    .. math::
        m = \alpha^\top k, \qquad \partial_i m = \textstyle\sum_n \alpha_n k_n (X_{ni} - x_i) \\
        v = \sigma_f^2 - w^\top w, \qquad
        \partial_i v = -2 \textstyle\sum_n u_n k_n (X_{ni} - x_i)
        = -2 \big(\textstyle\sum_n u_n k_n X_{ni} - w^\top w\, x_i\big)
    """
    query = _scaled(factors, inputs)
    kernel = _log_kernel(factors, query).exp_()
    whitened = _times_lower(factors.inverse_factor, kernel)
    explained = (whitened * whitened).sum(1)
    readout = (factors.readout if with_slopes else factors.readout[:, :1]) @ kernel
    latent = factors.signal - explained
    mean, variance = _in_own_units(factors, readout[:, 0], latent.clamp_min(0.0))
    if not with_slopes:
        return mean, variance, None
    of_mean = readout[:, 1:] - readout[:, :1] * query
    solved = _times_upper(factors.inverse_factor, whitened)
    of_variance = factors.data.mT @ solved.mul_(kernel) - explained.unsqueeze(1) * query
    # Cancellation can leave a variance below zero, where it is clamped and does not move.
    factor = torch.where(latent < 0, 0.0, -2.0 * factors.output_std.square())
    slopes = torch.stack(
        [of_mean * factors.output_std.unsqueeze(1), of_variance * factor.unsqueeze(1)]
    )
    return mean, variance, slopes.mul_(factors.scale)


def _edges(size: int) -> list[tuple[int, int]]:
    """Cut the rows of a triangular matrix into blocks of about equal height."""
    count = max(1, math.ceil(size / _BLOCK))
    ends = [round(size * k / count) for k in range(count + 1)]
    return list(itertools.pairwise(ends))


def _times_lower(lower: Tensor, x: Tensor) -> Tensor:
    """Return lower [E, N, N] @ x [E, N, P]."""
    edges = _edges(x.shape[1])
    return torch.cat([lower[:, a:b, :b] @ x[:, :b] for a, b in edges], 1)


def _times_upper(lower: Tensor, x: Tensor) -> Tensor:
    """Return the transpose of lower [E, N, N] @ x [E, N, P]."""
    edges = _edges(x.shape[1])
    return torch.cat([lower[:, a:, a:b].mT @ x[:, a:] for a, b in edges], 1)


class _Prediction(torch.autograd.Function):
    """Mean and variance, and, not to be differentiated, their derivatives.

    The derivatives at every particle are few numbers, [2, E, I]; kept instead of the kernel and
    its products, they make back-propagation cheap in time and in memory.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, factors: Factors) -> Any:
        return _evaluate(factors, inputs, with_slopes=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Factors], output: Any) -> None:
        x, ctx.factors = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(x, output[2])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        inputs, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            outputs = predict_plainly(ctx.factors, inputs)
            (found,) = torch.autograd.grad(outputs, inputs, cotangents[:2], create_graph=True)
            return found, None
        of_mean, of_variance = (b.mT.unsqueeze(1) for b in cotangents[:2])
        # Not in place: with batched gradients, one of the two may be batched alone.
        pulled = slopes[0] * of_mean + slopes[1] * of_variance
        return pulled.sum(0).mT, None


# Each particle's prediction is its own, and nothing else has a gradient.
@per_particle_rule(_Prediction, rows=[0])
def _no_shared_operand(function: Any, slot: int, b: Tensor, particles: int) -> Tensor:
    raise NotImplementedError
