"""A trained policy by itself, as a file that PyTorch alone can run."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from proppo_agents.policies import Policy
from proppo_agents.worlds import World


class Controller(nn.Module):
    """From an observation to the action that the environment itself takes.

    Args:
        policy: whose actions are in [-1, 1].
        world: tells the bounds of the environment's own.
    """

    low: Tensor
    high: Tensor

    def __init__(self, policy: Policy, world: World) -> None:
        super().__init__()
        self.policy = policy
        like = next(policy.parameters())
        self.register_buffer("low", torch.tensor(world.low).to(like))
        self.register_buffer("high", torch.tensor(world.high).to(like))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the actions [P, A] at observations [P, D]."""
        action: Tensor = self.policy(observation.to(self.low))
        return self.low + (0.5 * (self.high - self.low)) * (action.clamp(-1.0, 1.0) + 1)


def export_policy(policy: Policy, world: World, path: str | Path) -> Path:
    """Write a policy to a file that needs neither this package, GPyTorch nor Lightning to run.

    ::

        controller = torch.export.load("policy.pt2").module()
        action = controller(torch.as_tensor(observation, dtype=torch.float32)[None])[0]

    It takes any number P of observations [P, D] and returns actions [P, A] in the environment's own
    units and within its bounds: float32 both, whatever the policy was trained in.

    Args:
        policy: a trained one.
        world: what it was trained for.
        path: where to; its name should end in ``.pt2``.

    Returns:
        The path.
    """
    # Who runs it wants actions, not gradients.
    controller = Controller(copy.deepcopy(policy), world).eval().requires_grad_(False)
    like = next(policy.parameters())
    # A file takes one precision only. Most environments observe in this one.
    example = torch.zeros(2, world.spaces.observation_size, dtype=torch.float32, device=like.device)
    particles = torch.export.Dim("particles", min=1)
    with torch.no_grad():
        program = torch.export.export(
            controller, (example,), dynamic_shapes={"observation": {0: particles}}
        )
    torch.export.save(program, Path(path))
    return Path(path)
