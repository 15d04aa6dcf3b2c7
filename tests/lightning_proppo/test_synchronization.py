"""The backward pass waits for no number: on a GPU each would be a synchronization.

A tensor that Python looks at (``item``, a boolean test, a boolean mask, ``nonzero``) makes the
host wait for the device. On the CPU the operations behind these are counted; where there is a GPU,
PyTorch itself raises.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_proppo import PropagationManager

PARTICLES, HORIZON = 8, 4
ESTIMATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "RP": ("RP", {}),
    "LR": ("LR", {}),
    "TP": ("TP", {}),
    "TPX": ("TPX", {}),
    "TP, covariance": ("TP", {"weighting": "covariance"}),
    "TP, cross-fitted": ("TP", {"weighting": "cross-fitted"}),
    "TPX, cross-fitted": ("TPX", {"weighting": "cross-fitted"}),
    "TP, every other node": ("TP", {"k_interval": 2}),
}
# With these, the index is a mask, whose number of elements has to be known.
INDEXING = ("aten::index.Tensor", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")


class Waits(TorchDispatchMode):
    """Notes the operations that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.name()
        masks = name.startswith(INDEXING) and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name.startswith(WAITING) or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Raise where something waits for the device."""
    if device.type == "cuda":
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return
    with Waits() as waits:
        yield
    assert waits.found == []


class Policy(nn.Module):
    """A state's successor, with a learnt scale."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3))
        self.log_scale = nn.Parameter(torch.full((3,), -2.0))

    def forward(self, x: Tensor) -> Normal:
        return Normal(x + self.layers(x), self.log_scale.exp().expand(x.shape))


def loss_of(estimator: str, device: torch.device) -> Tensor:
    name, options = ESTIMATORS[estimator]
    manager = PropagationManager(name, **options)
    policy = Policy().to(device)
    x = torch.randn(PARTICLES, 3, device=device)
    for _ in range(HORIZON):
        x = manager.sample(policy(x))
        manager.append_loss(x.square().sum(1))
    return manager.loss()


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_backward_pass_waits_for_no_number(estimator: str, device: str) -> None:
    where = torch.device(device)
    torch.manual_seed(0)
    loss_of(estimator, where).backward()  # what is done once, e.g. the first plan
    loss = loss_of(estimator, where)
    with no_waiting(where):
        loss.backward()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: float(x.mean()),
    ],
)
def test_waiting_is_found_out(wait: Any) -> None:
    with pytest.raises(AssertionError), no_waiting(torch.device("cpu")):
        wait(torch.randn(4))
