"""A world model and an actor that learn in turn, each by an optimizer of its own.

python examples/world_model.py --steps 200
"""

import argparse
import sys

# --8<-- [start:imports]
import pytorch_lightning as pl
import torch
from torch.distributions import Normal
from torch.nn import Linear, Sequential, Tanh

# --8<-- [end:imports]
from torch.utils.data import DataLoader

from lightning_proppo import PropagationCallback


def real_step(x, action):
    """A pendulum, upright at 0: angle and speed [P, 2], torque [P, 1]."""
    speed = x[:, 1:] + 0.1 * (x[:, :1].sin() + action) + 0.02 * torch.randn_like(action)
    return torch.cat([x[:, :1] + 0.1 * speed, speed], dim=1)


# --8<-- [start:agent]
class Agent(pl.LightningModule):
    """Learns what a pendulum does, and to hold it upright in what it has learned."""

    def __init__(self, horizon=15):
        super().__init__()
        self.automatic_optimization = False
        self.horizon = horizon
        self.world_model = Sequential(Linear(3, 64), Tanh(), Linear(64, 2))
        self.actor = Sequential(Linear(2, 32), Tanh(), Linear(32, 1))

    def training_step(self, x, batch_idx):
        model_optimizer, actor_optimizer = self.optimizers()

        action = 2 * torch.randn_like(x[:, :1])
        change = real_step(x, action) - x
        error = (self.world_model(torch.cat([x, action], 1)) - change).square().mean()
        model_optimizer.zero_grad()
        self.manual_backward(error)
        model_optimizer.step()

        self.world_model.requires_grad_(False)  # the rollout's gradient is for the actor alone
        for _ in range(self.horizon):
            action = self.manager.sample(Normal(2 * self.actor(x).tanh(), 0.1))
            change = self.world_model(torch.cat([x, action], dim=1))
            x = self.manager.sample(Normal(x + change, 0.02))
            self.manager.append_loss(x.square().sum(dim=1) + 0.01 * action.square().sum(dim=1))
        cost = self.manager.loss()
        self.world_model.requires_grad_(True)
        actor_optimizer.zero_grad()
        self.manual_backward(cost)
        actor_optimizer.step()

    def configure_optimizers(self):
        parts = (self.world_model, self.actor)
        return [torch.optim.Adam(part.parameters(), lr=3e-3) for part in parts]


# --8<-- [end:agent]


def main(arguments=None, **trainer_options):
    """Train, and say which cost is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args(arguments).steps
    pl.seed_everything(0)
    starts = DataLoader(torch.randn(100 * steps, 2), batch_size=100)
    callbacks = [PropagationCallback("TP"), *trainer_options.pop("callbacks", [])]
    trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, **trainer_options)
    trainer.fit(Agent(), starts)
    sys.stdout.write(f"cost: {trainer.callback_metrics['propagation/cost']:.2f} at last\n")
    return trainer


if __name__ == "__main__":
    main()
