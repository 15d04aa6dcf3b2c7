"""Probabilistic regression: what models of dynamics and rewards are made of."""

from proppo_agents.regression.base import Regressor
from proppo_agents.regression.ensemble import Ensemble
from proppo_agents.regression.exact_gp import ExactGP
from proppo_agents.regression.sparse_gp import SparseGP

__all__ = ["Ensemble", "ExactGP", "Regressor", "SparseGP"]
