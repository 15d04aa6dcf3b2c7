"""Deterministic policies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from proppo_agents.basis_functions import radial_basis
from proppo_agents.encodings import check_angles, encode_angles


def squash(z: Tensor) -> Tensor:
    r"""Return :math:`(9 \sin z + \sin 3z) / 8`, in [-1, 1] as PILCO does."""
    return (9 * torch.sin(z) + torch.sin(3 * z)) / 8


class RBFPolicy(nn.Module):
    r"""A radial basis function network with a squashed output.

    .. math:: u = \mathrm{squash}\Big(\sum_i w_i \exp(-\tfrac12 |(x - c_i) / \ell|^2)\Big)

    with x the observation, its angles as sines and cosines. Centres are drawn from normal
    distributions of the observation's ``spread`` (angles: all over the circle), and the
    lengthscales of a coordinate start at its spread.

    Args:
        observation_size: D.
        action_size: A; actions are in [-1, 1].
        spread: [D], a typical deviation from 0 of each coordinate, in its unit; ignored for
            angles.
        angles: the coordinates that are angles.
        centres: how many basis functions.
        initial_weight_std: standard deviation of the weights at the start.

    Raises:
        ValueError: if an argument is not as said here.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        spread: Sequence[float],
        angles: Sequence[int] = (),
        centres: int = 50,
        initial_weight_std: float = 0.5,
    ) -> None:
        super().__init__()
        if centres < 1:
            raise ValueError(f"centres must be at least 1; got {centres}.")
        if len(spread) != observation_size or not all(s > 0 for s in spread):
            raise ValueError(
                f"spread must be {observation_size} positive numbers, one for each coordinate of "
                f"the observation; got {list(spread)}."
            )
        self.angles = check_angles(angles, observation_size)
        drawn = torch.randn(centres, observation_size) * torch.tensor(spread)
        for i in self.angles:
            drawn[:, i] = 2 * math.pi * torch.rand(centres)
        others = [s for i, s in enumerate(spread) if i not in self.angles]
        lengthscales = others + 2 * len(self.angles) * [_ANGLE_LENGTHSCALE]
        self.centres = nn.Parameter(encode_angles(drawn, self.angles))
        self.log_lengthscales = nn.Parameter(torch.tensor(lengthscales).log())
        self.weights = nn.Parameter(initial_weight_std * torch.randn(centres, action_size))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the actions [P, A] at observations [P, D]."""
        x = encode_angles(observation, self.angles)
        basis = radial_basis(x.reshape(-1, x.shape[-1]), self.centres, self.log_lengthscales)
        actions = squash(basis @ self.weights)
        return actions if x.dim() == 2 else actions.reshape(*x.shape[:-1], -1)


# Of a sine or cosine: resolves about a tenth of the circle.
_ANGLE_LENGTHSCALE = 0.7
