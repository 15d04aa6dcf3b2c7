"""An environment and a reward of one's own, from nothing to a trained policy (15 s on one core).

python examples/own_environment.py
"""

import gymnasium
import numpy as np
import pytorch_lightning as pl

from lightning_proppo import PropagationCallback
from proppo_agents import PILCO


class Puck(gymnasium.Env):
    """A puck on a table with friction, to be pushed from (1, -1) to the origin, and stay there."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,))  # place (m), velocity (m/s)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (2,))  # force (N)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = np.array([1.0, -1.0, 0.0, 0.0]) + 0.05 * self.np_random.standard_normal(4)
        return self.state.astype(np.float32), {}

    def step(self, action):
        velocity = self.state[2:] + 0.2 * (action - 0.5 * self.state[2:])
        self.state = np.concatenate([self.state[:2] + 0.2 * velocity, velocity])
        reward = float(np.exp(-np.square(self.state[:2]).sum()))  # learned from what is seen of it
        return self.state.astype(np.float32), reward, False, False, {}


if __name__ == "__main__":
    gymnasium.register("Puck-v0", Puck, max_episode_steps=20)
    pl.seed_everything(0)
    agent = PILCO("Puck-v0", particles=100, steps=60)
    pl.Trainer(max_epochs=4, precision="64-true", callbacks=[PropagationCallback("TP")]).fit(agent)
    agent.export("puck.pt2")  # which PyTorch alone runs
