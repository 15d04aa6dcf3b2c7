"""Radial basis functions with a gradient in closed form.

P particles, C centres, D coordinates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_proppo import per_particle_rule


def radial_basis(x: Tensor, centres: Tensor, log_lengthscales: Tensor) -> Tensor:
    r"""Return :math:`\phi_c(x) = \exp(-\tfrac12 \sum_d (x_d - c_d)^2 / \ell_d^2)`.

    Distances are taken by products of matrices: nothing of P * C * D elements is formed, forward
    or backward. Differentiable any number of times.

    Args:
        x: [P, D].
        centres: c, [C, D].
        log_lengthscales: logarithms of l, [D].

    Returns:
        [P, C].
    """
    found = _RadialBasis.apply(x, centres, log_lengthscales)  # type: ignore[no-untyped-call]  # PyTorch's
    result: Tensor = found
    return result


def _spread(x: Tensor, centres: Tensor, weights: Tensor) -> Tensor:
    """Return sums over centres of weights [P, C] times squared differences, [P, D]."""
    total = weights.sum(1, keepdim=True)
    return total * x.square() - 2 * x * (weights @ centres) + weights @ centres.square()


class _RadialBasis(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, centres: Tensor, log_lengthscales: Tensor) -> Tensor:
        inverse = torch.exp(-log_lengthscales)
        x, centres = x * inverse, centres * inverse
        log = torch.addmm(-0.5 * centres.square().sum(1), x, centres.mT)
        return (log - 0.5 * x.square().sum(1, keepdim=True)).exp()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, centres, log_lengthscales, basis = ctx.saved_tensors
        weights = cotangent * basis
        precision = torch.exp(-2 * log_lengthscales)
        of_x, of_centres, of_lengthscales = ctx.needs_input_grad
        return (
            (weights @ centres - weights.sum(1, keepdim=True) * x) * precision if of_x else None,
            (weights.mT @ x - weights.sum(0).unsqueeze(1) * centres) * precision
            if of_centres
            else None,
            _spread(x, centres, weights).sum(0) * precision if of_lengthscales else None,
        )


@per_particle_rule(_RadialBasis, rows=[0])
def _contributions(function: Any, slot: int, b: Tensor, particles: int) -> Tensor:
    """Return what each particle adds to the centres' [P, C, D] or lengthscales' [P, D] gradient."""
    del particles
    x, centres, log_lengthscales, basis = function.saved_tensors
    weights = b * basis
    precision = torch.exp(-2 * log_lengthscales)
    found: Tensor
    if slot == 2:
        found = _spread(x, centres, weights) * precision
    else:
        found = (x.unsqueeze(1) - centres) * precision * weights.unsqueeze(2)
    return found
