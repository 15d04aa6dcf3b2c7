"""LightningModules that learn through stochastic rollouts, what they are made of, and callbacks.

- ``pilco``, ``chaotic_rnn``: the modules.
- ``dynamics``, ``policies``, ``costs``, ``initial_state``: the parts of an agent that can be
  exchanged (``parts``); ``regression``: what models of dynamics and rewards are made of.
- ``worlds``, ``encodings``, ``rollouts``: the environment as an agent takes it, its angles, and
  rollouts through a model of it.
- ``experience``: real episodes, on disk too, and how a training goes on from them.
- ``callbacks``, ``watching``: what shows a training; ``export``: a policy by itself.
- ``commands``, ``figures``: subcommands of ``lightning-proppo``.
"""

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
