"""Costs that are none, and losses that cannot be; what holds of each is in ``mistakes.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from lightning_proppo import PropagationError, PropagationManager
from lightning_proppo.propagators import Propagator

from .mistakes import (
    INF,
    NAMES,
    NAN,
    Mistake,
    P,
    assert_told_and_forgotten,
    differentiate,
    each_with_its_estimators,
    one_bad,
    squares,
    start,
    step,
    theta,
    unchecked,
)

# By what is wrong: the costs of a state [P, 2], the exception, and what it says.
COSTS: dict[str, tuple[Callable[[Tensor], Any], type[Exception], tuple[str, ...]]] = {
    "by coordinate": (
        lambda x: x.square(),
        ValueError,
        ("costs", "[P] or [P, 1]", "[6, 2]"),
    ),
    "mean": (lambda x: squares(x).mean(), ValueError, ("costs", "shape []", "Do not average")),
    "batch last": (lambda x: squares(x)[None], ValueError, ("costs", "[1, 6]")),
    "all pairs, by broadcasting": (
        lambda x: squares(x)[:, None] - squares(x),
        ValueError,
        ("costs", "[6, 6]"),
    ),
    "an axis too many": (
        lambda x: squares(x)[:, None, None],
        ValueError,
        ("costs", "[6, 1, 1]"),
    ),
    "no particles": (lambda x: squares(x)[:0], ValueError, ("costs", "P > 0", "[0, 1]")),
    "integers": (
        lambda x: squares(x).long(),
        TypeError,
        ("costs", "floating point", "torch.int64", "costs.float()"),
    ),
    "truth values": (
        lambda x: squares(x) > 0,
        TypeError,
        ("costs", "torch.bool", "costs.float()"),
    ),
    "complex": (
        lambda x: squares(x).to(torch.complex64),
        TypeError,
        ("costs", "torch.complex64"),
    ),
    "an array": (
        lambda x: squares(x).detach().numpy(),
        TypeError,
        ("costs", "tensor", "ndarray"),
    ),
    "a list": (lambda x: squares(x).tolist(), TypeError, ("costs", "tensor", "list")),
    "a number": (lambda x: 3.0, TypeError, ("costs", "tensor", "float")),
}
NOT_ONE_NUMBER_FOR_EACH_PARTICLE = [
    *(
        Mistake(
            f"{name}, {method}",
            error,
            words,
            lambda m, x, make=make, method=method: getattr(m, method)(make(x)),
            ("LR", "TP"),
        )
        for name, (make, error, words) in COSTS.items()
        for method in ("append_loss", "loss", "backward")
    ),
    *(
        Mistake(
            f"{name}, lossfunc",
            error,
            words,
            lambda m, x, make=make: m.append_loss(x, lossfunc=make),
            ("RP", "GR", "GS"),
        )
        for name, (make, error, words) in COSTS.items()
    ),
    Mistake(
        "nothing, lossfunc",
        TypeError,
        ("costs", "NoneType"),
        lambda m, x: m.append_loss(x, lossfunc=lambda x: None),
    ),
    Mistake(
        "a lossfunc that is no function",
        TypeError,
        ("lossfunc must be callable", "3"),
        lambda m, x: m.append_loss(x, lossfunc=3),
        NAMES,
    ),
    Mistake(
        "shaped costs without a function",
        TypeError,
        ("lossfunc",),
        lambda m, x: m.append_loss({"x": x}),
        ("GS", "TP+GS"),
    ),
    Mistake(
        "on another device",
        ValueError,
        ("one device", "cpu", "meta", "costs.to("),
        lambda m, x: m.append_loss(squares(x).to("meta")),
    ),
    Mistake(
        "of fewer particles than before",
        ValueError,
        ("costs", "same number of particles", "6 and then 4"),
        lambda m, x: m.loss(squares(x)[:4]),
        ("RP", "LR", "TP"),
    ),
]


@each_with_its_estimators(NOT_ONE_NUMBER_FOR_EACH_PARTICLE)
def test_costs_that_are_not_one_number_for_each_particle(mistake: Mistake, estimator: str) -> None:
    assert_told_and_forgotten(mistake, estimator)


def append_two(first: Callable[[Tensor], Tensor]) -> Callable[[PropagationManager, Tensor], Any]:
    def act(manager: PropagationManager, x: Tensor) -> None:
        manager.append_loss(first(x))
        manager.append_loss(squares(x))
        manager.loss()

    return act


NOT_FINITE = [
    *(
        Mistake(
            f"{value} for one particle",
            ValueError,
            ("costs must be finite", "number 2 of 3", str(value), "manager.reset()"),
            append_two(lambda x, v=value: one_bad(squares(x)[:, None], v)[:, 0]),
            ("RP", "LR", "TP", "GR"),
        )
        for value in (NAN, INF, -INF)
    ),
    Mistake(
        "NaN in a backward pass of the manager's",
        ValueError,
        ("backward: costs", "nan"),
        lambda m, x: m.backward(squares(x) * NAN),
        ("RP", "LR", "TP", "GR"),
    ),
    Mistake(
        "NaN of a shaped cost",
        ValueError,
        ("costs must be finite", "number 2 of 2"),
        lambda m, x: (m.append_loss(x, lossfunc=lambda x: squares(x) * NAN), m.loss()),
        ("GS", "TP+GS"),
    ),
    Mistake(
        "a sum that overflows",
        ValueError,
        ("costs must be finite", "their sum overflows"),
        lambda m, x: [m.append_loss(squares(x) * 0 + 1.5e307) for _ in range(15)] and m.loss(),
        ("RP", "TP"),
    ),
    Mistake(
        "NaN in a state",
        ValueError,
        ("costs must be finite", "nan", "diverged"),
        differentiate(lambda x: unchecked(one_bad(x, NAN), 0.1)),
    ),
    Mistake(
        "infinity in a state",
        ValueError,
        ("costs must be finite", "inf"),
        differentiate(lambda x: Normal(one_bad(x, INF), 0.1)),
        ("LR", "TP"),
    ),
    Mistake(
        "an infinite scale",
        ValueError,
        ("costs must be finite",),
        differentiate(lambda x: step(x, INF)),
    ),
    Mistake(
        "a NaN scale",
        ValueError,
        ("costs must be finite", "nan"),
        differentiate(lambda x: unchecked(x + theta, NAN)),
        ("LR",),
    ),
]


@each_with_its_estimators(NOT_FINITE)
def test_costs_that_are_not_finite_are_named_by_step_and_value(
    mistake: Mistake, estimator: str
) -> None:
    assert_told_and_forgotten(mistake, estimator)


def another_rollouts_sample(manager: PropagationManager, x: Tensor) -> None:
    manager.loss(squares(x))
    manager.loss(squares(manager.sample(step(x))))


def twice(manager: PropagationManager, x: Tensor) -> None:
    loss = manager.loss(squares(x))
    loss.backward()
    loss.backward()


def second_derivative(manager: PropagationManager, x: Tensor) -> None:
    (first,) = torch.autograd.grad(manager.loss(squares(x)), theta, create_graph=True)
    first.sum().backward()


def evaluate_without_costs(manager: PropagationManager, x: Tensor) -> None:
    manager.reset()
    with torch.no_grad():
        manager.sample(step(x))
        manager.loss()


LOSSES = [
    Mistake(
        "costs without a graph",
        PropagationError,
        ("differentiates the costs", "they have no graph", "no detach()", "use LR"),
        lambda m, x: (m.reset(), m.sample(step(x)), m.loss(squares(x).detach())),
        ("RP", "TP", "TPX", "GR"),
    ),
    Mistake(
        "no costs",
        PropagationError,
        ("there are no costs; pass costs, or append_loss them",),
        lambda m, x: (m.reset(), m.sample(step(x)), m.loss()),
        NAMES,
    ),
    Mistake(
        "no costs in an evaluation",
        PropagationError,
        ("there are no costs",),
        evaluate_without_costs,
        NAMES,
    ),
    Mistake(
        "no rollout",
        PropagationError,
        ("nothing was recorded since the last loss",),
        lambda m, x: (m.reset(), m.loss(torch.ones(P))),
        NAMES,
    ),
    Mistake(
        "no rollout to pass over",
        PropagationError,
        ("nothing was recorded",),
        lambda m, x: (m.reset(), m.backward()),
    ),
    Mistake(
        "two losses of one rollout",
        PropagationError,
        ("nothing was recorded", "once"),
        lambda m, x: (m.loss(squares(x)), m.loss(squares(x))),
    ),
    Mistake(
        "a sample of another rollout",
        PropagationError,
        ("another rollout", "detach()"),
        another_rollouts_sample,
    ),
    Mistake("a loss differentiated twice", PropagationError, ("retain_graph=True",), twice),
    Mistake(
        "a second derivative",
        PropagationError,
        ("cannot be differentiated again",),
        second_derivative,
    ),
    Mistake(
        "a term beside the loss",
        PropagationError,
        ("append_loss", "detach() the sample"),
        lambda m, x: (m.loss(squares(x)) + squares(x).mean()).backward(),
    ),
]


@each_with_its_estimators(LOSSES)
def test_losses_that_cannot_be(mistake: Mistake, estimator: str) -> None:
    assert_told_and_forgotten(mistake, estimator)


# -- no mistakes, and evaluations ----------------------------------------------------------------


def test_an_evaluation_has_its_nan() -> None:
    """Nothing would be lost, and a validation step that reports NaN is as it should be."""
    manager = PropagationManager("TP")
    with torch.no_grad():
        x = manager.sample(step(start()))
        assert manager.loss(squares(x) * NAN).isnan()


def test_costs_in_16_bits_do_not_overflow_by_the_number_of_particles() -> None:
    for dtype, tolerance in ((torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
        manager = PropagationManager("RP")
        x = manager.sample(Normal(theta.float().expand(3000, 2) + 100.0, 0.1))
        value = manager.loss(x.sum(1).to(dtype))
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, x.sum(1).mean(), rtol=tolerance, atol=0)


def test_a_failed_evaluation_leaves_no_costs_behind() -> None:
    manager = PropagationManager("RP")
    with torch.no_grad():
        x = manager.sample(step(start()))
        manager.append_loss(squares(x) + 1000.0)
        with pytest.raises(ValueError, match="costs"):
            manager.append_loss(x)
        y = manager.sample(step(start()))
        torch.testing.assert_close(manager.loss(squares(y)), squares(y).mean())


def test_a_failed_evaluation_leaves_the_rollout_alone() -> None:
    manager = PropagationManager("RP")
    x = manager.sample(step(start()))
    with torch.no_grad(), pytest.raises(ValueError, match="costs"):
        manager.append_loss(x)
    loss = manager.loss(squares(x))
    assert bool((torch.autograd.grad(loss, theta)[0] != 0).all())


class Mute(Propagator):
    """A loss propagator without output."""

    def forward_impl(self, x: Any, node: Any = None) -> Any:
        return {}


def test_a_loss_propagator_without_output_is_named() -> None:
    manager = PropagationManager("RP", Mute())
    manager.sample(step(start()))
    with pytest.raises(TypeError, match="Mute must output one cost for each particle; got None"):
        manager.append_loss(torch.ones(P))
    assert manager.recorded == 0
