"""A policy as a file that needs nothing but PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from proppo_agents import PILCO, LinearPolicy, MLPPolicy, RBFPolicy

SCRIPT = """
import json, sys, torch
x = torch.tensor(json.loads(sys.argv[1]))
actions = []
for path in sys.argv[2:]:
    controller = torch.export.load(path).module()
    actions.append([controller(x[:1]).tolist(), controller(x).numpy().tolist()])
foreign = (
    "gpytorch", "pytorch_lightning", "lightning", "lightning_proppo", "proppo_agents", "gymnasium"
)
print(json.dumps([actions, sorted(set(foreign) & set(sys.modules))]))
"""


def test_it_acts_without_this_package(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policies = (RBFPolicy(), MLPPolicy(), LinearPolicy())
    agents = [PILCO("Pendulum-v1", policy=policy) for policy in policies]
    agents.append(PILCO("Pendulum-v1").double())
    x = torch.randn(5, 3)
    paths = [str(agent.export(tmp_path / f"{k}.pt2")) for k, agent in enumerate(agents)]
    command = [sys.executable, "-c", SCRIPT, json.dumps(x.tolist()), *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    found, foreign = json.loads(done.stdout)
    assert foreign == []
    for agent, (one, several) in zip(agents, found, strict=True):
        # The pendulum's own bounds are 2 N m.
        expected = 2 * agent.act(x).detach().float()
        torch.testing.assert_close(torch.tensor(several), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.tensor(one), expected[:1], rtol=1e-5, atol=1e-5)
