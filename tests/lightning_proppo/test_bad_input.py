"""What users get wrong: the exception names the argument, what was expected and what came.

And the manager goes on as if nothing had happened: whatever was recorded of the rollout that failed
is forgotten, so that the next one has the gradient that a new manager gives.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Independent,
    MultivariateNormal,
    Normal,
    Poisson,
)

import lightning_proppo as lp
from lightning_proppo import PropagationError, PropagationManager, expand
from lightning_proppo.propagators import (
    BackPropagator,
    BaselineProp,
    ChainProp,
    ComboProp,
    GSLoss,
    LossProp,
    LRProp,
    PauseProp,
    Propagator,
    RPProp,
    SkipProp,
    SumBase,
    TotalProp,
    make_estimator,
)

P = 6
NAMES = ["RP", "LR", "TP", "GR", "GS", "TP+GS"]
theta = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)


def step(x, scale=0.1):
    return Normal((x + theta).sin(), scale)


def start(particles=P):
    return torch.zeros(particles, 2, dtype=torch.float64)


def good_rollout(manager):
    torch.manual_seed(1)
    x = start()
    for _ in range(3):
        x = manager.sample(step(x))
        manager.append_loss(x, lossfunc=lambda x: x.square().sum(1))
    return torch.autograd.grad(manager.loss(), theta)[0]


def assert_goes_on(manager, name):
    """The manager has forgotten the failed rollout."""
    assert manager.recorded == 0
    torch.testing.assert_close(good_rollout(manager), good_rollout(PropagationManager(name)))


def refused(name, error, *words, act):
    """Run ``act(manager, x)`` in the middle of a rollout; all ``words`` are in its exception."""
    manager = PropagationManager(name)
    x = manager.sample(step(start()))
    manager.append_loss(x, lossfunc=lambda x: x.square().sum(1))
    with pytest.raises(error) as caught:
        act(manager, x)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
    assert_goes_on(manager, name)


# -- costs ---------------------------------------------------------------------------------------


def squares(x):
    return x.square().sum(1)


BAD_COSTS = [
    (lambda x: x.square(), ValueError, ["costs", "[P] or [P, 1]", "[6, 2]"]),
    (lambda x: squares(x).mean(), ValueError, ["costs", "shape []", "Do not average"]),
    (lambda x: squares(x)[:0], ValueError, ["costs", "P > 0", "[0, 1]"]),
    (lambda x: squares(x)[None], ValueError, ["costs", "[1, 6]"]),
    (lambda x: squares(x)[:, None] - squares(x), ValueError, ["costs", "[6, 6]"]),
    (lambda x: squares(x)[:, None, None], ValueError, ["costs", "[6, 1, 1]"]),
    (lambda x: squares(x).long(), TypeError, ["costs", "floating point", "torch.int64", "float()"]),
    (lambda x: squares(x) > 0, TypeError, ["costs", "torch.bool"]),
    (lambda x: squares(x).to(torch.complex64), TypeError, ["costs", "torch.complex64"]),
    (lambda x: squares(x).detach().numpy(), TypeError, ["costs", "tensor", "ndarray"]),
    (lambda x: squares(x).tolist(), TypeError, ["costs", "tensor", "list"]),
    (lambda x: 3.0, TypeError, ["costs", "tensor", "float"]),
]


@pytest.mark.parametrize("name", ["LR", "TP"])
@pytest.mark.parametrize("method", ["append_loss", "loss", "backward"])
@pytest.mark.parametrize(("make", "error", "words"), BAD_COSTS)
def test_costs_that_are_not_one_number_for_each_particle(name, method, make, error, words):
    refused(name, error, *words, act=lambda m, x: getattr(m, method)(make(x)))


@pytest.mark.parametrize("name", ["RP", "GR", "GS"])
@pytest.mark.parametrize(("make", "error", "words"), BAD_COSTS)
def test_computed_costs_that_are_not_one_number_for_each_particle(name, make, error, words):
    refused(name, error, *words, act=lambda m, x: m.append_loss(x, lossfunc=make))


@pytest.mark.parametrize("name", ["RP", "LR", "TP", "GR"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_costs_that_are_not_finite_are_named_by_step_and_value(name, value):
    def act(manager, x):
        costs = squares(x) * torch.tensor([1.0] * (P - 1) + [value])
        manager.append_loss(costs)
        manager.append_loss(squares(x))
        manager.loss()

    refused(name, ValueError, "costs must be finite", "number 2 of 3", str(value), act=act)
    refused(name, ValueError, "backward: costs", act=lambda m, x: m.backward(squares(x) * value))


@pytest.mark.parametrize("name", ["GS", "TP+GS"])
def test_shaped_costs_that_are_not_finite(name):
    def act(manager, x):
        manager.append_loss(x, lossfunc=lambda x: squares(x) * float("nan"))
        manager.loss()

    refused(name, ValueError, "costs must be finite", "number 2 of 2", act=act)


def test_finite_costs_whose_sum_overflows_are_told_apart():
    def act(manager, x):
        for _ in range(15):
            manager.append_loss(squares(x) * 0.0 + 1.5e307)
        manager.loss()

    refused("RP", ValueError, "costs must be finite", "their sum overflows", act=act)


def test_an_evaluation_has_its_nan():
    """Nothing would be lost, and a validation step that reports NaN is as it should be."""
    manager = PropagationManager("TP")
    with torch.no_grad():
        x = manager.sample(step(start()))
        assert manager.loss(squares(x) * float("nan")).isnan()


def test_costs_in_16_bits_do_not_overflow_by_the_number_of_particles():
    for dtype, tolerance in ((torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
        manager = PropagationManager("RP")
        x = manager.sample(Normal(theta.float().expand(3000, 2) + 100.0, 0.1))
        value = manager.loss(x.sum(1).to(dtype))
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, x.sum(1).mean(), rtol=tolerance, atol=0)


@pytest.mark.parametrize("name", ["LR", "TP", "GS"])
def test_costs_of_fewer_particles_than_samples(name):
    manager = PropagationManager(name)
    x = manager.sample(step(start()))
    manager.append_loss(x[:4], lossfunc=squares)
    loss = manager.loss()
    with pytest.raises(ValueError, match=r"one cost for each particle; got 4 .* shape \[6, 2\]"):
        loss.backward()
    assert_goes_on(manager, name)


@pytest.mark.parametrize("name", ["RP", "LR", "TP"])
def test_costs_of_different_numbers_of_particles(name):
    manager = PropagationManager(name)
    x = manager.sample(step(start()))
    manager.append_loss(squares(x))
    with pytest.raises(ValueError, match=r"costs .* same number of particles; got 6 and then 4"):
        manager.loss(squares(x)[:4]).backward()
    assert_goes_on(manager, name)


@pytest.mark.parametrize("name", ["RP", "TP", "GR"])
def test_costs_without_a_graph_where_their_gradient_is_needed(name):
    manager = PropagationManager(name)
    x = manager.sample(step(start()))
    with pytest.raises(PropagationError, match=r"differentiates the costs.*no graph.*use LR"):
        manager.loss(squares(x).detach())
    assert_goes_on(manager, name)


@pytest.mark.parametrize("name", NAMES)
def test_no_costs_at_all(name):
    manager = PropagationManager(name)
    manager.sample(step(start()))
    with pytest.raises(PropagationError, match="no costs; pass costs, or append_loss them"):
        manager.loss()
    assert_goes_on(manager, name)
    with pytest.raises(PropagationError, match="nothing was recorded since the last loss"):
        manager.loss(torch.ones(P))
    with torch.no_grad(), pytest.raises(PropagationError, match="no costs"):
        manager.loss()
    assert_goes_on(manager, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_lossfunc_that_cannot_be_called(name):
    refused(
        name,
        TypeError,
        "lossfunc must be callable",
        "3",
        act=lambda m, x: m.append_loss(x, lossfunc=3),
    )


def test_a_failed_evaluation_leaves_no_costs_behind():
    manager = PropagationManager("RP")
    with torch.no_grad():
        x = manager.sample(step(start()))
        manager.append_loss(squares(x) + 1000.0)
        with pytest.raises(ValueError, match="costs"):
            manager.append_loss(x)
        y = manager.sample(step(start()))
        torch.testing.assert_close(manager.loss(squares(y)), squares(y).mean())


def test_a_failed_evaluation_leaves_the_rollout_alone():
    manager = PropagationManager("RP")
    x = manager.sample(step(start()))
    with torch.no_grad(), pytest.raises(ValueError, match="costs"):
        manager.append_loss(x)
    loss = manager.loss(squares(x))
    assert bool((torch.autograd.grad(loss, theta)[0] != 0).all())


class Mute(Propagator):
    """A loss propagator without output."""

    def forward_impl(self, x, node=None):
        return {}


def test_a_loss_propagator_without_output_is_named():
    manager = PropagationManager("RP", Mute())
    manager.sample(step(start()))
    with pytest.raises(TypeError, match="Mute must output one cost for each particle; got None"):
        manager.append_loss(torch.ones(P))
    assert manager.recorded == 0


# -- distributions -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dist", "words"),
    [
        (Normal(0.0, 1.0), ["Normal", "batch shape []", "samples are []"]),
        (MultivariateNormal(torch.zeros(3), torch.eye(3)), ["MultivariateNormal", "[3]"]),
        (Independent(Normal(torch.zeros(2), 1.0), 1), ["Independent", "[2]"]),
    ],
)
def test_a_distribution_without_particles(name, dist, words):
    refused(
        name,
        ValueError,
        "dist must have particles first",
        "[P, ...]",
        "expand([P])",
        *words,
        act=lambda m, x: m.sample(dist),
    )
    x = PropagationManager(name).sample(dist.expand([P, *dist.batch_shape]))
    assert x.shape[0] == P


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dist_params", "words"),
    [
        ((0.0, 0.1), ["particles first", "batch shape []"]),
        ((torch.zeros(2), 0.1), ["[6, 2]", "noise of shape [2]"]),
        ((torch.zeros(1, 2), 0.1), ["[6, 2]", "noise of shape [1, 2]"]),
        ((torch.zeros(6, 1), 0.1), ["[6, 2]", "noise of shape [6, 1]"]),
        ((torch.zeros(3, 2), 0.1), ["[6, 2]", "noise of shape [3, 2]"]),
        ({"loc": torch.zeros(6, 2, 2), "scale": 0.1}, ["[6, 2]", "noise of shape [6, 2, 2]"]),
        (lambda x: {"loc": torch.zeros(2, 6), "scale": 0.1}, ["[6, 2]", "noise of shape [2, 6]"]),
    ],
)
def test_noise_that_the_particles_would_share(name, dist_params, words):
    """A single draw for all particles makes LR's baseline cancel the gradient, silently."""
    refused(
        name,
        ValueError,
        "dist_params must",
        *words,
        act=lambda m, x: m.forward(x, dist_class=Normal, dist_params=dist_params),
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_start_that_the_particles_share_is_no_mistake(name):
    for x0 in (torch.zeros(2), torch.zeros(1, 2)):
        x = PropagationManager(name).forward(
            x0, dist_class=Normal, dist_params=(torch.zeros(P, 2), 0.1)
        )
        assert x.shape == (P, 2)
        assert len(x.detach().unique()) == 2 * P


@pytest.mark.parametrize("name", ["RP", "TP", "GR", "TP+GS"])
@pytest.mark.parametrize(
    "dist",
    [
        Bernoulli(torch.full((P, 1), 0.5)),
        Categorical(torch.ones(P, 3)),
        Poisson(torch.ones(P, 1)),
    ],
)
def test_a_distribution_without_rsample(name, dist):
    refused(
        name,
        TypeError,
        type(dist).__name__,
        "no rsample",
        "use LR",
        act=lambda m, x: m.sample(dist),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [torch.zeros(P, 2), "Normal", Normal, 3.0])
def test_what_is_no_distribution(name, wrong):
    refused(
        name,
        TypeError,
        "dist must be a torch.distributions.Distribution",
        f"got {type(wrong).__name__}",
        act=lambda m, x: m.sample(wrong),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["manager.sample(dist)", "dist_class is missing"]),
        ({"dist_class": Normal}, ["dist_params is missing"]),
        ({"dist_params": (0.0, 1.0)}, ["dist_class is missing"]),
        ({"dist_class": "Normal", "dist_params": ()}, ["dist_class must be a class", "'Normal'"]),
        ({"dist_class": Normal, "dist_params": 3}, ["dist_params must be a mapping", "got int"]),
        (
            {"dist_class": Normal, "dist_params": lambda x: x},
            ["function of x that returns a mapping", "got Tensor"],
        ),
        (
            {"dist_class": lambda loc: loc, "dist_params": (1.0,)},
            ["dist_class must make", "a float"],
        ),
        (
            {"dist": Normal(torch.zeros(P, 2), 1.0), "dist_class": Normal},
            ["either dist, or dist_class"],
        ),
        ({"dist_class": Normal, "dist_params": {"mean": 0.0}}, ["mean"]),
    ],
)
def test_a_distribution_that_is_not_described(name, options, words):
    refused(name, TypeError, *words, act=lambda m, x: m.forward(x, **options))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [None, [0.0], 1.0, "x"])
def test_noise_is_added_to_tensors_only(name, wrong):
    refused(
        name,
        TypeError,
        "x must be the tensor to add noise to",
        type(wrong).__name__,
        act=lambda m, x: m.forward(wrong, dist_class=Normal, dist_params=(0.0, 1.0)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_torch_refuses(name):
    refused(
        name,
        ValueError,
        "scale",
        act=lambda m, x: m.forward(
            x, dist_class=Normal, dist_params=(torch.zeros(P, 2), -torch.ones(P, 2))
        ),
    )


def test_a_manager_without_an_estimator_draws_no_samples():
    manager = PropagationManager()
    with pytest.raises(TypeError, match=r"BackPropagator draws no samples from a dist.*TP\+GS"):
        manager.sample(step(start()))
    x = manager.sample(step(start()), local_propagator=RPProp())
    assert x.shape == (P, 2)


@pytest.mark.parametrize("name", ["LR", "TP", "GS"])
def test_a_single_particle_where_others_are_needed(name):
    manager = PropagationManager(name)

    def act():
        x = manager.sample(step(start(1)))
        manager.append_loss(x, lossfunc=squares)
        manager.loss().backward()

    with pytest.raises(ValueError, match=r"at least 2 particles.* got .*shape"):
        act()
    assert_goes_on(manager, name)


@pytest.mark.parametrize("name", ["GR", "GS"])
def test_particles_that_are_alike_or_not_finite_have_no_gaussian(name):
    for value, words in ((1.0, ["[0.0, 0.0]"]), (float("nan"), ["nan"])):
        same = torch.full((P, 2), value, dtype=torch.float64)
        dist = Normal(same, 1e-300, validate_args=False)
        refused(
            name,
            ValueError,
            "covariance",
            *words,
            act=lambda m, x, dist=dist: m.append_loss(m.sample(dist), lossfunc=squares),
        )


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        (torch.arange(P), TypeError, ["floating point", "[6]", "int64"]),
        ({"a": torch.zeros(P, 1), "b": [0.0] * P}, TypeError, ["got a list"]),
        ((torch.zeros(P, 1), torch.zeros(P - 1, 1)), ValueError, ["[6, 1]", "[5, 1]"]),
        (torch.tensor(1.0), TypeError, ["[P, ...]", "shape []"]),
    ],
)
def test_a_state_that_cannot_be_shaped(state, error, words):
    refused(
        "GS",
        error,
        *words,
        act=lambda m, x: m.append_loss(state, lossfunc=lambda *a, **k: torch.ones(P)),
    )


# -- options and names -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "meant"),
    [({"dits": 1}, "dist"), ({"dist_parms": 1}, "dist_params"), ({"quite_other": 1}, None)],
)
def test_misspelt_options_of_a_sample(name, options, meant):
    hint = f"Did you mean {meant!r}" if meant else "options are"
    refused(name, TypeError, next(iter(options)), hint, act=lambda m, x: m.forward(x, **options))


@pytest.mark.parametrize("name", NAMES)
def test_misspelt_options_of_a_loss(name):
    refused(
        name,
        TypeError,
        "los_func",
        "Did you mean 'lossfunc'",
        act=lambda m, x: m.append_loss(x, los_func=squares),
    )


@pytest.mark.parametrize("name", NAMES)
def test_unknown_and_wrong_propagators(name):
    refused(
        name,
        KeyError,
        "'puase'",
        "the names are none",
        act=lambda m, x: m.forward(x, local_propagator="puase"),
    )
    refused(
        name,
        TypeError,
        "local_propagator must be a Propagator (instantiate the class)",
        act=lambda m, x: m.forward(x, local_propagator=RPProp),
    )
    refused(
        name,
        KeyError,
        "'shaped'",
        act=lambda m, x: m.append_loss(squares(x), loss_propagator="shaped"),
    )


@pytest.mark.parametrize("wrong", ["before", 1.5, [1, "a"], {"a": 1}])
def test_wrong_force_targets(wrong):
    refused(
        "LR",
        TypeError,
        "force_targets must be an int or a list of ints",
        repr(wrong),
        act=lambda m, x: m.sample(step(x), force_targets=wrong),
    )


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("parameter", ValueError, ["ivw_target", "Did you mean 'parameters'"]),
        (3, TypeError, ["ivw_target", "got int"]),
        ([3], TypeError, ["ivw_target", "a int"]),
        (torch.zeros(P, 1), TypeError, ["ivw_target", "require a gradient"]),
        ([], ValueError, ["ivw_target", "at least one tensor"]),
        (nn.ReLU(), ValueError, ["ivw_target", "at least one tensor"]),
    ],
)
def test_wrong_targets_of_the_weights(target, error, words):
    refused("TP", error, *words, act=lambda m, x: m.sample(step(x), ivw_target=target))


@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_targets_of_the_weights_that_are_not_expanded(shape):
    manager = PropagationManager("TP")
    target = theta.sum().expand(shape) * 1.0
    x = manager.sample(Normal(start() + target.sum(), 0.1), ivw_target=target)
    loss = manager.loss(squares(x))
    words = rf"ivw_target.*expanded over the particles.*{re.escape(str(list(shape)))}"
    with pytest.raises(ValueError, match=words):
        loss.backward()
    assert_goes_on(manager, "TP")


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None])
def test_wrong_intervals_of_the_weights(value):
    refused(
        "TP",
        ValueError,
        "k_interval must be an int of at least 1",
        repr(value),
        act=lambda m, x: m.sample(step(x), k_interval=value),
    )


@pytest.mark.parametrize(
    "returned", [None, 0.5, (0.5,), (0.1, 0.2, 0.7), ("a", "b"), (torch.ones(2), torch.ones(2))]
)
def test_a_weighting_function_that_returns_no_two_weights(returned):
    manager = PropagationManager(TotalProp(base={"var_weighting_func": lambda lr, rp: returned}))
    target = expand(theta, P)
    x = manager.sample(Normal(start() + target, 0.1), ivw_target=target)
    loss = manager.loss(squares(x))
    with pytest.raises(ValueError, match=r"var_weighting_func must return two weights.*got"):
        loss.backward()


@pytest.mark.parametrize("weights", [(0.25, 0.75), (1, 0), (torch.tensor([0.25]), 0.75)])
def test_a_weighting_function_may_return_plain_numbers(weights):
    manager = PropagationManager(TotalProp(base={"var_weighting_func": lambda lr, rp: weights}))
    target = expand(theta, P)
    x = manager.sample(Normal(start() + target, 0.1), ivw_target=target)
    manager.loss(squares(x)).backward()
    assert float(manager.statistics["lr_weight"][0]) == float(weights[0])
    theta.grad = None


@pytest.mark.parametrize(
    ("function", "came"),
    [
        (lambda losses, node: None, "None"),
        (lambda losses, node: losses.mean(), r"shape \[\]"),
        (lambda losses, node: losses[:, 0], r"shape \[6\]"),
        (lambda losses, node: losses[:3], r"shape \[3, 1\]"),
    ],
)
def test_a_baseline_function_that_returns_no_losses(function, came):
    manager = PropagationManager(LRProp(baseline=(True, {"baseline_func": function})))
    x = manager.sample(step(start()))
    loss = manager.loss(squares(x))
    match = rf"baseline_func must return the losses.*\[6, 1\].*<lambda> returned {came}"
    with pytest.raises(ValueError, match=match):
        loss.backward()
    assert manager.recorded == 0


# -- propagators that do not keep to the contract --------------------------------------------------


class Returns(Propagator):
    def __init__(self, forward=None, backward=None):
        super().__init__()
        self.forward_value, self.backward_value = forward, backward

    def forward_impl(self, x, node=None):
        return self.forward_value

    def backward_impl(self, node, message):
        return self.backward_value


@pytest.mark.parametrize("wrong", [None, 3, torch.ones(2)])
@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: ComboProp([p]), lambda p: ChainProp([p])])
def test_a_forward_computation_that_returns_no_contents(wrong, wrap):
    refused(
        "RP",
        TypeError,
        "Returns.forward_impl must return a dict or a Container",
        f"got {type(wrong).__name__}",
        act=lambda m, x: m.forward(x, local_propagator=wrap(Returns(wrong))),
    )


@pytest.mark.parametrize("wrong", [3, torch.ones(2), "message"])
@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: ComboProp([p]), lambda p: ChainProp([p])])
def test_a_backward_computation_that_returns_no_message(wrong, wrap):
    def act(manager, x):
        manager.forward(x, local_propagator=wrap(Returns({"output": x}, wrong)))
        manager.backward()

    words = ["Returns must return a message", f"got {type(wrong).__name__}"]
    refused("RP", TypeError, *words, act=act)


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        ({"outputs": [theta * 1.0]}, KeyError, ["'outputs' but no 'grads'"]),
        ({"outputs": [theta * 1.0], "grads": []}, ValueError, ["1 outputs and 0 grads"]),
        ({"outputs": [theta * 1.0], "grads": [torch.ones(3)]}, ValueError, ["[3]", "[2]"]),
        ({"targets": "before", "a": 1}, TypeError, ["targets must be an int", "'before'"]),
    ],
)
def test_messages_that_cannot_be_used(message, error, words):
    def act(manager, x):
        combo = ComboProp([BackPropagator(), Returns({"output": x}, message)])
        manager.forward(x, local_propagator=combo)
        manager.backward()

    refused("RP", error, *words, act=act)


@pytest.mark.parametrize("wrong", [3, "message", [1], torch.ones(2)])
def test_messages_to_start_with_that_are_none(wrong):
    manager = PropagationManager("LR")
    x = manager.sample(step(start()))
    for call in (
        lambda: manager.backward(squares(x), message=wrong),
        lambda: manager.trigger("tally", message=wrong),
    ):
        with pytest.raises((TypeError, ValueError), match=r"message must be|tally"):
            call()
    manager.reset()
    assert_goes_on(manager, "LR")


def test_wrong_kinds_of_computation():
    manager = PropagationManager("LR")
    with pytest.raises(TypeError, match="kind must be a computation's name; got 3"):
        manager.trigger(3)
    with pytest.raises(ValueError, match=r"'tally'.*tally_impl"):
        manager.trigger("tally")


def test_pauses_take_tensors_only():
    refused(
        "RP",
        TypeError,
        "x must be the tensor",
        "list",
        act=lambda m, x: m.forward([x], local_propagator=PauseProp()),
    )


# -- making things ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: PropagationManager("TPP"), ValueError, ["'TPP'", "Did you mean 'TP'"]),
        (lambda: PropagationManager(RPProp), TypeError, ["default_propagator", "instantiate"]),
        (lambda: PropagationManager(loss_propagator="GS"), TypeError, ["loss_propagator", "'GS'"]),
        (lambda: PropagationManager(terminal_propagator=1), TypeError, ["terminal_propagator"]),
        (lambda: PropagationManager().add_propagator(1, RPProp()), TypeError, ["name", "1"]),
        (lambda: PropagationManager().add_propagator("a", RPProp), TypeError, ["instantiate"]),
        (lambda: make_estimator("GSS"), ValueError, ["Did you mean 'GS'"]),
        (lambda: RPProp(backpropp=False), TypeError, ["RPProp", "Did you mean 'backprop'"]),
        (lambda: RPProp(backprop="False"), TypeError, ["a bool", "'False'"]),
        (lambda: LRProp(detach=False), TypeError, ["LRProp", "'detach'", "dist_params"]),
        (lambda: LossProp(loss_name="a"), TypeError, ["LossProp", "'loss_name'"]),
        (lambda: GSLoss(gs_los={}), TypeError, ["GSLoss", "Did you mean 'gs_loss'"]),
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
            lambda: lp.inverse_variance_weighting(torch.tensor(1.0), torch.tensor(2.0)),
            ValueError,
            ["[P, ...]", "tensor(1.)"],
        ),
    ],
)
def test_wrong_arguments_are_named_where_things_are_made(make, error, words):
    with pytest.raises(error) as caught:
        make()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"
