"""Bias of total propagation's weights, against a closed form.

    python -m benchmarks.weight_bias

The cost is x^2 with x ~ N(mu, sigma^2), so that the gradient is (2 mu, 2 sigma). Weights that are
computed from the particles that they weigh make its estimate too small by O(1/P); weights computed
from the other half of the particles do not, at the price of variance.
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import Tensor
from torch.distributions import Normal
from tqdm import tqdm

from lightning_proppo import PropagationManager

MU, SIGMA = 0.7, 0.6


def gradient(manager: PropagationManager, particles: int) -> Tensor:
    """Return one estimate, [2]."""
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (MU, SIGMA)]
    x = manager.sample(Normal(*(v.expand(particles, 1) for v in values)))
    return torch.stack(torch.autograd.grad(manager.loss(x.square()), values))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--particles", type=int, nargs="+", default=[12, 30, 100, 300])
    parser.add_argument("--repetitions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    truth = torch.tensor([2 * MU, 2 * SIGMA], dtype=torch.float64)
    sys.stdout.write(
        f"{'particles':>9} {'weighting':<17} {'bias in mu':>20} {'bias in sigma':>20} "
        f"{'variances':>18}\n"
    )
    for particles in arguments.particles:
        for weighting in ("inverse-variance", "covariance", "cross-fitted"):
            manager = PropagationManager("TP", weighting=weighting)
            repetitions = tqdm(range(arguments.repetitions), leave=False, disable=None)
            found = torch.stack([gradient(manager, particles) for _ in repetitions])
            bias, error = found.mean(0) - truth, found.std(0) / len(found) ** 0.5
            cells = [f"{b:10.4f} +- {e:.4f}" for b, e in zip(bias, error, strict=True)]
            variances = " ".join(f"{v:8.3g}" for v in found.var(0))
            sys.stdout.write(
                f"{particles:9d} {weighting:<17} {cells[0]:>20} {cells[1]:>20} {variances:>18}\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
