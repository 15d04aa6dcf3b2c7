"""Short ways give what the general way gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from lightning_proppo import PropagationManager
from lightning_proppo.mathematics.variances import wide_weights
from lightning_proppo.per_particle import find_parameter_uses
from lightning_proppo.propagators import (
    BackPropagator,
    BaselineProp,
    ComboProp,
    LRBase,
    LRProp,
    Propagator,
    RPBase,
    RPProp,
    TotalProp,
    TPBase,
    tp,
)

F = torch.float64
HORIZON, PARTICLES = 4, 7


class Bystander(Propagator):
    """Does nothing, but is no propagator that is known to do nothing."""

    def backward_impl(self, node: Any, message: Any) -> Any:
        """Pass it on with targets, which is no short way."""
        del node
        message["targets"] = -1
        return message


def gradient(propagator: Propagator, costs_at: Callable[[int], bool]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    theta = torch.tensor([0.4, 0.7], dtype=F, requires_grad=True)
    manager = PropagationManager(propagator)
    x = torch.linspace(-1, 1, 2 * PARTICLES, dtype=F).reshape(PARTICLES, 2)
    for step in range(HORIZON):
        x = manager.sample(Normal((x * theta).sin(), theta.exp().expand_as(x)))
        if costs_at(step):
            manager.append_loss((x * theta).square().sum(1))
    loss = manager.loss()
    return loss.detach(), torch.autograd.grad(loss, theta)[0]


COSTS = {"at the end": lambda step: step == HORIZON - 1, "always": lambda step: True}


@pytest.mark.parametrize("costs_at", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize(
    ("short", "general"),
    [
        (RPProp(detach=False), RPProp()),
        (RPProp(detach=False), ComboProp([BackPropagator(), RPBase(), Bystander()])),
        (LRProp(), ComboProp([BackPropagator(), Bystander(), LRBase(), BaselineProp()])),
        (
            LRProp(),
            # A function of the user's own is called at every sample.
            LRProp(
                baseline=(True, {"baseline_func": lambda losses, node: others_subtracted(losses)})
            ),
        ),
        (TotalProp(), ComboProp([BackPropagator(), Bystander(), TPBase(), BaselineProp()])),
    ],
    ids=["RP detached", "RP in parts", "LR in parts", "LR with a baseline", "TP in parts"],
)
def test_short_ways_give_the_same_gradients(
    short: Propagator, general: Propagator, costs_at: Callable[[int], bool]
) -> None:
    general.loss_propagator = short.loss_propagator  # type: ignore[method-assign]
    for a, b in zip(gradient(short, costs_at), gradient(general, costs_at), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def others_subtracted(losses: Tensor) -> Tensor:
    return losses - (losses.sum() - losses) / (len(losses) - 1)


@pytest.mark.parametrize("costs_at", COSTS.values(), ids=COSTS)
def test_attached_rp_is_what_pytorch_computes(costs_at: Callable[[int], bool]) -> None:
    torch.manual_seed(0)
    theta = torch.tensor([0.4, 0.7], dtype=F, requires_grad=True)
    x = torch.linspace(-1, 1, 2 * PARTICLES, dtype=F).reshape(PARTICLES, 2)
    loss = torch.zeros((), dtype=F)
    for step in range(HORIZON):
        x = Normal((x * theta).sin(), theta.exp().expand_as(x)).rsample()
        if costs_at(step):
            loss = loss + (x * theta).square().sum(1).mean()
    expected = torch.autograd.grad(loss, theta)[0]
    value, found = gradient(RPProp(detach=False), costs_at)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_weights_of_32_bit_gradients_are_those_of_64_bits() -> None:
    """One takes squares in 64 bits, the other a scale of its own."""
    torch.manual_seed(0)
    for size in (1e-18, 1.0, 1e18):
        x, y = size * torch.randn(9, 5), 3 * size * torch.randn(9, 5)
        for scalar in (True, False):
            found = wide_weights([x], [y], scalar_estimate=scalar)
            expected = wide_weights([x.double()], [y.double()], scalar_estimate=scalar)
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


class Recurrent(nn.Module):
    """A product with a fixed matrix, and then what is learnt; or the other way round."""

    def __init__(self, near: bool) -> None:
        super().__init__()
        self.near = near
        weight = torch.tensor([[1.0, -2.0], [0.5, 1.5]], dtype=F)
        self.beta = nn.Parameter(torch.tensor([1.5], dtype=F))
        self.scale = nn.Parameter(torch.tensor([-1.0, -2.0], dtype=F))
        self.weight = weight if near else nn.Parameter(weight)

    def forward(self, x: Tensor) -> Normal:
        mean = torch.sigmoid(self.beta * (x @ self.weight))
        return Normal(mean, self.scale.exp().expand_as(mean))


def recurrent_gradient(model: Recurrent, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    manager = PropagationManager("TP")
    x = torch.linspace(-1, 1, 2 * PARTICLES, dtype=F).reshape(PARTICLES, 2)
    for _ in range(HORIZON):
        x = manager.sample(model(x), **options)
        manager.append_loss((1 - x).square().sum(1))
    found = torch.autograd.grad(manager.loss(), list(model.parameters()))
    return list(found), manager.statistics["lr_weight"]


@pytest.mark.parametrize(
    "options", [{}, {"weighting": "covariance"}, {"k_interval": 2}], ids=["", "covariance", "kept"]
)
def test_weights_first_give_what_gradients_first_do(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Recurrent(near=True)
    found = []
    for large in (0, 1 << 40):
        monkeypatch.setattr(tp, "_LARGE", large)
        found.append(recurrent_gradient(model, **options))
    for short, general in zip(*found, strict=True):
        for a, b in zip(short, general, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    assert any(0 < float(weight) < 1 for weight in found[0][1])


@pytest.mark.parametrize("near", [True, False])
def test_weights_come_first_only_where_parameters_are_near(near: bool) -> None:
    model = Recurrent(near)
    x = torch.zeros(PARTICLES, 2, dtype=F, requires_grad=True)
    outputs = [model(x).loc]
    uses = find_parameter_uses(outputs, list(model.parameters()), PARTICLES)
    assert uses.unsupported is None
    assert uses.plan.near is near


def test_without_anything_heavy_no_parameter_is_near() -> None:
    theta = torch.ones(2, dtype=F, requires_grad=True)
    x = torch.zeros(PARTICLES, 2, dtype=F, requires_grad=True)
    assert not find_parameter_uses([(x * theta).sin()], [theta], PARTICLES).plan.near
