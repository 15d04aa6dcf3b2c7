"""Samples that are changed in place: refused with what to write instead, or as good as a copy."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Beta, Distribution, Exponential, Normal
from torch.utils.data import DataLoader

from lightning_proppo import PropagationCallback, PropagationManager
from lightning_proppo.installed_lightning import pl

from ...quiet import QUIET

INSTEAD = ("sample of a rollout", "x = x + 1", "x = x.clamp(...)", "x = x.clone()")


def normal(loc: Tensor) -> Normal:
    return Normal(loc, torch.full_like(loc, 0.3))


def add(x: Tensor) -> None:
    x += 1


def set_row(x: Tensor) -> None:
    x[0] = 1.0


def add_to_column(x: Tensor) -> None:
    x[:, 0] += 1


IN_PLACE: list[Callable[[Tensor], Any]] = [
    add,
    set_row,
    add_to_column,
    lambda x: x.clamp_(-1, 1),
    lambda x: nn.ReLU(inplace=True)(x),
]


def said(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(type(error), error))


def assert_told_once(error: BaseException) -> None:
    for word in INSTEAD:
        assert said(error).count(word) == 1


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("name", ["TP", "TPX", "GR", "TP+MESH"])
@pytest.mark.parametrize("where", ["rollout", "lossfunc", "both"])
def test_a_sample_that_is_changed_in_place_is_named_with_what_to_write_instead(
    change: Callable[[Tensor], Any], name: str, where: str
) -> None:
    theta = torch.ones(2, requires_grad=True)
    manager = PropagationManager(name)

    def act() -> None:
        if where == "lossfunc":
            record()
            return
        with manager.rollout():
            record()

    def record() -> None:
        x = manager.sample(normal(theta.expand(5, 2)))
        if where == "rollout":
            change(x)
        else:
            manager.append_loss(x, lossfunc=change)

    with pytest.raises(RuntimeError, match="in-place operation") as caught:
        act()
    assert_told_once(caught.value)
    assert manager.recorded == 0


def test_it_is_named_in_a_training_step() -> None:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.ones(2))

        def training_step(self, batch: Any) -> Tensor:
            x = self.manager.sample(normal(self.theta.expand(5, 2)))
            x += 1
            return self.manager.loss(x.sum(1))

        def train_dataloader(self) -> DataLoader[int]:
            return DataLoader(range(1))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    trainer = pl.Trainer(**QUIET, max_epochs=1, callbacks=[PropagationCallback("TP")])
    with pytest.raises(RuntimeError, match="in-place operation") as caught:
        trainer.fit(Module())
    assert_told_once(caught.value)


def test_another_error_is_left_as_it_is() -> None:
    manager = PropagationManager("TP")
    with pytest.raises(RuntimeError) as caught, manager.rollout():
        torch.ones(2) + torch.ones(3)
    assert "sample of a rollout" not in said(caught.value)


@pytest.mark.parametrize(
    ("name", "dist"),
    [
        ("RP", normal),
        ("LR", normal),
        ("BIW", normal),
        ("LR", lambda loc: Beta(loc.exp(), loc.exp())),
    ],
)
def test_a_change_in_place_is_as_good_as_a_copy_where_samples_take_no_cotangent(
    name: str, dist: Callable[[Tensor], Distribution]
) -> None:
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        theta = torch.tensor([0.5, 0.7], dtype=torch.float64, requires_grad=True)
        manager = PropagationManager(name)
        x = torch.linspace(0.1, 1.0, 12, dtype=torch.float64).reshape(6, 2)
        for _ in range(2):
            x = manager.sample(dist(x * theta))
            if in_place:
                x += 1
            else:
                x = x + 1
            manager.append_loss(x.square().sum(1))
        manager.loss().backward()
        assert theta.grad is not None
        found.append(theta.grad)
    assert found[0].all()
    assert torch.equal(*found)


def test_a_density_whose_sample_was_changed_in_place_says_so() -> None:
    theta = torch.ones(2, requires_grad=True)
    manager = PropagationManager("LR")
    x = manager.sample(Exponential(theta.expand(5, 2)))
    x += 1
    loss = manager.loss(x.sum(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation") as caught:
        loss.backward()
    assert "x = x + 1" in said(caught.value)
