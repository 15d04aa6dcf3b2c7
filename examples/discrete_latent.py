"""LR through a discrete latent: which of 4 slot machines to pull, where nothing is differentiable.

A cost of samples that cannot be reparameterized is known as a number only; the likelihood ratio
needs no more. The gradient is compared with the exact one, which 4 choices allow.

python examples/discrete_latent.py --steps 300
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor
from torch.distributions import Categorical

from lightning_proppo import PropagationManager

PRICES = torch.tensor([3.0, 1.0, 0.5, 2.0])


def estimate(logits: Tensor, particles: int) -> Tensor:
    """Return the gradient [4] of the expected price, estimated from ``particles`` choices."""
    manager = PropagationManager("LR")
    choices = manager.sample(Categorical(logits=logits.expand(particles, 4)))  # integers [P]
    loss = manager.loss(PRICES[choices])
    return torch.autograd.grad(loss, logits)[0]


def exact(logits: Tensor) -> Tensor:
    """Return the gradient of the sum over all choices."""
    return torch.autograd.grad(logits.softmax(0) @ PRICES, logits)[0]


def main(arguments: list[str] | None = None) -> Tensor:
    """Learn what to choose, and return the probabilities [4]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args(arguments)
    torch.manual_seed(0)
    logits = torch.zeros(4, requires_grad=True)
    sys.stdout.write(f"exact gradient {exact(logits).numpy()}\n")
    sys.stdout.write(f"LR's estimate  {estimate(logits, 10_000).numpy()}\n")
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(given.steps):
        logits.grad = estimate(logits, particles=32)
        optimizer.step()
    probabilities = logits.detach().softmax(0)
    sys.stdout.write(f"learned probabilities {probabilities.numpy()}\n")
    return probabilities


if __name__ == "__main__":
    main()
