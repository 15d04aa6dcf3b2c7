"""Lightning callbacks."""

from lightning_proppo.callbacks.propagation import PropagationCallback
from lightning_proppo.callbacks.variance import VarianceMonitor

__all__ = ["PropagationCallback", "VarianceMonitor"]
