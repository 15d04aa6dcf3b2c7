"""Where total propagation compares variances: its targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_proppo.errors import did_you_mean

Target = str | nn.Module | Tensor | Sequence[Tensor]


def check_target(ivw_target: Any) -> str | list[Tensor]:
    """Return the target as ``"parameters"``, ``"node"`` or a list of tensors.

    Raises:
        TypeError: for anything that is no target.
        ValueError: for an unknown name, or a module or list without tensors.
    """
    if isinstance(ivw_target, str):
        names = ("parameters", "node")
        if ivw_target not in names:
            raise ValueError(
                f"ivw_target must be one of {', '.join(names)}, a module, or tensors; got "
                f"{ivw_target!r}.{did_you_mean(ivw_target, names)}"
            )
        return ivw_target
    if isinstance(ivw_target, nn.Module):
        targets: list[Tensor] = [p for p in ivw_target.parameters() if p.requires_grad]
    elif isinstance(ivw_target, Tensor):
        targets = [ivw_target]
    elif isinstance(ivw_target, (list, tuple)):
        targets = list(ivw_target)
    else:
        raise TypeError(
            "ivw_target must be 'parameters', 'node', a module, a tensor or a list of tensors; "
            f"got {type(ivw_target).__name__}."
        )
    for target in targets:
        if not isinstance(target, Tensor) or not target.requires_grad:
            came = (
                "one that does not" if isinstance(target, Tensor) else f"a {type(target).__name__}"
            )
            raise TypeError(f"ivw_target's tensors must require a gradient; got {came}.")
    if not targets:
        raise ValueError("ivw_target must have at least one tensor that requires a gradient.")
    return targets


def check_expanded(targets: Sequence[Tensor], particles: int) -> None:
    """Raise unless each tensor has a row for each particle.

    Raises:
        ValueError: naming the shape that came.
    """
    for target in targets:
        if target.dim() == 0 or target.shape[0] != particles:
            raise ValueError(
                "ivw_target's tensors must be expanded over the particles (or be parameters); "
                f"with {particles} particles, got shape {list(target.shape)}. Make it with "
                "lightning_proppo.expand(parameter, particles)."
            )
