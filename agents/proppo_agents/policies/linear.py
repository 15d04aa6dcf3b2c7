"""Linear policies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proppo_agents.policies.base import Policy


class LinearPolicy(Policy):
    r"""A linear policy, enough to keep a system where it is.

    .. math:: f(x) = W (x - m) / s + b

    with the observation's centre m and spread s (sines and cosines as they are).

    Args:
        initial_weight_std: standard deviation of W's elements at the start; b starts at 0.
        squash: ``"sine"`` or ``"tanh"``.

    Raises:
        ValueError: if an argument is not as said here.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, initial_weight_std: float = 0.5, squash: str = "sine") -> None:
        super().__init__(squash)
        self.initial_weight_std = initial_weight_std

    def _build(self, inputs: int, actions: int) -> None:
        self.layer = nn.Linear(inputs, actions)
        self.register_buffer("shift", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def _reset(self, centre: Tensor, spread: Tensor) -> None:
        shift, scale = self._encoded_standardization(centre, spread)
        self.shift.copy_(shift)
        self.scale.copy_(scale)
        self.layer.weight.copy_(self.initial_weight_std * torch.randn(self.layer.weight.shape))
        self.layer.bias.zero_()

    def _unsquashed(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer((x - self.shift) / self.scale)
        return found
