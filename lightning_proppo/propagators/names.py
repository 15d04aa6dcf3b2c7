"""Estimators by name, as configurations choose them."""

from __future__ import annotations

from typing import Any

from lightning_proppo.errors import did_you_mean
from lightning_proppo.propagators.base import Propagator
from lightning_proppo.propagators.biw import BIWProp
from lightning_proppo.propagators.lr import LRProp
from lightning_proppo.propagators.resample import GRProp
from lightning_proppo.propagators.rp import RPProp
from lightning_proppo.propagators.shaping import GSLoss
from lightning_proppo.propagators.tp import TotalProp, TPXProp

# Name -> the propagator's class for samples, its options, and the class for losses (None: what the
# former asks for).
_ESTIMATORS: dict[str, tuple[type[Propagator], dict[str, Any], type[Propagator] | None]] = {
    # Nothing needs the graph cut: PyTorch may propagate through the whole rollout by itself.
    "RP": (RPProp, {"detach": False}, None),
    "LR": (LRProp, {}, None),
    "BIW": (BIWProp, {}, None),
    "TP": (TotalProp, {}, None),
    "TPX": (TPXProp, {}, None),
    "TP+BIW": (TotalProp, {"share": "likelihoods"}, None),
    "TP+MESH": (TotalProp, {"share": "mesh", "group_size": 20}, None),
    "GR": (GRProp, {}, None),
    "GS": (LRProp, {}, GSLoss),
    "TP+GS": (TotalProp, {}, GSLoss),
}


def estimator_names() -> list[str]:
    """Return the names that :func:`make_estimator` knows."""
    return list(_ESTIMATORS)


def make_estimator(name: str, **options: Any) -> tuple[Propagator, Propagator]:
    """Return new propagators for samples and for losses.

    ``"RP"`` reparameterization; ``"LR"`` likelihood ratio; ``"BIW"`` batch importance weighted LR;
    ``"TP"`` total propagation; ``"TPX"`` the same, weighted at the samples; ``"TP+BIW"`` total
    propagation with batch importance weighted LR; ``"TP+MESH"`` the same, with later costs shared
    among neighbours too; ``"GR"`` Gaussian resampling; ``"GS"`` likelihood ratio with
    Gaussian-shaped losses; ``"TP+GS"`` total propagation with the same.

    Args:
        name: the estimator.
        **options: of the propagator for samples, e.g. ``noise="quasi-random"``.

    Raises:
        TypeError: for an option that the estimator does not have.
        ValueError: for an unknown name.
    """
    found = _ESTIMATORS.get(name.upper())
    if found is None:
        raise ValueError(
            f"there is no estimator named {name!r}; choose one of {', '.join(_ESTIMATORS)}, or "
            f"pass a Propagator.{did_you_mean(name.upper(), _ESTIMATORS)}"
        )
    for_samples, own_options, for_losses = found
    sampler = for_samples(**{**own_options, **options})
    return sampler, sampler.loss_propagator() if for_losses is None else for_losses()
