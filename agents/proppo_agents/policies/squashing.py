"""Functions that keep actions within [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def squash(z: Tensor) -> Tensor:
    r"""Return :math:`(9 \sin z + \sin 3z) / 8`, in [-1, 1] as PILCO does.

    Unlike tanh it does not saturate: where an action is at its bound, it takes a larger z no
    further, and one of twice pi/2 brings it back to 0.
    """
    return (9 * torch.sin(z) + torch.sin(3 * z)) / 8


SQUASHINGS: dict[str, Callable[[Tensor], Tensor]] = {"sine": squash, "tanh": torch.tanh}
