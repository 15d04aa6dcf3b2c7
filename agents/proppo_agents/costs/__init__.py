"""Costs of a step, to be exchanged for one another."""

from proppo_agents.costs.base import Cost
from proppo_agents.costs.environment import EnvironmentCost
from proppo_agents.costs.learned import LearnedReward
from proppo_agents.costs.target import QuadraticCost, SaturatingCost

__all__ = ["Cost", "EnvironmentCost", "LearnedReward", "QuadraticCost", "SaturatingCost"]
