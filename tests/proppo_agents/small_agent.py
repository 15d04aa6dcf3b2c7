"""An agent that is trained in no time."""

from __future__ import annotations

from typing import Any

# What a PILCO is made with, in plain values, as a configuration has them.
SMALL: dict[str, Any] = {
    "particles": 8,
    "steps": 2,
    "candidates": 1,
    "dynamics": {"class_path": "proppo_agents.GPDynamics", "init_args": {"steps": 3}},
    "policy": {"class_path": "proppo_agents.RBFPolicy", "init_args": {"basis_functions": 5}},
}
