"""Multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_proppo.errors import check_choice
from proppo_agents.policies.base import Policy

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class MLPPolicy(Policy):
    """A multi-layer perceptron on observations less their centre, over their spread.

    Args:
        hidden: sizes of the hidden layers.
        activation: theirs: ``"relu"``, ``"silu"`` or ``"tanh"``.
        squash: ``"sine"`` or ``"tanh"``.

    Raises:
        ValueError: if an argument is not as said here.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        squash: str = "tanh",
    ) -> None:
        super().__init__(squash)
        check_choice("activation", activation, _ACTIVATIONS)
        if not hidden or any(size < 1 for size in hidden):
            raise ValueError(
                "hidden must be the sizes of the hidden layers, each at least 1, such as "
                f"[64, 64]; got {list(hidden)}. LinearPolicy has none."
            )
        self.hidden, self.activation = tuple(hidden), activation

    def _build(self, inputs: int, actions: int) -> None:
        layers: list[nn.Module] = []
        for before, after in zip((inputs, *self.hidden), self.hidden, strict=False):
            layers += [nn.Linear(before, after), _ACTIVATIONS[self.activation]()]
        self.network = nn.Sequential(*layers, nn.Linear(self.hidden[-1], actions))
        self.register_buffer("shift", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def _reset(self, centre: Tensor, spread: Tensor) -> None:
        shift, scale = self._encoded_standardization(centre, spread)
        self.shift.copy_(shift)
        self.scale.copy_(scale)
        for layer in self.network:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def _unsquashed(self, x: Tensor) -> Tensor:
        found: Tensor = self.network((x - self.shift) / self.scale)
        return found
