"""The distribution that a sampling propagator's options describe.

``manager.sample(dist)`` draws from ``dist``. The paper's ``manager.forward(x, dist_class=...,
dist_params=...)`` adds noise from the distribution described to ``x``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    Normal,
    TransformedDistribution,
    constraints,
)

from lightning_proppo.mathematics.densities import family

DistParams = Mapping[str, Any] | Sequence[Any] | Callable[[Any], Mapping[str, Any]]


def make_distribution(
    x: Any, dist: Any, dist_class: Any, dist_params: DistParams | None, estimator: str
) -> Distribution:
    """Return the distribution that the options describe.

    Args:
        x: the state that noise is added to, or None with ``dist``.
        dist: a distribution; or None.
        dist_class: a distribution's class, with ``dist_params``.
        dist_params: its arguments: a mapping, a sequence, or a function of ``x`` that returns a
            mapping.
        estimator: who asks, for error messages.

    Raises:
        TypeError: if neither form is complete, both are mixed, or no distribution comes of it; if
            a normal distribution's parameters are not floating point.
        ValueError: if they are on two devices; for any estimator but RP, if PyTorch has not
            validated them, and one that must be positive is not.
    """
    if dist is not None:
        if dist_class is not None or dist_params is not None:
            raise TypeError(f"{estimator}: give either dist, or dist_class and dist_params.")
        if not isinstance(dist, Distribution):
            raise TypeError(
                f"dist must be a torch.distributions.Distribution; got {type(dist).__name__}."
            )
        _check_parameters(dist, "dist", estimator)
        return dist
    if dist_class is None or dist_params is None:
        missing = "dist_class" if dist_class is None else "dist_params"
        raise TypeError(
            f"{estimator} samples: call manager.sample(dist), or manager.forward(x, "
            f"dist_class=..., dist_params=...); {missing} is missing."
        )
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be the tensor to add noise to; got {type(x).__name__}.")
    if not callable(dist_class):
        raise TypeError(
            f"dist_class must be a class of torch.distributions, e.g. Normal; got {dist_class!r}."
        )
    if callable(dist_params):
        dist_params = dist_params(x)
    if isinstance(dist_params, Mapping):
        made = dist_class(**dist_params)
    elif isinstance(dist_params, (tuple, list)):
        made = dist_class(*dist_params)
    else:
        raise TypeError(
            "dist_params must be a mapping, a tuple, a list, or a function of x that returns a "
            f"mapping; got {type(dist_params).__name__}."
        )
    if not isinstance(made, Distribution):
        raise TypeError(
            "dist_class must make a torch.distributions.Distribution; got a "
            f"{type(made).__name__} from it."
        )
    _check_parameters(made, "dist_params", estimator)
    return made


def _check_parameters(dist: Distribution, name: str, estimator: str) -> None:
    """Raise for what PyTorch makes but cannot draw from, or tell no density of."""
    while isinstance(dist, (Independent, TransformedDistribution)):
        dist = dist.base_dist
    if estimator != "RP" and not dist._validate_args:
        _check_positive(dist, name, estimator)
    if type(dist) is not Normal:
        return
    loc, scale = dist.loc, dist.scale
    if not loc.is_floating_point():
        raise TypeError(
            f"{name}: a Normal's loc and scale must be floating point; got dtype {loc.dtype}. "
            "Convert them, or the state that they are computed from: x.float()."
        )
    if loc.device != scale.device:
        raise ValueError(
            f"{name}: a Normal's loc and scale must be on one device; got {loc.device} and "
            f"{scale.device}. Move one of them: scale.to(loc.device)."
        )


def _check_positive(dist: Distribution, name: str, estimator: str) -> None:
    """Raise for a scale, rate or the like of 0: the score would be NaN, without another sign.

    PyTorch refuses it, but not with ``validate_args=False``, nor in any distribution of a process
    that has compiled something.
    """
    if torch.compiler.is_compiling():
        return
    try:
        known = dist.arg_constraints
    except NotImplementedError:  # a class of the user's that says nothing of its parameters
        return
    for parameter, constraint in known.items():
        value = vars(dist).get(parameter)
        if constraint is not constraints.positive or not isinstance(value, Tensor):
            continue
        if value.is_meta:  # which has no values
            continue
        wrong = value.detach() <= 0
        if bool(wrong.any()):
            raise ValueError(
                f"{name}: the {parameter} of {type(dist).__name__} must be positive for "
                f"{estimator}, which divides by it; got {int(wrong.sum())} values of 0 or less, "
                f"{float(value.detach()[wrong][0])} among them. Give it a lower bound, e.g. "
                f"{parameter}.clamp_min(1e-6)."
            )


def require_rsample(dist: Distribution, estimator: str) -> None:
    """Raise unless samples of ``dist`` can be differentiated.

    Raises:
        TypeError: naming the estimator that would work.
    """
    if not dist.has_rsample:
        raise TypeError(
            f"{estimator} differentiates through samples, but {family(dist)} has no "
            "rsample; use LR (LRProp) for this distribution."
        )
