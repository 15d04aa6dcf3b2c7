"""Precision: what must not be computed in 16 bits, under autocast or in a 16-bit model."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Gumbel, Normal
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform
from torch.distributions.utils import lazy_property

D = TypeVar("D", bound=Distribution)
# What a distribution is made of, beside tensors and containers of such.
_PARTS = (Distribution, Transform, Constraint, nn.Module)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context without autocast on the device of ``x``."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def is_narrow(x: Tensor) -> bool:
    """Return whether ``x`` is floating point of less than 32 bits."""
    return x.dtype.itemsize < 4 and x.is_floating_point()


def floating_tensors(thing: Any) -> list[Tensor]:
    """Return all floating point tensors that a distribution is made of.

    Args:
        thing: a distribution, a transform, a constraint or a module; what is in its attributes,
            in lists, tuples and dicts among them, and in theirs.
    """
    if type(thing) is Normal:  # by far the most frequent
        return [thing.loc, thing.scale]
    found: list[Tensor] = []
    seen: set[int] = set()
    stack: list[Any] = [thing]
    while stack:
        part = stack.pop()
        if isinstance(part, Tensor):
            if part.is_floating_point():
                found.append(part)
        elif isinstance(part, _PARTS):
            if id(part) not in seen:
                seen.add(id(part))
                stack.extend(vars(part).values())
        elif isinstance(part, dict):
            stack.extend(part.values())
        elif isinstance(part, (list, tuple)):
            stack.extend(part)
    return found


@dataclass(frozen=True, eq=False)
class Widened(Generic[D]):
    """A distribution whose parameters have at least 32 bits.

    Attributes:
        dist: the distribution.
        dtype: what samples are rounded to before they are handed out; None: not at all.
        like: one of the parameters, for their device; None without any.
    """

    dist: D
    dtype: torch.dtype | None
    like: Tensor | None

    def context(self) -> AbstractContextManager[Any]:
        """Return a context in which nothing is cast to 16 bits."""
        return nullcontext() if self.like is None else full_precision(self.like)

    def rounded(self, sample: Tensor, x: Tensor | None = None) -> Tensor:
        """Return a sample as it is handed out, having been added to ``x`` if that is given."""
        if self.dtype is None or not sample.is_floating_point():
            return sample
        return sample.to(self.dtype if x is None else torch.promote_types(self.dtype, x.dtype))


def widen(dist: D) -> Widened[D]:
    """Return ``dist`` with its parameters in 32 bits at least.

    The noise of 1e-3 around 1.0 is lost in bfloat16, and so is the log-density of it. Samples are
    therefore drawn, and weighed, in float32. Under autocast they stay so: a state is no matrix
    product, and autocast casts what goes into one. Where all parameters have 16 bits outside
    autocast, as in a pure 16-bit model, samples are rounded to the parameters' dtype *after* they
    were drawn and weighed: the rounding is then a part of the cost, and the likelihood-ratio
    gradient of that is exact.

    Args:
        dist: left as it is. Where all of it has 32 bits it is also what is returned, else a copy
            whose tensors, of base and component distributions and of transforms too, are upcast
            differentiably.
    """
    tensors = floating_tensors(dist)
    like = tensors[0] if tensors else None
    narrow = [tensor for tensor in tensors if is_narrow(tensor)]
    if not narrow:
        return Widened(dist, None, like)
    device = narrow[0].device.type
    with full_precision(narrow[0]):
        wide = _widened(dist, {})
    if len(narrow) < len(tensors) or torch.is_autocast_enabled(device):
        return Widened(wide, None, like)
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in narrow))
    return Widened(wide, dtype if dtype.itemsize < 4 else None, like)


def _widened(thing: Any, done: dict[int, Any]) -> Any:
    """Return ``thing``, or a copy with its 16-bit tensors upcast; what is shared stays shared."""
    if id(thing) in done:
        return done[id(thing)]
    if isinstance(thing, Tensor):
        if not is_narrow(thing):
            return thing
        done[id(thing)] = thing.float()
        return done[id(thing)]
    if type(thing) is Gumbel:
        # Made of uniform numbers below 1 - eps, which cuts a hundredth of it off in bfloat16.
        loc, scale = _widened(thing.loc, done), _widened(thing.scale, done)
        done[id(thing)] = Gumbel(loc, scale, validate_args=thing._validate_args)
        return done[id(thing)]
    if isinstance(thing, _PARTS):
        new = done[id(thing)] = object.__new__(type(thing))
        for name, value in _attributes(thing).items():
            # Modules and frozen classes have a __setattr__ of their own.
            new.__dict__[name] = _widened(value, done)
        return _normalized(new) if isinstance(new, Categorical) else new
    if type(thing) in (list, tuple):
        return type(thing)(_widened(part, done) for part in thing)
    if isinstance(thing, dict):
        return {name: _widened(part, done) for name, part in thing.items()}
    return thing


def _attributes(thing: Any) -> dict[str, Any]:
    """Return what to copy of a distribution or of a part of one."""
    attributes = dict(vars(thing))
    if isinstance(thing, Transform) and "_cached_x_y" in attributes:
        attributes["_cached_x_y"] = None, None
    given = attributes.get("_param")
    if isinstance(thing, Distribution) and isinstance(given, Tensor):
        # The others were derived from it, in 16 bits.
        for name in ("logits", "probs"):
            if attributes.get(name, given) is not given and isinstance(
                getattr(type(thing), name, None), lazy_property
            ):
                del attributes[name]
    return attributes


def _normalized(dist: Categorical) -> Categorical:
    """Make probabilities sum to one again, as they do in 16 bits to two digits only."""
    attributes = dist.__dict__
    if "probs" in attributes:
        probs = attributes["probs"]
        attributes["probs"] = attributes["_param"] = probs / probs.sum(-1, keepdim=True)
    else:
        logits = attributes["logits"]
        logits = logits - logits.logsumexp(-1, keepdim=True)
        attributes["logits"] = attributes["_param"] = logits
    return dist
