"""A plain PyTorch loop: a walker learns to go to the origin through a noisy rollout.

python examples/plain_loop.py --steps 200 --estimator TP
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch.distributions import Normal

from lightning_proppo import PropagationManager


def train(steps: int, estimator: str) -> list[float]:
    """Return the mean cost of each step."""
    policy = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    manager = PropagationManager(estimator)
    costs = []
    for _ in range(steps):
        x = torch.randn(64, 2)  # 64 particles
        for _ in range(20):
            x = manager.sample(Normal(x + 0.1 * policy(x), 0.05))
            manager.append_loss(x.square().sum(dim=1))  # one cost for each particle
        loss = manager.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        costs.append(loss.item())
    return costs


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, and say how the cost fell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--estimator", default="TP")
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    costs = train(given.steps, given.estimator)
    sys.stdout.write(f"mean cost: {costs[0]:.1f} at first, {costs[-1]:.1f} at last\n")
    return costs


if __name__ == "__main__":
    main()
