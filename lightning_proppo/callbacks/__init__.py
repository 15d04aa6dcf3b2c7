"""Lightning callbacks."""

from lightning_proppo.callbacks.propagation import PropagationCallback

__all__ = ["PropagationCallback"]
