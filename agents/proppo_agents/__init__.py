"""LightningModules that learn through stochastic rollouts."""

from proppo_agents.callbacks import PredictionFigure
from proppo_agents.chaotic_rnn import ChaoticRNNModule
from proppo_agents.pilco import PILCO

__all__ = ["PILCO", "ChaoticRNNModule", "PredictionFigure"]
