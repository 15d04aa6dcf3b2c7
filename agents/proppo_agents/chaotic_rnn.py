"""Training the inverse temperature of the chaotic recurrent network (Proppo paper, Sec. 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_proppo import PropagationManager
from lightning_proppo.installed_lightning import pl
from proppo_agents.arguments import check_count, check_rate
from proppo_agents.ranks import empty_batches
from proppo_envs import ChaoticRNN


class ChaoticRNNModule(pl.LightningModule):
    """Learns the beta that brings the network near (1, 1) after ``horizon`` steps.

    Its manager comes from :class:`lightning_proppo.PropagationCallback`, which so chooses the
    estimator; or it is set by hand: ``module.manager = PropagationManager("TP")``.

    Args:
        beta: initial inverse temperature; chaotic from about 2.5 on.
        particles: P, rollouts for each gradient.
        horizon: H, steps of a rollout.
        learning_rate: Adam's.
        steps: training steps in an epoch.

    Raises:
        TypeError: if ``particles``, ``horizon`` or ``steps`` is no whole number.
        ValueError: if one of them, or ``learning_rate``, is not positive.
    """

    manager: PropagationManager

    def __init__(
        self,
        beta: float = 2.0,
        particles: int = 1000,
        horizon: int = 100,
        learning_rate: float = 0.01,
        steps: int = 100,
    ) -> None:
        super().__init__()
        check_count("particles", particles)
        check_count("horizon", horizon)
        check_rate("learning_rate", learning_rate)
        check_count("steps", steps)
        self.save_hyperparameters()
        self.system = ChaoticRNN(horizon=horizon)
        self.beta = nn.Parameter(torch.tensor([float(beta)]))
        self.particles = particles
        self.learning_rate = learning_rate
        self.steps = steps

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Roll the network out and return the manager's loss, a scalar."""
        del batch, batch_idx
        x = self.system.initial_state(self.particles, self.beta.dtype, self.beta.device)
        for _ in range(self.system.horizon):
            x = self.manager.sample(self.system.transition(x, self.beta))
        self.manager.append_loss(x, lossfunc=self.system.cost)
        loss = self.manager.loss()
        self.log("beta", self.beta.detach()[0], prog_bar=True)
        return loss

    def train_dataloader(self) -> DataLoader[int]:
        """Return ``steps`` batches without content: a rollout needs no data."""
        return empty_batches(self.steps)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
