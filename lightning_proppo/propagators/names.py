"""Estimators by name, as configurations choose them."""

from __future__ import annotations

from collections.abc import Callable

from lightning_proppo.errors import did_you_mean
from lightning_proppo.propagators.base import Propagator
from lightning_proppo.propagators.biw import BIWProp
from lightning_proppo.propagators.lr import LRProp
from lightning_proppo.propagators.resample import GRProp
from lightning_proppo.propagators.rp import RPProp
from lightning_proppo.propagators.shaping import GSLoss
from lightning_proppo.propagators.tp import TotalProp, TPXProp

# Name -> makers of the propagator for samples and of the one for losses (None: the former's own).
_ESTIMATORS: dict[str, tuple[Callable[[], Propagator], Callable[[], Propagator] | None]] = {
    # Nothing needs the graph cut: PyTorch may propagate through the whole rollout by itself.
    "RP": (lambda: RPProp(detach=False), None),
    "LR": (LRProp, None),
    "BIW": (BIWProp, None),
    "TP": (TotalProp, None),
    "TPX": (TPXProp, None),
    "TP+BIW": (lambda: TotalProp(share="likelihoods"), None),
    "TP+MESH": (lambda: TotalProp(share="mesh", group_size=20), None),
    "GR": (GRProp, None),
    "GS": (LRProp, GSLoss),
    "TP+GS": (TotalProp, GSLoss),
}


def estimator_names() -> list[str]:
    """Return the names that :func:`make_estimator` knows."""
    return list(_ESTIMATORS)


def make_estimator(name: str) -> tuple[Propagator, Propagator]:
    """Return new propagators for samples and for losses.

    ``"RP"`` reparameterization; ``"LR"`` likelihood ratio; ``"BIW"`` batch importance weighted LR;
    ``"TP"`` total propagation; ``"TPX"`` the same, weighted at the samples; ``"TP+BIW"`` total
    propagation with batch importance weighted LR; ``"TP+MESH"`` the same, with later costs shared
    among neighbours too; ``"GR"`` Gaussian resampling; ``"GS"`` likelihood ratio with
    Gaussian-shaped losses; ``"TP+GS"`` total propagation with the same.

    Raises:
        ValueError: for an unknown name.
    """
    makers = _ESTIMATORS.get(name.upper())
    if makers is None:
        raise ValueError(
            f"there is no estimator named {name!r}; choose one of {', '.join(_ESTIMATORS)}, or "
            f"pass a Propagator.{did_you_mean(name.upper(), _ESTIMATORS)}"
        )
    sampler = makers[0]()
    loss = makers[1]() if makers[1] is not None else sampler.loss_propagator()
    return sampler, loss
