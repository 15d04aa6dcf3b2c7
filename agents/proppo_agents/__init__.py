"""LightningModules that learn through stochastic rollouts, what they are made of, and callbacks."""

from proppo_agents.callbacks import EpisodeVideo, PredictionFigure
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
    "EpisodeVideo",
    "GPDynamics",
    "InitialState",
    "LearnedReward",
    "LinearPolicy",
    "MLPPolicy",
    "Policy",
    "PredictionFigure",
    "QuadraticCost",
    "RBFPolicy",
    "SaturatingCost",
    "SparseGPDynamics",
]
