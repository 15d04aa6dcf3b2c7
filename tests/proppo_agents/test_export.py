"""A policy as a file that needs nothing but PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from proppo_agents import PILCO, LinearPolicy, MLPPolicy, Policy, RBFPolicy

SCRIPT = """
import json, sys, torch
controller = torch.export.load(sys.argv[1]).module()
x = torch.tensor(json.loads(sys.argv[2]))
actions = [controller(x[:1]).tolist(), controller(x).tolist()]
foreign = ("gpytorch", "pytorch_lightning", "lightning_proppo", "proppo_agents", "gymnasium")
print(json.dumps([actions, sorted(set(foreign) & set(sys.modules))]))
"""


@pytest.mark.parametrize("policy", [RBFPolicy(), MLPPolicy(), LinearPolicy()])
def test_it_acts_without_this_package(policy: Policy, tmp_path: Path) -> None:
    torch.manual_seed(0)
    agent = PILCO("Pendulum-v1", policy=policy)
    x = torch.randn(5, 3)
    path = agent.export(tmp_path / "policy.pt2")
    command = [sys.executable, "-c", SCRIPT, str(path), json.dumps(x.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    (one, several), foreign = json.loads(done.stdout)
    assert foreign == []
    # The pendulum's own bounds are 2 N m.
    expected = 2 * agent.act(x).detach()
    torch.testing.assert_close(torch.tensor(several), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(one), expected[:1], rtol=1e-5, atol=1e-5)
