"""What a rollout held is let go of when it has been differentiated."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.distributions import Normal

from lightning_proppo import PropagationManager


@pytest.mark.parametrize("estimator", ["RP", "LR", "TP", "GR"])
def test_nothing_of_a_rollout_outlives_its_backward_pass(estimator: str) -> None:
    torch.manual_seed(0)
    matrix, scale = (torch.rand(3, requires_grad=True) for _ in range(2))
    matrix = torch.rand(3, 3).requires_grad_()
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
