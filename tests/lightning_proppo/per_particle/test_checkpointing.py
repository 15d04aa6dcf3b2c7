"""Segments under ``torch.utils.checkpoint`` have the gradients that they have without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.checkpoint import checkpoint

from lightning_proppo import PropagationManager, per_particle_rule
from lightning_proppo.propagators import TotalProp

PARTICLES, HORIZON = 6, 3


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return b * w, (b * x).sum(0)


@per_particle_rule(Scale, rows=[0])
def scale(function: Any, slot: int, b: Tensor, particles: int) -> Tensor:
    x, _ = function.saved_tensors
    return b * x


class Network(nn.Module):
    """Layers with rules for values that PyTorch saved, among them an index and a user's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.LayerNorm(4))
        self.table = nn.Parameter(torch.randn(3, 4))
        self.gain = nn.Parameter(torch.randn(4))
        self.last = nn.Linear(4, 2)
        self.to(torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = Scale.apply(self.first(x), self.gain)  # type: ignore[no-untyped-call]
        found: Tensor = self.last(scaled + self.table[torch.arange(len(x)) % 3])
        return found


def each_step(network: nn.Module, call: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: call(network, x)


def once(network: nn.Module, call: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """Use one output of the network at every step."""
    known: list[Tensor] = []

    def shared(x: Tensor) -> Tensor:
        known.append(known[0] if known else call(network, x.detach()))
        return known[0] * x

    return shared


def plain(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x)


def checkpointed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found: Tensor = checkpoint(function, x, use_reentrant=False)
    return found


@pytest.mark.parametrize("way", ["loss", "twice", "manager"])
@pytest.mark.parametrize("using", [each_step, once])
@pytest.mark.parametrize(
    "make",
    [
        *(lambda name=name: name for name in ["LR", "TP", "TPX", "TP+MESH", "GR"]),
        lambda: TotalProp(weighting="covariance"),
        lambda: TotalProp(weighting="cross-fitted"),
    ],
    ids=["LR", "TP", "TPX", "TP+MESH", "GR", "covariance", "cross-fitted"],
)
def test_a_checkpointed_segment_has_the_gradients_that_it_has_without(
    make: Callable[[], Any], using: Any, way: str
) -> None:
    found = []
    for call in (plain, checkpointed):
        network = Network()
        step = using(network, call)
        manager = PropagationManager(make())
        torch.manual_seed(7)
        x = torch.linspace(-1, 1, 2 * PARTICLES, dtype=torch.float64).reshape(PARTICLES, 2)
        for _ in range(HORIZON):
            loc = x + 0.1 * step(x)
            x = manager.sample(Normal(loc, torch.full_like(loc, 0.3)))
            manager.append_loss(x.square().sum(1))
        if way == "manager":
            manager.backward()
        else:
            loss = manager.loss()
            loss.backward(retain_graph=way == "twice")
            if way == "twice":
                loss.backward()
        found.append([p.grad for p in network.parameters()])
    for plainly, again in zip(*found, strict=True):
        assert plainly is not None
        assert plainly.norm() > 0
        assert torch.equal(plainly, again)
