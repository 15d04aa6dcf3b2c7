"""What a rollout held is let go of when it has been differentiated, or broken off."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Normal

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import Propagator

from ..launching import launch_successfully


@pytest.mark.parametrize("estimator", ["RP", "LR", "TP", "GR"])
def test_nothing_of_a_rollout_outlives_its_backward_pass(estimator: str) -> None:
    torch.manual_seed(0)
    matrix, scale = torch.rand(3, 3).requires_grad_(), torch.rand(3).requires_grad_()
    manager = PropagationManager(estimator)
    x = torch.zeros(8, 3)
    samples = []
    for _ in range(3):
        x = manager.sample(Normal(torch.tanh(x @ matrix) * scale, 0.1))
        samples.append(weakref.ref(x))
    loss = manager.loss(x.square().sum(1))
    loss.backward()
    del x, loss
    gc.collect()
    assert [sample() for sample in samples] == [None] * 3
    for parameter in (matrix, scale):
        # A gradient with a graph would hold its parameter, which holds the gradient, for ever.
        assert parameter.grad is not None
        assert not parameter.grad.requires_grad


class Fails(Propagator):
    """A node whose backward computation raises."""

    def forward_impl(self, x: Any, node: Any = None) -> Any:
        return {"output": x}

    def backward_impl(self, node: Any, message: Any) -> Any:
        raise ZeroDivisionError


def in_a_step(manager: PropagationManager, x: torch.Tensor) -> None:
    raise ZeroDivisionError


def in_a_cost(manager: PropagationManager, x: torch.Tensor) -> None:
    manager.append_loss(x, lossfunc=lambda x: 1 / 0)


def in_an_option(manager: PropagationManager, x: torch.Tensor) -> None:
    manager.forward(x, dits=1)


def in_a_pass(manager: PropagationManager, x: torch.Tensor) -> None:
    manager.forward(x, local_propagator=Fails())
    manager.loss().backward()


def in_a_pass_of_the_managers(manager: PropagationManager, x: torch.Tensor) -> None:
    manager.forward(x, local_propagator=Fails())
    manager.backward()


def while_a_loss_is_open(manager: PropagationManager, x: torch.Tensor) -> None:
    loss = manager.loss()
    manager.sample(Normal(x.detach(), 0.1))
    raise ZeroDivisionError(loss)


@pytest.mark.parametrize("estimator", ["RP", "LR", "TP", "TPX", "GR", "GS", "TP+MESH"])
@pytest.mark.parametrize(
    "fail",
    [
        in_a_step,
        in_a_cost,
        in_an_option,
        in_a_pass,
        in_a_pass_of_the_managers,
        while_a_loss_is_open,
    ],
)
def test_no_tape_of_a_rollout_outlives_its_exception(
    estimator: str, fail: Callable[[PropagationManager, torch.Tensor], None]
) -> None:
    """Nor a sample of it; and nothing waits for the garbage collector."""
    torch.manual_seed(0)
    scale = torch.tensor(0.5, requires_grad=True)
    manager = PropagationManager(estimator)
    alive: list[weakref.ref[Any]] = []

    def rollout() -> None:
        x = torch.zeros(8, 3)
        with manager.rollout():
            alive.append(weakref.ref(manager._tape))
            for _ in range(3):
                x = manager.sample(Normal(torch.tanh(x) * scale, scale))
                alive.append(weakref.ref(x))
                manager.append_loss(x, lossfunc=lambda x: x.square().sum(1))
            fail(manager, x)

    gc.disable()
    try:
        for _ in range(5):
            with contextlib.suppress(ZeroDivisionError, TypeError):
                rollout()
        assert [each() for each in alive] == [None] * len(alive)
    finally:
        gc.enable()
    assert len(alive) == 20
    assert manager.recorded == 0


@pytest.mark.slow
def test_memory_is_flat_in_training_and_where_rollouts_break_off() -> None:
    """The benchmark, with less patience, in a process of its own."""
    root = Path(__file__).resolve().parents[2]
    told = launch_successfully(root, "-m", "benchmarks.memory", "--steps", "400")
    counts = [int(line.split()[-1]) for line in told.splitlines()[1:]]
    assert counts == [0, 0]


@pytest.mark.parametrize("estimator", ["RP", "LR", "TP", "GR"])
def test_a_loss_that_is_kept_holds_no_rollout(estimator: str) -> None:
    """As in plain PyTorch, whose graph is freed by the backward pass; unless it is to be kept."""
    theta = torch.zeros(3, requires_grad=True)
    manager = PropagationManager(estimator)
    x = manager.sample(Normal(theta.expand(8, 3), 0.1))
    sample = weakref.ref(x)
    loss = manager.loss(x.square().sum(1))
    del x
    loss.backward(retain_graph=True)
    gc.collect()
    assert sample() is not None
    loss.backward()
    gc.collect()
    assert sample() is None
