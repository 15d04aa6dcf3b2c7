"""LightningModules that learn through stochastic rollouts, and the parts that they are made of."""

from proppo_agents.chaotic_rnn import ChaoticRNNModule
from proppo_agents.costs import Cost, EnvironmentCost, LearnedReward, QuadraticCost, SaturatingCost
from proppo_agents.dynamics import DynamicsModel, EnsembleDynamics, GPDynamics, SparseGPDynamics
from proppo_agents.initial_state import InitialState
from proppo_agents.pilco import PILCO
from proppo_agents.policies import LinearPolicy, MLPPolicy, Policy, RBFPolicy

__all__ = [
    "PILCO",
    "ChaoticRNNModule",
    "Cost",
    "DynamicsModel",
    "EnsembleDynamics",
    "EnvironmentCost",
    "GPDynamics",
    "InitialState",
    "LearnedReward",
    "LinearPolicy",
    "MLPPolicy",
    "Policy",
    "QuadraticCost",
    "RBFPolicy",
    "SaturatingCost",
    "SparseGPDynamics",
]
