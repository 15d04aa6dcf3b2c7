"""A catalogue of bad input: each case gives one exception that says what came and what to do.

The exception is of a documented type, raised by itself (nothing else failed on the way to it), and
the next correct call works: the manager gives the gradient that a new one gives. Every estimator's
answer to the same mistake, and a YAML file's unknown keys, are in the tests of lightning_proppo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Exponential,
    Gamma,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
    TanhTransform,
    TransformedDistribution,
    Uniform,
)
from torch.utils.data import DataLoader

import proppo_envs  # noqa: F401  (registers the environments)
from lightning_proppo import (
    PropagationCallback,
    PropagationError,
    PropagationManager,
    expand,
)
from lightning_proppo.installed_lightning import pl
from lightning_proppo.propagators import (
    BackPropagator,
    ChainProp,
    ComboProp,
    LRProp,
    Propagator,
    RPProp,
    TotalProp,
)
from proppo_agents import PILCO, GPDynamics, RBFPolicy
from proppo_envs import ChaoticRNN

P = 6
NAN, INF = float("nan"), float("inf")
theta = torch.tensor([0.4, -0.3], requires_grad=True)
Act = Callable[[PropagationManager, Tensor], Any]


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        name: what is wrong.
        error: the exception's type.
        words: parts of its message, what came among them.
        act: makes the mistake, in the middle of a rollout: ``(manager, x [P, 2])``.
        estimator: the manager's.
        by_torch: whether PyTorch refuses it before the manager is called, so that only
            ``manager.rollout()`` can tell the manager.
    """

    name: str
    error: type[Exception]
    words: tuple[str, ...]
    act: Act
    estimator: str = "TP"
    by_torch: bool = False


def squares(x: Tensor) -> Tensor:
    return x.square().sum(1)


def step(x: Tensor, scale: Any = 0.1) -> Normal:
    return Normal((x + theta).sin(), scale)


def one_bad(x: Tensor, value: float) -> Tensor:
    """Return ``x`` with a value at the third particle."""
    return torch.where(torch.arange(len(x))[:, None] == 2, value, x)


def unchecked(loc: Any, scale: Any) -> Normal:
    return Normal(loc, scale, validate_args=False)


def around(x: Tensor, *parameters: Any, **options: Any) -> dict[str, Any]:
    """Return options for noise around a state."""
    return {"x": x, "dist_class": Normal, "dist_params": parameters, **options}


def roll_out(particles: int) -> Act:
    """Return an act that differentiates a rollout of its own with so many particles."""

    def act(manager: PropagationManager, x: Tensor) -> None:
        manager.reset()
        x = manager.sample(step(torch.zeros(particles, 2)))
        manager.append_loss(x, lossfunc=squares)
        manager.loss().backward()

    return act


def differentiate(make: Callable[[Tensor], Any], **options: Any) -> Act:
    """Return an act that draws from ``make(x)`` and differentiates the squares."""

    def act(manager: PropagationManager, x: Tensor) -> None:
        manager.loss(squares(manager.sample(make(x), **options))).backward()

    return act


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


def one_weight(manager: PropagationManager, x: Tensor) -> None:
    target = expand(theta, P)
    propagator = TotalProp(base={"var_weighting_func": lambda lr, rp: 0.5})
    x = manager.sample(Normal(x + target, 0.1), local_propagator=propagator, ivw_target=target)
    manager.loss(squares(x)).backward()


# -- the catalogue -------------------------------------------------------------------------------

COSTS = [
    Case(
        "costs by coordinate",
        ValueError,
        ("costs", "[P] or [P, 1]", "[6, 2]"),
        lambda m, x: m.loss(x.square()),
    ),
    Case(
        "mean costs",
        ValueError,
        ("costs", "shape []", "Do not average"),
        lambda m, x: m.loss(squares(x).mean()),
    ),
    Case(
        "costs with the batch last",
        ValueError,
        ("costs", "[1, 6]"),
        lambda m, x: m.loss(squares(x)[None]),
    ),
    Case(
        "costs of all pairs by broadcasting",
        ValueError,
        ("costs", "[6, 6]"),
        lambda m, x: m.append_loss(squares(x)[:, None] - squares(x)),
    ),
    Case(
        "costs of no particles",
        ValueError,
        ("costs", "P > 0", "[0, 1]"),
        lambda m, x: m.loss(squares(x)[:0]),
    ),
    Case(
        "costs of fewer particles",
        ValueError,
        ("same number of particles", "6 and then 4"),
        lambda m, x: m.loss(squares(x)[:4]),
    ),
    Case(
        "costs that are integers",
        TypeError,
        ("costs", "torch.int64", "costs.float()"),
        lambda m, x: m.loss(squares(x).long()),
    ),
    Case(
        "costs that are truth values",
        TypeError,
        ("costs", "torch.bool", "costs.float()"),
        lambda m, x: m.append_loss(squares(x) > 0),
        "LR",
    ),
    Case(
        "costs that are complex",
        TypeError,
        ("costs", "torch.complex64"),
        lambda m, x: m.loss(squares(x).to(torch.complex64)),
    ),
    Case(
        "costs that are an array",
        TypeError,
        ("costs", "tensor", "ndarray"),
        lambda m, x: m.loss(squares(x).detach().numpy()),
        "LR",
    ),
    Case(
        "costs that are a list",
        TypeError,
        ("costs", "tensor", "list"),
        lambda m, x: m.append_loss(squares(x).tolist()),
        "LR",
    ),
    Case("a number for costs", TypeError, ("costs", "tensor", "float"), lambda m, x: m.loss(3.0)),
    Case("the state for costs", ValueError, ("costs", "[6, 2]"), lambda m, x: m.append_loss(x)),
    Case(
        "a lossfunc that returns nothing",
        TypeError,
        ("costs", "NoneType"),
        lambda m, x: m.append_loss(x, lossfunc=lambda x: None),
    ),
    Case(
        "a lossfunc that is no function",
        TypeError,
        ("lossfunc must be callable", "3"),
        lambda m, x: m.append_loss(x, lossfunc=3),
    ),
    Case(
        "costs on another device",
        ValueError,
        ("one device", "cpu", "meta", "costs.to("),
        lambda m, x: m.append_loss(squares(x).to("meta")),
    ),
]

NO_GRAPH = [
    Case(
        f"detached costs with {name}",
        PropagationError,
        ("they have no graph", "no detach()", "use LR"),
        lambda m, x: (m.reset(), m.sample(step(x)), m.loss(squares(x).detach())),
        name,
    )
    for name in ("RP", "TP", "TPX", "GR")
]

NOT_FINITE = [
    Case(
        f"{value} among the costs",
        ValueError,
        ("costs must be finite", "number 2 of 2", str(value), "manager.reset()"),
        lambda m, x, v=value: m.loss(squares(one_bad(x, v))),
        name,
    )
    for value, name in ((NAN, "TP"), (INF, "LR"))
] + [
    Case(
        "costs of minus infinity",
        ValueError,
        ("costs must be finite", "-inf"),
        lambda m, x: m.loss(squares(x) - INF),
        "RP",
    ),
    Case(
        "finite costs whose sum overflows",
        ValueError,
        ("costs must be finite", "their sum overflows"),
        lambda m, x: [m.append_loss(squares(x) * 0 + 5e37) for _ in range(9)] and m.loss(),
    ),
    Case(
        "NaN in the state that a distribution is made of",
        ValueError,
        ("parameter loc", "nan"),
        lambda m, x: m.sample(step(one_bad(x, NAN))),
        by_torch=True,
    ),
    Case(
        "NaN in a state, unchecked",
        ValueError,
        ("costs must be finite", "nan", "diverged"),
        differentiate(lambda x: unchecked(one_bad(x, NAN), 0.1)),
    ),
    Case(
        "infinity in a state",
        ValueError,
        ("costs must be finite", "inf"),
        differentiate(lambda x: Normal(one_bad(x, INF), 0.1)),
        "LR",
    ),
    Case(
        "NaN in a state that noise is added to",
        ValueError,
        ("costs must be finite", "nan"),
        lambda m, x: m.loss(
            squares(m.forward(**around(one_bad(x, NAN), torch.zeros(P, 2), torch.ones(P, 2))))
        ),
    ),
    Case(
        "a policy that returns NaN",
        ValueError,
        ("parameter loc", "nan"),
        lambda m, x: m.sample(Normal(x + nn.Linear(2, 2)(x) * NAN, 0.1)),
        by_torch=True,
    ),
    Case(
        "a policy that returns infinity",
        ValueError,
        ("costs must be finite",),
        differentiate(lambda x: Normal(x + one_bad(x, INF), 0.1)),
    ),
    Case(
        "NaN in a state that a Gaussian is fitted to",
        ValueError,
        ("covariance", "nan"),
        lambda m, x: m.sample(unchecked(one_bad(x, NAN), 0.1)),
        "GR",
    ),
    Case(
        "NaN in a shaped cost's state",
        ValueError,
        ("covariance", "nan"),
        lambda m, x: m.append_loss(one_bad(x, NAN), lossfunc=squares),
        "GS",
    ),
    Case(
        "a NaN scale",
        ValueError,
        ("parameter scale", "nan"),
        lambda m, x: m.sample(step(x, NAN)),
        by_torch=True,
    ),
    Case(
        "an infinite scale",
        ValueError,
        ("costs must be finite",),
        differentiate(lambda x: step(x, INF)),
    ),
    Case(
        "a NaN scale, unchecked",
        ValueError,
        ("costs must be finite", "nan"),
        differentiate(lambda x: unchecked(x + theta, NAN)),
        "LR",
    ),
    Case(
        "a zero scale",
        ValueError,
        ("parameter scale", "GreaterThan", "0."),
        lambda m, x: m.sample(step(x, 0.0)),
        by_torch=True,
    ),
    *[
        Case(
            f"a zero scale with {name}, unchecked",
            ValueError,
            (
                "dist: the scale of Normal must be positive",
                name,
                "12 values of 0 or less, 0.0",
                "clamp_min",
            ),
            lambda m, x: m.sample(Independent(unchecked(x, torch.zeros(P, 2)), 1)),
            name,
        )
        for name in ("LR", "TP", "BIW")
    ],
    Case(
        "a negative scale of noise, unchecked",
        ValueError,
        ("dist_params: the scale of Normal", "-1.0 among them"),
        lambda m, x: m.forward(
            x,
            dist_class=Normal,
            dist_params={"loc": x * 0, "scale": one_bad(x * 0 + 1, -1.0), "validate_args": False},
        ),
        "LR",
    ),
    Case(
        "a zero scale below a tanh, unchecked",
        ValueError,
        ("the scale of Normal must be positive for TP",),
        lambda m, x: m.sample(
            TransformedDistribution(unchecked(x, 0 * x), [TanhTransform()], validate_args=False)
        ),
    ),
    Case(
        "a rate of zero, unchecked",
        ValueError,
        ("the rate of Gamma must be positive for LR",),
        lambda m, x: m.sample(Gamma(x.exp(), 0.0, validate_args=False)),
        "LR",
    ),
    Case(
        "a scale that has underflowed",
        ValueError,
        ("parameter scale", "0."),
        lambda m, x: m.sample(step(x, (theta * 1e4 - 1e4).exp())),
        "LR",
        by_torch=True,
    ),
    Case(
        "a negative scale",
        ValueError,
        ("parameter scale", "-0.1"),
        lambda m, x: m.sample(step(x, -0.1)),
        by_torch=True,
    ),
    Case(
        "a negative scale of noise",
        ValueError,
        ("parameter scale", "-1."),
        lambda m, x: m.forward(**around(x, torch.zeros(P, 2), -torch.ones(P, 2))),
    ),
    Case(
        "a rate of zero",
        ValueError,
        ("parameter rate",),
        lambda m, x: m.sample(Gamma(x.exp(), 0.0)),
        by_torch=True,
    ),
    Case(
        "a covariance that is none",
        ValueError,
        ("covariance_matrix",),
        lambda m, x: m.sample(MultivariateNormal(x, -torch.eye(2))),
        by_torch=True,
    ),
    Case(
        "probabilities beyond one",
        ValueError,
        ("parameter probs",),
        lambda m, x: m.sample(Bernoulli(x.exp() + 1.0)),
        "LR",
        by_torch=True,
    ),
]

PARTICLES = (
    [
        Case(
            f"a single particle with {name}",
            ValueError,
            ("at least 2 particles", "[1, "),
            roll_out(1),
            name,
        )
        for name in ("LR", "TP", "TPX", "GS", "GR")
    ]
    + [
        Case(f"no particles with {name}", ValueError, ("particle", "[0, "), roll_out(0), name)
        for name in ("RP", "LR", "TP", "GR")
    ]
    + [
        Case(
            "a distribution without particles",
            ValueError,
            ("dist must have particles first", "[P, ...]", "expand([P])"),
            lambda m, x: m.sample(Normal(0.0, 1.0)),
        ),
        Case(
            "one event for all particles",
            ValueError,
            ("dist must have particles first", "[2]"),
            lambda m, x: m.sample(Independent(Normal(torch.zeros(2), 1.0), 1)),
        ),
        Case(
            "noise that the particles share",
            ValueError,
            ("[6, 2]", "noise of shape [2]"),
            lambda m, x: m.forward(**around(x, torch.zeros(2), 0.1)),
        ),
        Case(
            "noise of another batch",
            ValueError,
            ("[6, 2]", "noise of shape [3, 2]"),
            lambda m, x: m.forward(**around(x, torch.zeros(3, 2), 0.1)),
        ),
        Case(
            "samples of fewer particles than costs",
            ValueError,
            ("one cost for each particle", "got 6", "[4, 2]"),
            lambda m, x: (m.sample(step(x[:4])), m.loss(squares(x)).backward()),
        ),
        Case(
            "integers for a normal distribution",
            TypeError,
            ("floating point", "torch.int64", "x.float()"),
            lambda m, x: m.sample(Normal(x.long(), torch.ones(P, 2, dtype=torch.int64))),
        ),
        Case(
            "integers for noise",
            TypeError,
            ("dist_params", "floating point", "torch.int64"),
            lambda m, x: m.forward(**around(x, x.long(), torch.ones_like(x).long())),
            "LR",
        ),
        Case(
            "integer particles for a Gaussian",
            TypeError,
            ("floating point", "int64"),
            lambda m, x: m.append_loss(torch.arange(P), lossfunc=squares),
            "GS",
        ),
        Case(
            "a state on another device than its noise",
            ValueError,
            ("one device", "meta", "cpu", "x.to("),
            lambda m, x: m.forward(**around(x.to("meta"), torch.zeros(P, 2), 0.1)),
        ),
        Case(
            "a distribution on two devices",
            ValueError,
            ("one device", "cpu", "meta"),
            lambda m, x: m.sample(unchecked(x, torch.ones(P, 2, device="meta"))),
        ),
        Case(
            "a sample on another device than its costs",
            ValueError,
            ("one device", "costs on cpu", "meta", "costs.to("),
            lambda m, x: (
                m.sample(unchecked(torch.zeros(P, 2, device="meta") + theta.to("meta"), 0.1)),
                m.loss(squares(x)).backward(),
            ),
            "LR",
        ),
    ]
)

DISTRIBUTIONS = [
    Case(
        "discrete actions where gradients must pass",
        TypeError,
        ("Categorical", "use LR"),
        lambda m, x: m.sample(Categorical(torch.ones(P, 3))),
    ),
    Case(
        "a support that is learnt",
        ValueError,
        ("support", "Uniform", "use RP"),
        lambda m, x: m.sample(Uniform(x + theta - 5.0, x + 5.0)),
        "LR",
    ),
    Case(
        "flat noise around what is learnt",
        ValueError,
        ("x", "Uniform"),
        lambda m, x: m.forward(
            x + theta, dist_class=Uniform, dist_params=(-torch.ones(P, 2), torch.ones(P, 2))
        ),
        "LR",
    ),
    Case(
        "discrete noise around what is learnt",
        ValueError,
        ("Bernoulli", "x.detach()"),
        lambda m, x: m.forward(x + theta, dist_class=Bernoulli, dist_params=(x.sigmoid(),)),
        "LR",
    ),
    Case(
        "a tensor for a distribution",
        TypeError,
        ("torch.distributions.Distribution", "Tensor"),
        lambda m, x: m.sample(x),
    ),
    Case(
        "a class for a distribution",
        TypeError,
        ("torch.distributions.Distribution", "got type"),
        lambda m, x: m.sample(Normal),
    ),
    Case(
        "noise without a class",
        TypeError,
        ("dist_class is missing", "manager.sample(dist)"),
        lambda m, x: m.forward(x, dist_params=(0.0, 1.0)),
    ),
    Case(
        "noise without parameters",
        TypeError,
        ("dist_params is missing",),
        lambda m, x: m.forward(x, dist_class=Normal),
    ),
    Case(
        "both forms of a sample",
        TypeError,
        ("either dist, or dist_class",),
        lambda m, x: m.forward(x, dist=step(x), dist_class=Normal),
    ),
    Case(
        "a list for the state",
        TypeError,
        ("x must be the tensor", "list"),
        lambda m, x: m.forward(**around([0.0], 0.0, 1.0)),
    ),
    Case(
        "quasi-random noise of another family",
        TypeError,
        ("quasi-random", "Exponential"),
        lambda m, x: m.sample(Exponential(x.exp()), noise="quasi-random"),
    ),
    Case(
        "shared samples of another family",
        TypeError,
        ("share", "LogNormal"),
        lambda m, x: m.sample(LogNormal(x, 0.1), share="mesh"),
    ),
]

NAMES = [
    Case(
        "a misspelt option of a sample",
        TypeError,
        ("'dits'", "Did you mean 'dist'"),
        lambda m, x: m.forward(x, dits=step(x)),
    ),
    Case(
        "a misspelt option beside the distribution",
        TypeError,
        ("'k_intervall'", "Did you mean 'k_interval'"),
        lambda m, x: m.sample(step(x), k_intervall=2),
    ),
    Case(
        "a misspelt option of a loss",
        TypeError,
        ("'los_func'", "Did you mean 'lossfunc'"),
        lambda m, x: m.append_loss(x, los_func=squares),
    ),
    Case(
        "another estimator's option",
        TypeError,
        ("'ivw_target'",),
        lambda m, x: m.sample(step(x), ivw_target="node"),
        "LR",
    ),
    Case(
        "a misspelt target",
        ValueError,
        ("ivw_target", "'nod'", "Did you mean 'node'"),
        lambda m, x: m.sample(step(x), ivw_target="nod"),
    ),
    Case(
        "a misspelt weighting",
        ValueError,
        ("weighting", "Did you mean 'covariance'"),
        lambda m, x: m.sample(step(x), weighting="covarianze"),
    ),
    Case(
        "a misspelt kind of noise",
        ValueError,
        ("noise", "Did you mean 'quasi-random'"),
        lambda m, x: m.sample(step(x), noise="quasirandom"),
        "LR",
    ),
    Case(
        "a misspelt way of sharing",
        ValueError,
        ("share", "'mash'", "Did you mean 'mesh'"),
        lambda m, x: m.sample(step(x), share="mash"),
    ),
    Case(
        "a propagator that was not added",
        KeyError,
        ("'pause'", "add_propagator"),
        lambda m, x: m.forward(x, local_propagator="pause"),
    ),
    Case(
        "a propagator's class",
        TypeError,
        ("local_propagator", "instantiate the class"),
        lambda m, x: m.sample(step(x), local_propagator=RPProp),
    ),
    Case(
        "a misspelt estimator",
        ValueError,
        ("'TPP'", "Did you mean 'TP'"),
        lambda m, x: (m.reset(), PropagationManager("TPP")),
    ),
    Case(
        "a misspelt part of a propagator",
        TypeError,
        ("Did you mean 'baseline'",),
        lambda m, x: (m.reset(), LRProp(basline=False)),
    ),
    Case(
        "a computation that nobody knows",
        ValueError,
        ("'tally'", "tally_impl"),
        lambda m, x: (m.reset(), m.trigger("tally")),
    ),
]

TARGETS = [
    Case(
        "a target before the start",
        ValueError,
        ("force_targets", "-50", "3 nodes before it"),
        lambda m, x: m.sample(step(x), force_targets=-50),
    ),
    Case(
        "one of several targets before the start",
        ValueError,
        ("force_targets", "-9"),
        lambda m, x: m.sample(step(x), force_targets=[-1, -9]),
        "LR",
    ),
    Case(
        "a word for a target",
        TypeError,
        ("force_targets", "'before'"),
        lambda m, x: m.sample(step(x), force_targets="before"),
    ),
    Case(
        "a fraction for a target",
        TypeError,
        ("force_targets", "1.5"),
        lambda m, x: m.sample(step(x), force_targets=[1.5]),
    ),
    Case(
        "a message to a word",
        TypeError,
        ("targets", "'before'"),
        sends({"a": 1, "targets": "before"}),
    ),
    Case(
        "weights at a tensor that is not learnt",
        TypeError,
        ("ivw_target", "gradient"),
        lambda m, x: m.sample(step(x), ivw_target=torch.zeros(P, 1)),
    ),
    Case(
        "weights at a tensor that is not expanded",
        ValueError,
        ("ivw_target", "expand", "[2]"),
        differentiate(step, ivw_target=theta * 1.0),
    ),
    Case(
        "weights at nothing",
        ValueError,
        ("ivw_target", "at least one tensor"),
        lambda m, x: m.sample(step(x), ivw_target=nn.ReLU()),
    ),
    Case(
        "weights at no step",
        ValueError,
        ("k_interval", "0"),
        lambda m, x: m.sample(step(x), k_interval=0),
    ),
]

CONTRACTS = [
    Case(
        "a forward computation that returns a number",
        TypeError,
        ("Returns.forward_impl must return a dict", "int"),
        passing(lambda x: Returns(3)),
    ),
    Case(
        "a forward computation that returns nothing, in a chain",
        TypeError,
        ("Returns.forward_impl", "NoneType"),
        passing(lambda x: ChainProp([Returns()])),
    ),
    Case(
        "a backward computation that returns a tensor",
        TypeError,
        ("Returns must return a message", "Tensor"),
        passing(lambda x: Returns({"output": x}, torch.ones(2))),
    ),
    Case(
        "outputs without gradients",
        KeyError,
        ("'outputs' but no 'grads'",),
        sends({"outputs": [theta * 1.0]}),
    ),
    Case(
        "fewer gradients than outputs",
        ValueError,
        ("1 outputs and 0 grads",),
        sends({"outputs": [theta * 1.0], "grads": []}),
    ),
    Case(
        "a gradient of another shape",
        ValueError,
        ("[3]", "[2]"),
        sends({"outputs": [theta * 1.0], "grads": [torch.ones(3)]}),
    ),
    Case(
        "a weighting function that returns one weight",
        ValueError,
        ("var_weighting_func must return two weights", "0.5"),
        one_weight,
    ),
    Case(
        "a baseline function that returns a mean",
        ValueError,
        ("baseline_func must return the losses", "shape []"),
        differentiate(
            step,
            local_propagator=LRProp(baseline={"baseline_func": lambda losses, node: losses.mean()}),
        ),
    ),
    Case(
        "options for one of two in a chain",
        ValueError,
        ("chain_kwargs", "2", "got 1"),
        lambda m, x: m.forward(
            x, local_propagator=ChainProp([RPProp(), RPProp()]), chain_kwargs=[{}]
        ),
    ),
]


def other_rollout(manager: PropagationManager, x: Tensor) -> None:
    manager.loss(squares(x))
    manager.loss(squares(manager.sample(step(x))))


def twice(manager: PropagationManager, x: Tensor) -> None:
    loss = manager.loss(squares(x))
    loss.backward()
    loss.backward()


def second_derivative(manager: PropagationManager, x: Tensor) -> None:
    (first,) = torch.autograd.grad(manager.loss(squares(x)), theta, create_graph=True)
    first.sum().backward()


ORDER = [
    Case(
        "two losses of one rollout",
        PropagationError,
        ("nothing was recorded", "once"),
        lambda m, x: (m.loss(squares(x)), m.loss(squares(x))),
    ),
    Case(
        "a backward pass without a rollout",
        PropagationError,
        ("nothing was recorded",),
        lambda m, x: (m.reset(), m.backward()),
    ),
    Case(
        "a loss without costs",
        PropagationError,
        ("there are no costs", "append_loss"),
        lambda m, x: (m.reset(), m.sample(step(x)), m.loss()),
    ),
    Case(
        "a sample of another rollout",
        PropagationError,
        ("another rollout", "detach()"),
        other_rollout,
    ),
    Case("a rollout that is differentiated twice", PropagationError, ("retain_graph=True",), twice),
    Case(
        "a second derivative",
        PropagationError,
        ("cannot be differentiated again",),
        second_derivative,
    ),
    Case(
        "a term beside the loss",
        PropagationError,
        ("append_loss", "detach() the sample"),
        lambda m, x: (m.loss(squares(x)) + squares(x).mean()).backward(),
    ),
]

CATALOGUE = [
    *COSTS,
    *NO_GRAPH,
    *NOT_FINITE,
    *PARTICLES,
    *DISTRIBUTIONS,
    *NAMES,
    *TARGETS,
    *CONTRACTS,
    *ORDER,
]


def good_rollout(manager: PropagationManager) -> Tensor:
    torch.manual_seed(1)
    x = torch.zeros(P, 2)
    for _ in range(3):
        x = manager.sample(step(x))
        manager.append_loss(x, lossfunc=squares)
    return torch.autograd.grad(manager.loss(), theta)[0]


def told(error: type[Exception], words: tuple[str, ...], act: Callable[[], Any]) -> None:
    """Do it; one exception, of exactly this type, says all of this."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        act()
    message = str(caught.value)
    assert type(caught.value) is error, f"{type(caught.value).__name__}: {message}"
    assert caught.value.__context__ is None, "it hides another one"
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


def test_the_catalogue_is_large_and_has_each_case_once() -> None:
    names = [case.name for case in CATALOGUE]
    assert len(names) == len(set(names)) >= 80


@pytest.mark.parametrize("case", CATALOGUE, ids=lambda case: case.name)
def test_one_exception_says_what_came_and_the_next_call_works(case: Case) -> None:
    manager = PropagationManager(case.estimator)

    def act() -> None:
        with manager.rollout() if case.by_torch else nullcontext():
            x = manager.sample(step(torch.zeros(P, 2)))
            manager.append_loss(x, lossfunc=squares)
            case.act(manager, x)

    told(case.error, case.words, act)
    assert manager.recorded == 0
    theta.grad = None
    found, expected = good_rollout(manager), good_rollout(PropagationManager(case.estimator))
    assert bool(expected.isfinite().all())
    assert torch.equal(found, expected)


# -- beside the manager --------------------------------------------------------------------------


class Own(gymnasium.Env[Any, Any]):
    """A user's environment: its space of observations has infinite bounds, as MuJoCo's have.

    Args:
        fault: ``"raises"`` or ``"truncates"``, at the first step of the first episode; ``"NaN"`` or
            ``"infinity"`` is observed there; None: nothing is wrong.
        discrete: whether actions are.
    """

    def __init__(self, fault: str | None = None, discrete: bool = False) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        box = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2) if discrete else box
        self.fault = fault

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=2).astype(np.float32)
        return self.x.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        fault, self.fault = self.fault, None
        if fault == "raises":
            raise RuntimeError("the motor is too hot; let it cool")
        self.x = 0.9 * self.x + np.float32(action[0])
        seen = self.x.copy()
        seen[0] = {"NaN": NAN, "infinity": INF}.get(str(fault), seen[0])
        return seen, 0.0, False, fault == "truncates", {}

    def cost(self, observation: Tensor, action: Tensor) -> Tensor:
        return observation.square().sum(-1)


@pytest.fixture
def own() -> Iterator[None]:
    """The environment, as ``gymnasium.make`` finds it."""
    gymnasium.register("Own-v0", Own, max_episode_steps=5, disable_env_checker=True)
    yield
    gymnasium.registry.pop("Own-v0")


def agent(environment: str = "Own-v0", **options: Any) -> PILCO:
    return PILCO(
        environment,
        options,
        angles=(),
        spread=(1.0, 1.0),
        particles=8,
        steps=2,
        candidates=2,
        dynamics=GPDynamics(steps=3),
        policy=RBFPolicy(basis_functions=5),
    )


def try_out(module: PILCO) -> None:
    """Act, fit a model, and take a gradient of its prediction."""
    module.manager = PropagationManager("TP")
    module.collect(None)
    module.refit()
    module.predict()[0].backward()


@pytest.mark.usefixtures("own")
def test_an_observation_space_with_infinities_is_no_mistake() -> None:
    module = agent()
    try_out(module)
    assert all(bool(p.grad.isfinite().all()) for p in module.policy.parameters())


@pytest.mark.usefixtures("own")
def test_an_episode_that_is_cut_off_at_once_is_a_short_one() -> None:
    module = agent(fault="truncates")
    try_out(module)
    assert len(module.episodes[0].actions) == 1


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"discrete": True}, ValueError, ("Own-v0", "Discrete(2)", "continuous actions")),
        ({"fault": "raises"}, RuntimeError, ("the motor is too hot",)),
        ({"fault": "NaN"}, ValueError, ("finite",)),
        ({"fault": "infinity"}, ValueError, ("finite",)),
    ],
)
def test_environments_that_cannot_be_learned_from(
    options: dict[str, Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    made: list[PILCO] = []

    def act() -> None:
        made.append(agent(**options))
        try_out(made[0])

    told(error, words, act)
    module = made[0] if made else agent()
    module.episodes.clear()
    try_out(module)


CARTPOLE = "proppo_envs:CartPoleSwingUp-v0"


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ([NAN], ("action", "finite", "nan")),
        ([INF], ("action", "finite", "inf")),
        ([0.0, 0.0], ("action", "(1,)", "(2,)")),
        (["left"], ("action", "finite numbers", "<U4")),
    ],
)
def test_actions_that_no_cart_can_take(action: Any, words: tuple[str, ...]) -> None:
    env = gymnasium.make(CARTPOLE).unwrapped
    env.reset(seed=0)
    told(ValueError, words, lambda: env.step(np.array(action)))
    assert np.isfinite(env.step(np.zeros(1, np.float32))[0]).all()


@pytest.mark.parametrize(
    ("error", "words", "wrong", "right"),
    [
        (
            ValueError,
            ("'TPP'", "Did you mean 'TP'"),
            lambda: PropagationCallback("TPP"),
            lambda: PropagationCallback("TP"),
        ),
        (
            TypeError,
            ("'nois'", "Did you mean 'noise'"),
            lambda: PropagationCallback("LR", options={"nois": "quasi-random"}),
            lambda: PropagationCallback("LR", options={"noise": "quasi-random"}),
        ),
        (
            ValueError,
            ("attribute", "'my manager'"),
            lambda: PropagationCallback(attribute="my manager"),
            lambda: PropagationCallback(attribute="my_manager"),
        ),
        (
            TypeError,
            ("propagator", "type"),
            lambda: PropagationCallback(RPProp),
            lambda: PropagationCallback(RPProp()),
        ),
        (
            TypeError,
            ("sync", "'yes'"),
            lambda: PropagationManager(sync="yes"),
            lambda: PropagationManager(sync=True),
        ),
        (ValueError, ("noise_std", "0.0"), lambda: ChaoticRNN(noise_std=0.0), ChaoticRNN),
        (ValueError, ("horizon", "0"), lambda: ChaoticRNN(horizon=0), ChaoticRNN),
        (
            TypeError,
            ("x", "torch.int64"),
            lambda: ChaoticRNN().transition(torch.zeros(P, 2).long(), theta[:1]),
            lambda: ChaoticRNN().transition(torch.zeros(P, 2), theta[:1]),
        ),
        (
            ValueError,
            ("particles", "at least 2", "got 1"),
            lambda: PILCO(particles=1),
            lambda: PILCO(particles=2),
        ),
    ],
)
def test_what_is_made_wrongly(
    error: type[Exception],
    words: tuple[str, ...],
    wrong: Callable[[], Any],
    right: Callable[[], Any],
) -> None:
    told(error, words, wrong)
    right()


class Module(pl.LightningModule):
    """Does in a training step what it is told to."""

    def __init__(self, step: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([0.4, -0.3]))
        self.step = step

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(self, self.manager.sample(Normal(torch.zeros(P, 2) + self.shift, 0.1)))

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader(range(2))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Module) -> None:
    pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PropagationCallback("TP")],
    ).fit(module)


@pytest.mark.parametrize(
    ("error", "words", "wrong"),
    [
        (
            PropagationError,
            ("training_step", "manager.loss(...)", "would be lost"),
            lambda module, x: squares(x).mean() + module.shift.sum(),
        ),
        (
            PropagationError,
            ("never differentiated", "item() or detach()"),
            lambda module, x: module.manager.loss(squares(x)).detach() + module.shift.sum(),
        ),
        (ValueError, ("costs", "[6, 2]"), lambda module, x: module.manager.loss(x.square())),
        (
            ValueError,
            ("costs must be finite", "nan"),
            lambda module, x: module.manager.loss(squares(x) * NAN),
        ),
        (ZeroDivisionError, ("division",), lambda module, x: 1 / 0),
    ],
)
def test_training_steps_that_go_wrong(
    error: type[Exception], words: tuple[str, ...], wrong: Callable[[Any, Tensor], Any]
) -> None:
    module = Module(wrong)
    told(error, words, lambda: fit(module))
    module.step = lambda module, x: module.manager.loss(squares(x))
    fit(module)
    assert bool((module.shift != torch.tensor([0.4, -0.3])).all())
