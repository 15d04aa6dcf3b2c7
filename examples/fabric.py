"""Fabric: a loop of one's own, on any number of devices, each of which draws its share.

It needs lightning-proppo[lightning].

python examples/fabric.py --steps 200 --devices 1
"""

from __future__ import annotations

import argparse
import sys

import torch
from lightning.fabric import Fabric
from torch.distributions import Normal

from lightning_proppo import PropagationManager


def train(fabric: Fabric, steps: int) -> list[float]:
    """Return the mean cost of each step, of this rank's particles."""
    fabric.seed_everything(0)
    policy = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
    policy, optimizer = fabric.setup(policy, torch.optim.Adam(policy.parameters(), lr=1e-2))
    # All ranks began with one seed, so that the policies agree; their noise must not.
    torch.manual_seed(fabric.global_rank)
    manager = PropagationManager("TP")
    costs = []
    for _ in range(steps):
        x = torch.randn(64, 2, device=fabric.device)
        for _ in range(20):
            x = manager.sample(Normal(x + 0.1 * policy(x), 0.05))
            manager.append_loss(x.square().sum(dim=1))
        loss = manager.loss()
        optimizer.zero_grad()
        fabric.backward(loss)
        fabric.clip_gradients(policy, optimizer, max_norm=1.0)
        optimizer.step()
        costs.append(loss.item())
    return costs


def main(arguments: list[str] | None = None) -> list[float]:
    """Train, and say how the cost fell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accelerator", default="auto")
    given = parser.parse_args(arguments)
    fabric = Fabric(accelerator=given.accelerator, devices=given.devices)
    fabric.launch()
    costs = train(fabric, given.steps)
    sys.stdout.write(f"mean cost: {costs[0]:.1f} at first, {costs[-1]:.1f} at last\n")
    return costs


if __name__ == "__main__":
    main()
