"""Transforms of torch.func around a rollout: refused, but for what is left to PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Normal
from torch.func import grad, jacrev, jvp, vmap

from lightning_proppo import PropagationError, PropagationManager

START = torch.linspace(-1, 1, 6)


def roll(manager: PropagationManager, theta: Tensor) -> Tensor:
    torch.manual_seed(0)
    x = START
    for _ in range(2):
        loc = theta * x
        x = manager.sample(Normal(loc, torch.full_like(loc, 0.5)))
        manager.append_loss(x.square())
    return manager.loss()


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    "grad": lambda f: grad(f)(torch.tensor(0.5)),
    "jacrev": lambda f: jacrev(f)(torch.tensor(0.5)),
    "vmap": lambda f: vmap(f, randomness="different")(torch.tensor([0.5, 0.6])),
    "vmap of grad": lambda f: vmap(grad(f), randomness="different")(torch.tensor([0.5, 0.6])),
    "jvp": lambda f: jvp(f, (torch.tensor(0.5),), (torch.tensor(1.0),)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["LR", "TP", "TPX", "GR", "GS", "BIW", "TP+MESH"])
def test_a_rollout_that_is_transformed_is_refused_and_forgotten(name: str, transform: str) -> None:
    manager = PropagationManager(name)
    with pytest.raises(PropagationError, match=r"torch\.func.*loss\.backward\(\)"):
        TRANSFORMS[transform](lambda theta: roll(manager, theta))
    assert manager.recorded == manager.undifferentiated == 0
    theta = torch.tensor(0.5, requires_grad=True)
    roll(manager, theta).backward()
    assert theta.grad is not None


@pytest.mark.parametrize("transform", ["grad", "jacrev"])
def test_rp_is_plain_pytorch_which_may_be_transformed(transform: str) -> None:
    manager = PropagationManager("RP")
    found = TRANSFORMS[transform](lambda theta: roll(manager, theta))
    theta = torch.tensor(0.5, requires_grad=True)
    roll(manager, theta).backward()
    torch.testing.assert_close(found, theta.grad)


def test_a_transform_inside_a_step_is_none_of_the_rollout() -> None:
    manager = PropagationManager("TP")
    w = torch.tensor([[0.5], [0.6]], requires_grad=True)
    x = manager.sample(Normal(vmap(lambda own: own * START)(w).mean(0), 0.5))
    manager.loss(x.square()).backward()
    assert w.grad is not None


def test_another_error_inside_a_transform_is_left_as_it_is() -> None:
    manager = PropagationManager("LR")

    def two_sizes(theta: Tensor) -> Tensor:
        x = manager.sample(Categorical(logits=theta.expand(6, 2)))
        return manager.loss(x, lossfunc=lambda x: x * torch.ones(5))

    with pytest.raises(RuntimeError, match=r"size of tensor a \(6\)"):
        grad(two_sizes)(torch.tensor(0.5))
