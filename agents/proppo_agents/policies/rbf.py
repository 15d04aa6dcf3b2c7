"""Radial basis function networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from proppo_agents.arguments import check_count
from proppo_agents.encodings import encode_angles
from proppo_agents.policies.base import Policy
from proppo_agents.policies.basis_functions import radial_basis

# Of a sine or cosine: resolves about a tenth of the circle.
_ANGLE_LENGTHSCALE = 0.7


class RBFPolicy(Policy):
    r"""A radial basis function network, PILCO's policy.

    .. math:: f(x) = \sum_i w_i \exp(-\tfrac12 |(x - c_i) / \ell|^2)

    Centres are drawn from normal distributions of the observation's centre and spread (angles: all
    over the circle), and the lengthscales of a coordinate start at its spread.

    Args:
        basis_functions: how many.
        initial_weight_std: standard deviation of the weights at the start.
        squash: ``"sine"`` or ``"tanh"``.

    Raises:
        ValueError: if an argument is not as said here.
    """

    def __init__(
        self,
        basis_functions: int = 50,
        initial_weight_std: float = 0.5,
        squash: str = "sine",
    ) -> None:
        super().__init__(squash)
        check_count("basis_functions", basis_functions)
        self.basis_functions = basis_functions
        self.initial_weight_std = initial_weight_std

    def _build(self, inputs: int, actions: int) -> None:
        self.centres = nn.Parameter(torch.zeros(self.basis_functions, inputs))
        self.log_lengthscales = nn.Parameter(torch.zeros(inputs))
        self.weights = nn.Parameter(torch.zeros(self.basis_functions, actions))

    def _reset(self, centre: Tensor, spread: Tensor) -> None:
        count = self.basis_functions
        drawn = centre + spread * torch.randn(count, len(centre)).to(centre)
        for i in self.angles:
            drawn[:, i] = 2 * math.pi * torch.rand(count).to(centre)
        others = [i for i in range(len(spread)) if i not in self.angles]
        of_angles = spread.new_full((2 * len(self.angles),), _ANGLE_LENGTHSCALE)
        self.centres.copy_(encode_angles(drawn, self.angles))
        self.log_lengthscales.copy_(torch.cat([spread[others], of_angles]).log())
        self.weights.copy_(self.initial_weight_std * torch.randn(self.weights.shape))

    def _unsquashed(self, x: Tensor) -> Tensor:
        return radial_basis(x, self.centres, self.log_lengthscales) @ self.weights
