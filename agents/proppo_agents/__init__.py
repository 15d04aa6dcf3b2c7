"""LightningModules that learn through stochastic rollouts."""

from proppo_agents.chaotic_rnn import ChaoticRNNModule

__all__ = ["ChaoticRNNModule"]
