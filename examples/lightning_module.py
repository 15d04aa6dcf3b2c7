"""Lightning: the estimator is a callback's argument; the module does not change.

python examples/lightning_module.py --steps 200 --estimator TP
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.utils.data import DataLoader

from lightning_proppo import PropagationCallback, PropagationManager


class Walker(pl.LightningModule):
    """Learns to go to the origin, with the mean of 20 noisy steps' costs as its loss."""

    manager: PropagationManager  # which the callback gives

    def __init__(self) -> None:
        super().__init__()
        hidden, out = torch.nn.Linear(2, 32), torch.nn.Linear(32, 2)
        self.policy = torch.nn.Sequential(hidden, torch.nn.Tanh(), out)

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """Return the cost of a rollout from ``x`` [P, 2]."""
        for _ in range(20):
            x = self.manager.sample(Normal(x + 0.1 * self.policy(x), 0.05))
            self.manager.append_loss(x.square().sum(dim=1))
        return self.manager.loss()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main(arguments: list[str] | None = None, **trainer_options: Any) -> pl.Trainer:
    """Train, and say which cost is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--estimator", default="TP")
    given = parser.parse_args(arguments)
    pl.seed_everything(0)
    starts = DataLoader(torch.randn(64 * given.steps, 2), batch_size=64)
    callback = PropagationCallback(given.estimator)
    trainer = pl.Trainer(max_epochs=1, callbacks=[callback], **trainer_options)
    trainer.fit(Walker(), starts)
    sys.stdout.write(f"cost: {trainer.callback_metrics['propagation/cost']:.2f} at last\n")
    return trainer


if __name__ == "__main__":
    main()
