"""A stochastic layer inside an ordinary network for regression.

The hidden units are normal, their deviations are learned, and the loss is the expected squared
error. Several particles of each datum make the estimate; data and particles share the first axis.

python examples/stochastic_layer.py --steps 300 --estimator TP
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from lightning_proppo import PropagationManager


class NoisyNet(nn.Module):
    """A network [N, 1] -> [N, 1] with one layer of 16 normal units."""

    def __init__(self, manager: PropagationManager) -> None:
        super().__init__()
        self.manager = manager
        self.encode = nn.Sequential(nn.Linear(1, 16), nn.Tanh())
        self.log_std = nn.Parameter(torch.full((16,), -1.0))
        self.decode = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs [N, 1] of one sample of the layer for each row."""
        mean = self.encode(x)
        return self.decode(self.manager.sample(Normal(mean, self.log_std.exp().expand_as(mean))))


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, and return the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--estimator", default="TP")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    network = NoisyNet(PropagationManager(given.estimator))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    x = torch.linspace(-2, 2, 50).unsqueeze(1).repeat(8, 1)  # 8 particles of each of 50 data
    losses = []
    for _ in range(given.steps):
        loss = network.manager.loss((network(x) - torch.sin(2 * x)).square())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    sys.stdout.write(f"mean squared error: {losses[0]:.3f} at first, {losses[-1]:.3f} at last\n")
    return losses


if __name__ == "__main__":
    main()
