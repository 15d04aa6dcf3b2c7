"""Names, options, targets and weights that are wrong; what holds of each is in ``mistakes.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import lightning_proppo as lp
from lightning_proppo import PropagationManager, expand
from lightning_proppo.propagators import (
    BaselineProp,
    ChainProp,
    ComboProp,
    GSLoss,
    LossProp,
    LRProp,
    PauseProp,
    RPProp,
    SkipProp,
    SumBase,
    TotalProp,
    make_estimator,
)

from ..errors import assert_refused
from .mistakes import (
    NAMES,
    Act,
    Mistake,
    P,
    assert_told_and_forgotten,
    differentiate,
    each_with_its_estimators,
    squares,
    start,
    step,
    theta,
)


def sampling(**options: Any) -> Act:
    return lambda manager, x: manager.sample(step(x), **options)


# -- names ---------------------------------------------------------------------------------------


def with_a_pause(manager: PropagationManager, x: Tensor) -> None:
    manager.add_propagator("pause", PauseProp())
    manager.forward(x, local_propagator="puase")


OPTIONS = [
    *(
        Mistake(
            f"{option!r} of a sample",
            TypeError,
            (f"{option!r}", hint),
            lambda m, x, option=option: m.forward(x, **{option: 1}),
            NAMES,
        )
        for option, hint in (
            ("dits", "Did you mean 'dist'"),
            ("dist_parms", "Did you mean 'dist_params'"),
            ("quite_other", "options are"),
        )
    ),
    Mistake(
        "a misspelt option beside the distribution",
        TypeError,
        ("'k_intervall'", "Did you mean 'k_interval'"),
        sampling(k_intervall=2),
    ),
    Mistake(
        "a misspelt option of a loss",
        TypeError,
        ("'los_func'", "Did you mean 'lossfunc'"),
        lambda m, x: m.append_loss(x, los_func=squares),
        NAMES,
    ),
    Mistake(
        "another estimator's option",
        TypeError,
        ("'ivw_target'",),
        sampling(ivw_target="node"),
        ("LR",),
    ),
    Mistake(
        "a misspelt weighting",
        ValueError,
        ("weighting must be one of", "Did you mean 'covariance'"),
        sampling(weighting="covarianze"),
    ),
    Mistake(
        "a misspelt kind of noise",
        ValueError,
        ("noise must be one of", "Did you mean 'quasi-random'"),
        sampling(noise="quasirandom"),
        ("LR", "TP", "BIW"),
    ),
    Mistake(
        "a misspelt way of sharing",
        ValueError,
        ("share must be one of", "'mash'", "Did you mean 'mesh'"),
        sampling(share="mash"),
        ("TP", "BIW"),
    ),
]
PROPAGATORS = [
    Mistake(
        "a propagator that was not added",
        KeyError,
        ("'puase'", "the names are none", "add_propagator"),
        lambda m, x: m.forward(x, local_propagator="puase"),
        NAMES,
    ),
    Mistake(
        "a propagator's name, misspelt",
        KeyError,
        ("'puase'", "Did you mean 'pause'"),
        with_a_pause,
    ),
    Mistake(
        "a propagator's class",
        TypeError,
        ("local_propagator must be a Propagator (instantiate the class)",),
        sampling(local_propagator=RPProp),
        NAMES,
    ),
    Mistake(
        "a loss propagator that was not added",
        KeyError,
        ("'shaped'",),
        lambda m, x: m.append_loss(squares(x), loss_propagator="shaped"),
        NAMES,
    ),
    *(
        Mistake(name, error, words, lambda m, x, kind=kind: (m.reset(), m.trigger(kind)))
        for name, kind, error, words in (
            (
                "a number for a computation",
                3,
                TypeError,
                ("kind must be a computation's name; got 3",),
            ),
            ("a computation that nobody knows", "tally", ValueError, ("'tally'", "tally_impl")),
            ("the backward computation", "backward", ValueError, ("manager.backward",)),
        )
    ),
]


@each_with_its_estimators([*OPTIONS, *PROPAGATORS])
def test_names_that_nothing_has(mistake: Mistake, estimator: str) -> None:
    assert_told_and_forgotten(mistake, estimator)


# -- targets and weights -------------------------------------------------------------------------


def at_a_tensor_of_shape(*shape: int) -> Act:
    def act(manager: PropagationManager, x: Tensor) -> None:
        target = theta.sum().expand(shape) * 1.0
        x = manager.sample(Normal(x + target.sum(), 0.1), ivw_target=target)
        manager.loss(squares(x)).backward()

    return act


def weighing(returned: Any) -> Act:
    """Return an act that weighs the gradients as ``returned`` says."""

    def act(manager: PropagationManager, x: Tensor) -> None:
        propagator = TotalProp(base={"var_weighting_func": lambda lr, rp: returned})
        target = expand(theta, P)
        x = manager.sample(Normal(x + target, 0.1), local_propagator=propagator, ivw_target=target)
        manager.loss(squares(x)).backward()

    return act


def baselined(function: Callable[..., Any]) -> Act:
    propagator = LRProp(baseline=(True, {"baseline_func": function}))
    return differentiate(step, local_propagator=propagator)


TARGETS = [
    *(
        Mistake(
            f"{wrong!r} for a message's target",
            TypeError,
            ("force_targets must be an int or a list of ints", repr(wrong)),
            sampling(force_targets=wrong),
            ("LR", "TP"),
        )
        for wrong in ("before", 1.5, [1.5], [1, "a"], {"a": 1})
    ),
    Mistake(
        "a target before the start",
        ValueError,
        ("force_targets", "-50", "3 nodes before it"),
        sampling(force_targets=-50),
    ),
    Mistake(
        "one of several targets before the start",
        ValueError,
        ("force_targets", "-9"),
        sampling(force_targets=[-1, -9]),
        ("LR",),
    ),
]
WEIGHTS = [
    *(
        Mistake(
            f"weights at {target!r}",
            error,
            ("ivw_target", *words),
            sampling(ivw_target=target),
        )
        for target, error, words in (
            ("parameter", ValueError, ("'parameter'", "Did you mean 'parameters'")),
            (3, TypeError, ("got int",)),
            ([3], TypeError, ("a int",)),
            (torch.zeros(P, 1), TypeError, ("require a gradient",)),
            ([], ValueError, ("at least one tensor",)),
            (nn.ReLU(), ValueError, ("at least one tensor",)),
        )
    ),
    *(
        Mistake(
            f"weights at a tensor of shape {list(shape)}",
            ValueError,
            ("ivw_target", "expanded over the particles", str(list(shape))),
            at_a_tensor_of_shape(*shape),
        )
        for shape in ((), (2,), (3, 2))
    ),
    *(
        Mistake(
            f"an interval of {value!r}",
            ValueError,
            ("k_interval must be an int of at least 1", repr(value)),
            sampling(k_interval=value),
        )
        for value in (0, -1, 1.5, "2", None)
    ),
    *(
        Mistake(
            f"{returned!r} for two weights",
            ValueError,
            ("var_weighting_func must return two weights", "got"),
            weighing(returned),
        )
        for returned in (
            None,
            0.5,
            (0.5,),
            (0.1, 0.2, 0.7),
            ("a", "b"),
            (torch.ones(2), torch.ones(2)),
        )
    ),
    *(
        Mistake(
            f"a baseline function that returns {came}",
            ValueError,
            ("baseline_func must return the losses", "[6, 1]", "<lambda> returned", came),
            baselined(function),
            ("LR", "TP"),
        )
        for function, came in (
            (lambda losses, node: None, "None"),
            (lambda losses, node: losses.mean(), "shape []"),
            (lambda losses, node: losses[:, 0], "shape [6]"),
            (lambda losses, node: losses[:3], "shape [3, 1]"),
        )
    ),
]


@each_with_its_estimators([*TARGETS, *WEIGHTS])
def test_targets_and_weights_that_cannot_be(mistake: Mistake, estimator: str) -> None:
    assert_told_and_forgotten(mistake, estimator)


@pytest.mark.parametrize("weights", [(0.25, 0.75), (1, 0), (torch.tensor([0.25]), 0.75)])
def test_a_weighting_function_may_return_plain_numbers(weights: Any) -> None:
    manager = PropagationManager("TP")
    weighing(weights)(manager, start())
    assert float(manager.statistics["lr_weight"][0]) == float(weights[0])
    theta.grad = None


# -- where things are made -----------------------------------------------------------------------

ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: PropagationManager("TPP"), ValueError, ["'TPP'", "Did you mean 'TP'"]),
        (lambda: PropagationManager(3), TypeError, ["default_propagator"]),
        (lambda: PropagationManager(RPProp), TypeError, ["default_propagator", "instantiate"]),
        (lambda: PropagationManager(loss_propagator="GS"), TypeError, ["loss_propagator", "'GS'"]),
        (lambda: PropagationManager(terminal_propagator=1), TypeError, ["terminal_propagator"]),
        (lambda: PropagationManager(sync="yes"), TypeError, ["sync", "'yes'"]),
        (lambda: PropagationManager().add_propagator(1, RPProp()), TypeError, ["name", "1"]),
        (lambda: PropagationManager().add_propagator("a", RPProp), TypeError, ["instantiate"]),
        (lambda: make_estimator("GSS"), ValueError, ["Did you mean 'GS'"]),
        (lambda: RPProp(backpropp=False), TypeError, ["RPProp", "Did you mean 'backprop'"]),
        (lambda: RPProp(backprop="False"), TypeError, ["a bool", "'False'"]),
        (lambda: LRProp(basline=False), TypeError, ["Did you mean 'baseline'"]),
        (lambda: LRProp(baseline_func=lp.no_baseline), TypeError, ["Did you mean 'baseline'"]),
        (lambda: LRProp(detach=False), TypeError, ["LRProp", "'detach'", "dist_params"]),
        (lambda: TotalProp(k_intervall=2), TypeError, ["Did you mean 'k_interval'"]),
        (lambda: TotalProp(share="mash"), ValueError, ["share must be one of", "'mesh'"]),
        (lambda: RPProp(noise="sobol"), ValueError, ["noise must be one of", "'sobol'"]),
        (lambda: RPProp(base={"noise": "sobol"}), ValueError, ["noise must be one of"]),
        (
            lambda: PropagationManager("GR", noise="quasirandom"),
            ValueError,
            ["noise must be one of", "Did you mean 'quasi-random'"],
        ),
        (lambda: LossProp(loss_name="a"), TypeError, ["LossProp", "'loss_name'"]),
        (lambda: GSLoss(gs_los={}), TypeError, ["GSLoss", "Did you mean 'gs_loss'"]),
        (lambda: GSLoss(gs_loss={"sumloss": False}), TypeError, ["Did you mean 'sum_loss'"]),
        (lambda: GSLoss(skip={"skip": 0}), ValueError, ["skip must be an int", "0"]),
        (lambda: SkipProp(skip=1.0), ValueError, ["skip must be an int", "1.0"]),
        (lambda: SumBase("a", "b", c=1), TypeError, ["SumBase", "'c'", "none"]),
        (lambda: BaselineProp(baseline_func="mean"), TypeError, ["baseline_func", "'mean'"]),
        (lambda: BaselineProp([lp.mean_baseline, 3]), TypeError, ["baseline_func", "got 3"]),
        (
            lambda: TotalProp(base={"var_weighting_func": 3}),
            TypeError,
            ["var_weighting_func must be callable", "3"],
        ),
        (lambda: ComboProp([RPProp]), TypeError, ["propagators[0]", "RPProp"]),
        (lambda: ComboProp(RPProp()), TypeError, ["propagators must be a list", "RPProp"]),
        (lambda: ChainProp([RPProp(), 3]), TypeError, ["propagators[1]", "got 3"]),
        (lambda: expand([1.0], 2), TypeError, ["data must be a tensor", "[1.0]"]),
        (lambda: expand(theta, 2.0), TypeError, ["batch_size must be an int", "2.0"]),
        (lambda: expand(theta, 0), ValueError, ["batch_size must be at least 1", "0"]),
        (lambda: lp.mean_baseline([1.0, 2.0]), TypeError, ["local_losses", "[1.0, 2.0]"]),
        (lambda: lp.mean_baseline(torch.ones(1, 1)), ValueError, ["at least 2", "[1, 1]"]),
        (
            lambda: lp.inverse_variance_weighting(torch.ones(3, 2), torch.ones(3)),
            ValueError,
            ["same shapes", "[[3, 2]]", "[[3]]"],
        ),
        (
            lambda: lp.inverse_variance_weighting([torch.ones(3)], [torch.ones(3)] * 2),
            ValueError,
            ["same shapes"],
        ),
        (lambda: lp.inverse_variance_weighting([], []), ValueError, ["same shapes"]),
        (lambda: lp.inverse_variance_weighting(3, 4), ValueError, ["[P, ...]", "got 3"]),
        (
            lambda: lp.inverse_variance_weighting(ONE, ONE),
            ValueError,
            ["[P, ...]", "tensor(1.)"],
        ),
    ],
)
def test_wrong_arguments_are_named_where_things_are_made(
    make: Callable[[], Any], error: type[Exception], words: Sequence[str]
) -> None:
    assert_refused(error, words, make)
