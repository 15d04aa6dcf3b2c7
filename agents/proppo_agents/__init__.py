"""LightningModules that learn through stochastic rollouts, and callbacks that watch them."""

from proppo_agents.callbacks import EpisodeVideo, PredictionFigure
from proppo_agents.chaotic_rnn import ChaoticRNNModule
from proppo_agents.pilco import PILCO

__all__ = ["PILCO", "ChaoticRNNModule", "EpisodeVideo", "PredictionFigure"]
