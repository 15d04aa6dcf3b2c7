"""What nothing can be drawn from, or weighed by; what holds of each is in ``mistakes.py``."""

from __future__ import annotations

from typing import Any

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
    Poisson,
    TanhTransform,
    TransformedDistribution,
    Uniform,
)

from lightning_proppo import PropagationManager
from lightning_proppo.propagators import RPProp

from .mistakes import (
    NAMES,
    NAN,
    Act,
    Mistake,
    P,
    around,
    assert_told_and_forgotten,
    each_with_its_estimators,
    one_bad,
    squares,
    start,
    step,
    theta,
    unchecked,
)


def sampling(dist: Any) -> Act:
    return lambda manager, x: manager.sample(dist)


def adding(*parameters: Any) -> Act:
    return lambda manager, x: manager.forward(**around(x, *parameters))


ZEROS, ONES = torch.zeros(P, 2), torch.ones(P, 2)

# -- distributions, and what describes them ------------------------------------------------------

UNDESCRIBED = [
    Mistake(
        f"noise described by {options}",
        TypeError,
        words,
        lambda m, x, options=options: m.forward(x, **options),
        NAMES,
    )
    for options, words in (
        ({}, ("manager.sample(dist)", "dist_class is missing")),
        ({"dist_class": Normal}, ("dist_params is missing",)),
        ({"dist_params": (0.0, 1.0)}, ("dist_class is missing", "manager.sample(dist)")),
        (
            {"dist_class": "Normal", "dist_params": ()},
            ("dist_class must be a class", "'Normal'"),
        ),
        ({"dist_class": Normal, "dist_params": 3}, ("dist_params must be a mapping", "got int")),
        (
            {"dist_class": Normal, "dist_params": lambda x: x},
            ("function of x that returns a mapping", "got Tensor"),
        ),
        (
            {"dist_class": lambda loc: loc, "dist_params": (1.0,)},
            ("dist_class must make", "a float"),
        ),
        ({"dist": Normal(ZEROS, 1.0), "dist_class": Normal}, ("either dist, or dist_class",)),
        ({"dist_class": Normal, "dist_params": {"mean": 0.0}}, ("mean",)),
    )
]
NO_DISTRIBUTION = [
    Mistake(
        f"{wrong!r} for a distribution",
        TypeError,
        ("dist must be a torch.distributions.Distribution", f"got {type(wrong).__name__}"),
        sampling(wrong),
        NAMES,
    )
    for wrong in (ZEROS, "Normal", Normal, 3.0)
]
NO_STATE = [
    Mistake(
        f"{wrong!r} for a state",
        TypeError,
        ("x must be the tensor to add noise to", type(wrong).__name__),
        lambda m, x, wrong=wrong: m.forward(**around(wrong, 0.0, 1.0)),
        NAMES,
    )
    for wrong in (None, [0.0], 1.0, "x")
]
UNSUITABLE = [
    *(
        Mistake(
            f"{type(dist).__name__} where gradients must pass",
            TypeError,
            (type(dist).__name__, "no rsample", "use LR"),
            sampling(dist),
            ("RP", "TP", "GR", "TP+GS"),
        )
        for dist in (
            Bernoulli(torch.full((P, 1), 0.5)),
            Categorical(torch.ones(P, 3)),
            Poisson(torch.ones(P, 1)),
        )
    ),
    Mistake(
        "a support that is learnt",
        ValueError,
        ("support", "Uniform", "use RP"),
        lambda m, x: m.sample(Uniform(x + theta - 5.0, x + 5.0)),
        ("LR",),
    ),
    Mistake(
        "flat noise around what is learnt",
        ValueError,
        ("x", "Uniform"),
        lambda m, x: m.forward(x + theta, dist_class=Uniform, dist_params=(-ONES, ONES)),
        ("LR",),
    ),
    Mistake(
        "discrete noise around what is learnt",
        ValueError,
        ("Bernoulli", "x.detach()"),
        lambda m, x: m.forward(x + theta, dist_class=Bernoulli, dist_params=(x.sigmoid(),)),
        ("LR",),
    ),
    Mistake(
        "quasi-random noise of another family",
        TypeError,
        ("quasi-random", "Exponential"),
        lambda m, x: m.sample(Exponential(x.exp()), noise="quasi-random"),
    ),
    Mistake(
        "shared samples of another family",
        TypeError,
        ("share", "LogNormal"),
        lambda m, x: m.sample(LogNormal(x, 0.1), share="mesh"),
    ),
]


@each_with_its_estimators([*UNDESCRIBED, *NO_DISTRIBUTION, *NO_STATE, *UNSUITABLE])
def test_what_cannot_be_drawn_from(mistake: Mistake, estimator: str) -> None:
    assert_told_and_forgotten(mistake, estimator)


# -- numbers of particles, types and devices -----------------------------------------------------


def roll_out(particles: int) -> Act:
    """Return an act that differentiates a rollout of its own with so many particles."""

    def act(manager: PropagationManager, x: Tensor) -> None:
        manager.reset()
        x = manager.sample(step(start(particles)))
        manager.append_loss(x, lossfunc=squares)
        manager.loss().backward()

    return act


def fewer_costs(manager: PropagationManager, x: Tensor) -> None:
    manager.reset()
    x = manager.sample(step(start()))
    manager.append_loss(x[:4], lossfunc=squares)
    manager.loss().backward()


PARTICLES = [
    Mistake(
        "a single particle",
        ValueError,
        ("at least 2 particles", "[1, ", "drop_last=True"),
        roll_out(1),
        ("LR", "TP", "TPX", "GS", "GR"),
    ),
    Mistake(
        "a single particle that shares",
        ValueError,
        ("at least 2 particles", "got 1", "drop_last=True"),
        roll_out(1),
        ("BIW",),
    ),
    Mistake(
        "no particles", ValueError, ("particle", "[0, "), roll_out(0), ("RP", "LR", "TP", "GR")
    ),
    *(
        Mistake(
            f"{dist} without particles",
            ValueError,
            ("dist must have particles first", "[P, ...]", "expand([P])", *words),
            sampling(dist),
            NAMES,
        )
        for dist, words in (
            (Normal(0.0, 1.0), ("Normal", "batch shape []", "samples are []")),
            (MultivariateNormal(torch.zeros(3), torch.eye(3)), ("MultivariateNormal", "[3]")),
            (Independent(Normal(torch.zeros(2), 1.0), 1), ("Independent", "[2]")),
        )
    ),
    # A single draw for all particles would make LR's baseline cancel the gradient, silently.
    *(
        Mistake(
            f"noise of shape {shape} for all particles",
            ValueError,
            ("dist_params must", "[6, 2]", f"noise of shape {shape}"),
            adding(torch.zeros(shape), 0.1),
            NAMES,
        )
        for shape in ([2], [1, 2], [6, 1], [3, 2], [6, 2, 2], [2, 6])
    ),
    Mistake(
        "noise without particles",
        ValueError,
        ("dist_params must", "particles first", "batch shape []"),
        adding(0.0, 0.1),
        NAMES,
    ),
    Mistake(
        "costs of fewer particles",
        ValueError,
        ("one cost for each particle", "got 4", "shape [6, 2]"),
        fewer_costs,
        ("LR", "TP", "GS"),
    ),
    Mistake(
        "samples of fewer particles, as of a rollout that was abandoned",
        ValueError,
        ("one cost for each particle", "got 6", "[4, 2]", "reset"),
        lambda m, x: (m.sample(step(x[:4])), m.loss(squares(x)).backward()),
        ("LR", "TP"),
    ),
    *(
        Mistake(
            "particles that are alike",
            ValueError,
            ("covariance", "[0.0, 0.0]"),
            lambda m, x: m.append_loss(m.sample(unchecked(0 * x, 1e-300)), lossfunc=squares),
            ("GR", "GS"),
        ),
        Mistake(
            "NaN among particles",
            ValueError,
            ("covariance", "nan"),
            lambda m, x: m.append_loss(m.sample(unchecked(one_bad(x, NAN), 0.1)), lossfunc=squares),
            ("GR", "GS"),
        ),
    ),
    *(
        Mistake(
            f"a state to be shaped: {name}",
            error,
            words,
            lambda m, x, state=state: m.append_loss(state, lossfunc=lambda *a, **k: torch.ones(P)),
            ("GS",),
        )
        for name, state, error, words in (
            ("integers", torch.arange(P), TypeError, ("floating point", "[6]", "int64")),
            (
                "a list within",
                {"a": torch.zeros(P, 1), "b": [0.0] * P},
                TypeError,
                ("got a list",),
            ),
            (
                "parts of different numbers of particles",
                (torch.zeros(P, 1), torch.zeros(P - 1, 1)),
                ValueError,
                ("[6, 1]", "[5, 1]"),
            ),
            ("a scalar", torch.tensor(1.0), TypeError, ("[P, ...]", "shape []")),
        )
    ),
]
TYPES_AND_DEVICES = [
    Mistake(
        "integers for a normal distribution",
        TypeError,
        ("floating point", "torch.int64", "x.float()"),
        lambda m, x: m.sample(Normal(x.long(), torch.ones(P, 2, dtype=torch.int64))),
    ),
    Mistake(
        "integers for noise",
        TypeError,
        ("dist_params", "floating point", "torch.int64"),
        lambda m, x: m.forward(**around(x, x.long(), torch.ones_like(x).long())),
        ("LR",),
    ),
    Mistake(
        "a state on another device than its noise",
        ValueError,
        ("one device", "meta", "cpu", "x.to("),
        lambda m, x: m.forward(**around(x.to("meta"), ZEROS, 0.1)),
    ),
    Mistake(
        "a distribution on two devices",
        ValueError,
        ("one device", "cpu", "meta"),
        lambda m, x: m.sample(unchecked(x, torch.ones(P, 2, device="meta"))),
    ),
    Mistake(
        "a sample on another device than its costs",
        ValueError,
        ("one device", "costs on cpu", "meta", "costs.to("),
        lambda m, x: (
            m.sample(unchecked(torch.zeros(P, 2, device="meta") + theta.to("meta"), 0.1)),
            m.loss(squares(x)).backward(),
        ),
        ("LR",),
    ),
]


@each_with_its_estimators([*PARTICLES, *TYPES_AND_DEVICES])
def test_particles_types_and_devices_that_do_not_fit(mistake: Mistake, estimator: str) -> None:
    assert_told_and_forgotten(mistake, estimator)


# -- parameters ----------------------------------------------------------------------------------

BY_TORCH = [
    Mistake(name, ValueError, words, act, (estimator,), by_torch=True)
    for name, words, act, estimator in (
        ("NaN in a mean", ("loc", "nan"), lambda m, x: m.sample(step(one_bad(x, NAN))), "TP"),
        (
            "a policy that returns NaN",
            ("loc", "nan"),
            lambda m, x: m.sample(Normal(x + nn.Linear(2, 2).double()(x) * NAN, 0.1)),
            "TP",
        ),
        ("a NaN scale", ("scale", "nan"), lambda m, x: m.sample(step(x, NAN)), "TP"),
        (
            "a zero scale",
            ("scale", "GreaterThan", "0."),
            lambda m, x: m.sample(step(x, 0.0)),
            "TP",
        ),
        (
            "a scale that has underflowed",
            ("scale", "0."),
            lambda m, x: m.sample(step(x, (theta * 1e4 - 1e4).exp())),
            "LR",
        ),
        ("a negative scale", ("scale", "-0.1"), lambda m, x: m.sample(step(x, -0.1)), "TP"),
        ("a rate of zero", ("rate",), lambda m, x: m.sample(Gamma(x.exp(), 0.0)), "TP"),
        (
            "a covariance that is none",
            ("covariance_matrix",),
            lambda m, x: m.sample(MultivariateNormal(x, -torch.eye(2, dtype=x.dtype))),
            "TP",
        ),
        (
            "probabilities beyond one",
            ("probs",),
            lambda m, x: m.sample(Bernoulli(x.exp() + 1.0)),
            "LR",
        ),
    )
]
BY_US = [
    Mistake("a negative scale of noise", ValueError, ("scale", "-1."), adding(ZEROS, -ONES), NAMES),
    Mistake(
        "a zero scale, unchecked",
        ValueError,
        (
            "dist: the scale of Normal must be positive",
            "12 values of 0 or less, 0.0",
            "clamp_min",
        ),
        lambda m, x: m.sample(Independent(unchecked(x, torch.zeros(P, 2)), 1)),
        ("LR", "TP", "BIW"),
    ),
    Mistake(
        "a negative scale of noise, unchecked",
        ValueError,
        ("dist_params: the scale of Normal", "-1.0 among them"),
        lambda m, x: m.forward(
            x,
            dist_class=Normal,
            dist_params={"loc": x * 0, "scale": one_bad(x * 0 + 1, -1.0), "validate_args": False},
        ),
        ("LR",),
    ),
    Mistake(
        "a zero scale below a tanh, unchecked",
        ValueError,
        ("the scale of Normal must be positive for TP",),
        lambda m, x: m.sample(
            TransformedDistribution(unchecked(x, 0 * x), [TanhTransform()], validate_args=False)
        ),
    ),
    Mistake(
        "a rate of zero, unchecked",
        ValueError,
        ("the rate of Gamma must be positive for LR",),
        lambda m, x: m.sample(Gamma(x.exp(), 0.0, validate_args=False)),
        ("LR",),
    ),
]


@each_with_its_estimators([*BY_TORCH, *BY_US])
def test_parameters_of_no_distribution(mistake: Mistake, estimator: str) -> None:
    assert_told_and_forgotten(mistake, estimator)


# -- no mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_distribution_expanded_over_the_particles_has_them(name: str) -> None:
    for dist in (Normal(0.0, 1.0), MultivariateNormal(torch.zeros(3), torch.eye(3))):
        x = PropagationManager(name).sample(dist.expand([P, *dist.batch_shape]))
        assert x.shape == (P, *dist.event_shape)


@pytest.mark.parametrize("name", NAMES)
def test_a_start_that_the_particles_share_is_no_mistake(name: str) -> None:
    for x0 in (torch.zeros(2), torch.zeros(1, 2)):
        x = PropagationManager(name).forward(**around(x0, ZEROS, 0.1))
        assert x.shape == (P, 2)
        assert len(x.detach().unique()) == 2 * P


def test_a_manager_without_an_estimator_draws_no_samples() -> None:
    manager = PropagationManager()
    with pytest.raises(TypeError, match=r"BackPropagator draws no samples from a dist.*TP\+GS"):
        manager.sample(step(start()))
    x = manager.sample(step(start()), local_propagator=RPProp())
    assert x.shape == (P, 2)
