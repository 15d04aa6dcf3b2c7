"""Models of an environment's transition, to be exchanged for one another."""

from proppo_agents.dynamics.base import DynamicsModel
from proppo_agents.dynamics.models import EnsembleDynamics, GPDynamics, SparseGPDynamics

__all__ = ["DynamicsModel", "EnsembleDynamics", "GPDynamics", "SparseGPDynamics"]
