"""Mistakes in calls of a manager, and what holds of each; ``test_bad_*.py`` have them by subject.

One exception says what came and what to do. It is of a documented type and raised by itself
(nothing else failed on the way to it), and the next correct call works: whatever was recorded of
the rollout that failed is forgotten, so that the next has the gradient that a new manager gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from lightning_proppo import PropagationManager

from ..errors import assert_refused

P = 6
NAMES = ("RP", "LR", "TP", "GR", "GS", "TP+GS")
NAN, INF = float("nan"), float("inf")
theta = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
Act = Callable[[PropagationManager, Tensor], Any]


@dataclass(frozen=True)
class Mistake:
    """One of them.

    Attributes:
        name: what is wrong.
        error: the exception's type.
        words: parts of its message, what came among them.
        act: makes the mistake, in the middle of a rollout: ``(manager, x [P, 2])``.
        estimators: with which it is made, each in turn.
        by_torch: whether PyTorch refuses it before the manager is called, so that only
            ``manager.rollout()`` can tell the manager.
    """

    name: str
    error: type[Exception]
    words: tuple[str, ...]
    act: Act
    estimators: tuple[str, ...] = ("TP",)
    by_torch: bool = False

    def __str__(self) -> str:
        return self.name


def each_with_its_estimators(mistakes: Iterable[Mistake]) -> Any:
    """Return the decorator of a test ``(mistake, estimator)``."""
    pairs = [(mistake, name) for mistake in mistakes for name in mistake.estimators]
    return pytest.mark.parametrize(("mistake", "estimator"), pairs, ids=str)


def assert_told_and_forgotten(mistake: Mistake, estimator: str) -> None:
    """Make the mistake in the middle of a rollout."""
    manager = PropagationManager(estimator)

    def act() -> None:
        with manager.rollout() if mistake.by_torch else nullcontext():
            x = manager.sample(step(start()))
            manager.append_loss(x, lossfunc=squares)
            mistake.act(manager, x)

    assert_refused(mistake.error, mistake.words, act)
    assert_goes_on(manager, estimator)


def assert_goes_on(manager: PropagationManager, estimator: str) -> None:
    """The manager has forgotten the rollout that failed."""
    assert manager.recorded == 0
    theta.grad = None
    found, expected = _good_rollout(manager), _good_rollout(PropagationManager(estimator))
    assert bool(expected.isfinite().all())
    assert torch.equal(found, expected)


def _good_rollout(manager: PropagationManager) -> Tensor:
    torch.manual_seed(1)
    x = start()
    for _ in range(3):
        x = manager.sample(step(x))
        manager.append_loss(x, lossfunc=squares)
    return torch.autograd.grad(manager.loss(), theta)[0]


def start(particles: int = P) -> Tensor:
    return torch.zeros(particles, 2, dtype=torch.float64)


def step(x: Tensor, scale: Any = 0.1) -> Normal:
    return Normal((x + theta).sin(), scale)


def squares(x: Tensor) -> Tensor:
    return x.square().sum(1)


def differentiate(make: Callable[[Tensor], Any], **options: Any) -> Act:
    """Return an act that draws from ``make(x)`` and differentiates the squares."""

    def act(manager: PropagationManager, x: Tensor) -> None:
        manager.loss(squares(manager.sample(make(x), **options))).backward()

    return act


def one_bad(x: Tensor, value: float) -> Tensor:
    """Return ``x`` with a value at the third particle."""
    return torch.where(torch.arange(len(x))[:, None] == 2, value, x)


def unchecked(loc: Any, scale: Any) -> Normal:
    return Normal(loc, scale, validate_args=False)


def around(x: Any, *parameters: Any, **options: Any) -> dict[str, Any]:
    """Return options for noise around a state."""
    return {"x": x, "dist_class": Normal, "dist_params": parameters, **options}
