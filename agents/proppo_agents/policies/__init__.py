"""Deterministic policies, to be exchanged for one another."""

from proppo_agents.policies.base import Policy
from proppo_agents.policies.linear import LinearPolicy
from proppo_agents.policies.mlp import MLPPolicy
from proppo_agents.policies.rbf import RBFPolicy
from proppo_agents.policies.squashing import squash

__all__ = ["LinearPolicy", "MLPPolicy", "Policy", "RBFPolicy", "squash"]
