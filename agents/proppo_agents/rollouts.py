"""Rollouts of a policy through a model."""

from __future__ import annotations

from torch import Tensor

from lightning_proppo import PropagationManager
from proppo_agents.costs import Cost
from proppo_agents.dynamics import DynamicsModel
from proppo_agents.encodings import onto_circles
from proppo_agents.parts import Spaces
from proppo_agents.policies import Policy


def roll_out(
    manager: PropagationManager,
    start: Tensor,
    horizon: int,
    policy: Policy,
    dynamics: DynamicsModel,
    cost: Cost,
    spaces: Spaces,
) -> list[Tensor]:
    """Record a rollout: samples and costs.

    Sines and cosines that the environment observes are put back onto the circle after each step.

    Args:
        manager: what records it.
        start: [P, D], the particles' first observations.
        horizon: H.
        policy: acts.
        dynamics: predicts.
        cost: of each step.
        spaces: the environment's.

    Returns:
        The mean cost [] of each step, without a gradient.
    """
    costs = []
    x = start
    for _ in range(horizon):
        action = policy(x)
        after = onto_circles(manager.sample(dynamics(x, action)), spaces.encoded_angles)
        arguments = cost.arguments(x, action, after)
        costs.append(manager.append_loss(arguments, lossfunc=cost).mean())
        x = after
    return costs
