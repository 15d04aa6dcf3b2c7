"""Propagators that do not keep to their contract; what holds of each is in ``mistakes.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import (
    BackPropagator,
    ChainProp,
    ComboProp,
    PauseProp,
    Propagator,
    RPProp,
)

from ..errors import assert_refused
from .mistakes import (
    Act,
    Mistake,
    assert_goes_on,
    assert_told_and_forgotten,
    each_with_its_estimators,
    squares,
    start,
    step,
    theta,
)


class Returns(Propagator):
    """Returns what it is told to."""

    def __init__(self, forward: Any = None, backward: Any = None) -> None:
        super().__init__()
        self.forward_value, self.backward_value = forward, backward

    def forward_impl(self, x: Any, node: Any = None) -> Any:
        return self.forward_value

    def backward_impl(self, node: Any, message: Any) -> Any:
        return self.backward_value


def passing(propagator: Callable[[Tensor], Propagator]) -> Act:
    """Return an act that records a node of a propagator and runs the pass."""

    def act(manager: PropagationManager, x: Tensor) -> None:
        manager.forward(x, local_propagator=propagator(x))
        manager.backward()

    return act


def sends(message: Any) -> Act:
    return passing(lambda x: ComboProp([BackPropagator(), Returns({"output": x}, message)]))


WRAPPED: dict[str, Callable[[Propagator], Propagator]] = {
    "alone": lambda propagator: propagator,
    "in a combination": lambda propagator: ComboProp([propagator]),
    "in a chain": lambda propagator: ChainProp([propagator]),
}
MISTAKES = [
    *(
        Mistake(
            f"a forward computation that returns {wrong!r}, {name}",
            TypeError,
            (
                "Returns.forward_impl must return a dict or a Container",
                f"got {type(wrong).__name__}",
            ),
            passing(lambda x, wrong=wrong, wrap=wrap: wrap(Returns(wrong))),
        )
        for wrong in (None, 3, torch.ones(2))
        for name, wrap in WRAPPED.items()
    ),
    *(
        Mistake(
            f"a backward computation that returns {wrong!r}, {name}",
            TypeError,
            ("Returns must return a message", f"got {type(wrong).__name__}"),
            passing(lambda x, wrong=wrong, wrap=wrap: wrap(Returns({"output": x}, wrong))),
        )
        for wrong in (3, torch.ones(2), "message")
        for name, wrap in WRAPPED.items()
    ),
    *(
        Mistake(name, error, words, sends(message))
        for name, message, error, words in (
            (
                "outputs without gradients",
                {"outputs": [theta * 1.0]},
                KeyError,
                ("'outputs' but no 'grads'",),
            ),
            (
                "fewer gradients than outputs",
                {"outputs": [theta * 1.0], "grads": []},
                ValueError,
                ("1 outputs and 0 grads",),
            ),
            (
                "a gradient of another shape",
                {"outputs": [theta * 1.0], "grads": [torch.ones(3)]},
                ValueError,
                ("[3]", "[2]"),
            ),
            (
                "a message to a word",
                {"a": 1, "targets": "before"},
                TypeError,
                ("targets must be an int", "'before'"),
            ),
        )
    ),
    Mistake(
        "a pause of a list",
        TypeError,
        ("x must be the tensor", "list"),
        lambda m, x: m.forward([x], local_propagator=PauseProp()),
        ("RP",),
    ),
    Mistake(
        "options for one of two in a chain",
        ValueError,
        ("chain_kwargs", "2", "got 1"),
        lambda m, x: m.forward(
            x, local_propagator=ChainProp([RPProp(), RPProp()]), chain_kwargs=[{}]
        ),
    ),
]


@each_with_its_estimators(MISTAKES)
def test_what_propagators_may_not_return_or_be_given(mistake: Mistake, estimator: str) -> None:
    assert_told_and_forgotten(mistake, estimator)


@pytest.mark.parametrize("wrong", [3, "message", [1], torch.ones(2)], ids=repr)
def test_messages_to_start_with_that_are_none(wrong: Any) -> None:
    manager = PropagationManager("LR")
    costs = squares(manager.sample(step(start())))
    words = ("message must be", repr(wrong))
    assert_refused(TypeError, words, lambda: manager.backward(costs, message=wrong))
    assert_goes_on(manager, "LR")
