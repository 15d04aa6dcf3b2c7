"""Faults of the prototype that must not come back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from lightning_proppo import PropagationManager, expand
from lightning_proppo.propagators import (
    ChainProp,
    ComboProp,
    GRProp,
    GSLoss,
    LRProp,
    PauseProp,
    Propagator,
    RPProp,
    TotalProp,
)

NAMES = ["RP", "LR", "TP", "GR", "GS", "TP+GS"]
P = 8


@pytest.fixture
def theta():
    return torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)


def rollout(manager, theta, horizon=3, particles=P, seed=0):
    torch.manual_seed(seed)
    x = torch.zeros(particles, 2, dtype=torch.float64)
    for _ in range(horizon):
        x = manager.sample(Normal((x + theta).sin(), 0.1))
        manager.append_loss(x, lossfunc=lambda x: x.square().sum(1))


def fresh(name, theta, **options):
    manager = PropagationManager(name)
    rollout(manager, theta, **options)
    return torch.autograd.grad(manager.loss(), theta)[0]


# -- nodes of an earlier rollout -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["loss", "backward", "kept", "never"])
def test_a_shorter_rollout_after_a_longer_one_is_as_one_alone(name, way, theta):
    """Whether the longer one was differentiated, and how. Fewer particles, too."""
    manager = PropagationManager(name)
    rollout(manager, theta, horizon=6, particles=2 * P)
    if way == "backward":
        manager.backward()
        theta.grad = None
    else:
        loss = manager.loss()
        if way != "never":
            torch.autograd.grad(loss, theta, retain_graph=way == "kept")
    for horizon in (2, 4, 1):
        rollout(manager, theta, horizon=horizon, seed=1)
        found = torch.autograd.grad(manager.loss(), theta)[0]
        assert torch.equal(found, fresh(name, theta, horizon=horizon, seed=1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", ["no_grad", "inference_mode", "reset", "context", "error"])
def test_an_evaluation_or_an_abandoned_rollout_leaves_nothing_behind(name, way, theta):
    manager = PropagationManager(name)
    if way in ("no_grad", "inference_mode"):
        with getattr(torch, way)():
            rollout(manager, theta, horizon=5)
            manager.loss()
    elif way == "reset":
        rollout(manager, theta, horizon=5)
        manager.reset()
    elif way == "error":
        rollout(manager, theta, horizon=5)
        with pytest.raises(TypeError):
            manager.sample("no distribution")
    else:

        def abandon():
            with manager.rollout():
                rollout(manager, theta, horizon=5)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            abandon()
    rollout(manager, theta, seed=1)
    found = torch.autograd.grad(manager.loss(), theta)[0]
    assert torch.equal(found, fresh(name, theta, seed=1))


@pytest.mark.parametrize("name", NAMES)
def test_a_new_rollout_may_begin_by_its_context(name, theta):
    manager = PropagationManager(name)
    rollout(manager, theta, horizon=5, particles=3)
    with manager.rollout():
        rollout(manager, theta, seed=1)
        found = torch.autograd.grad(manager.loss(), theta)[0]
    assert torch.equal(found, fresh(name, theta, seed=1))


def test_what_an_evaluation_chooses_next_is_its_own(theta):
    class Chooser(Propagator):
        def forward_impl(self, x, node=None):
            return {"output": "chooser", "next_propagator": "special"}

    class Named(Propagator):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward_impl(self, x, node=None):
            return {"output": self.name}

    manager = PropagationManager(Named("default"))
    manager.add_propagator("special", Named("special"))
    manager.forward(None, local_propagator=Chooser())
    with torch.no_grad():
        assert manager.forward(None) == "default"
        manager.forward(None, local_propagator=Chooser())
    assert manager.forward(None) == "special"
    assert manager.forward(None) == "default"
    with torch.no_grad():
        assert manager.forward(None) == "special"


# -- things changed in place -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_second_pass_over_a_kept_graph_finds_the_same_losses(name, theta):
    """The prototype added the later losses to the stored one, at every pass anew."""
    manager = PropagationManager(name)
    rollout(manager, theta, horizon=4)
    loss = manager.loss()
    found = [torch.autograd.grad(loss, theta, retain_graph=True)[0] for _ in range(3)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert bool((found[0] != 0).all())


@pytest.mark.parametrize("name", ["RP", "LR", "TP", "GR"])
@pytest.mark.parametrize("shape", [(P,), (P, 1)])
def test_costs_that_were_given_are_not_written_into(name, shape, theta):
    manager = PropagationManager(name)
    torch.manual_seed(0)
    x = torch.zeros(P, 2, dtype=torch.float64)
    given = []
    for _ in range(3):
        x = manager.sample(Normal((x + theta).sin(), 0.1))
        cost = x.square().sum(1).reshape(shape)
        given.append((cost, cost.detach().clone()))
        returned = manager.append_loss(cost)
        assert returned.shape == (P, 1)
    manager.loss().backward()
    for cost, before in given:
        assert torch.equal(cost, before)


def test_options_that_were_given_are_not_written_into():
    own = [{"scale": 0.5}, {}]
    params = {"loc": torch.zeros(P, 1), "scale": torch.ones(P, 1)}
    before = copy.deepcopy((own, params))

    class Scaled(Propagator):
        def forward_impl(self, x, node=None, scale=1.0, shift=0.0):
            return {"output": scale * x + shift}

    parts = [Scaled(), Scaled()]
    chain = ChainProp(parts)
    assert PropagationManager(chain).forward(2.0, chain_kwargs=own, shift=1.0) == 3.0
    assert PropagationManager(chain).forward(2.0) == 2.0
    parts.append(Scaled(scale=100.0))  # no part of the chain
    assert PropagationManager(chain).forward(2.0) == 2.0
    PropagationManager("TP").forward(torch.zeros(P, 1), dist_class=Normal, dist_params=params)
    assert own == before[0]
    assert all(torch.equal(params[k], before[1][k]) for k in params)


# -- shared defaults -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RPProp, LRProp, TotalProp, PauseProp, GRProp, GSLoss])
def test_no_two_composites_share_a_part_or_a_dict(kind):
    def parts(propagator):
        yield propagator
        for part in getattr(propagator, "propagators", ()):
            yield from parts(part)

    first, second = list(parts(kind())), list(parts(kind()))
    assert not {id(p) for p in first} & {id(p) for p in second}
    mutable = [
        {id(v) for p in every for v in vars(p).values() if isinstance(v, (dict, list))}
        for every in (first, second)
    ]
    assert not mutable[0] & mutable[1]


def test_no_two_managers_share_a_default():
    first, second = PropagationManager(), PropagationManager()
    assert first.default_propagator is not second.default_propagator
    assert first.terminal_propagator is not second.terminal_propagator


def test_class_keywords_of_one_class_do_not_reach_another():
    class First(Propagator, scale=1):
        def forward_impl(self, x, node=None, scale=0):
            return {"output": scale}

    class Second(First, scale=2):
        pass

    class Third(First):
        pass

    outputs = [PropagationManager(kind()).forward(None) for kind in (First, Second, Third)]
    assert outputs == [1, 2, 1]
    assert Propagator.default_init_kwargs == {}


def test_the_node_that_forward_is_given_is_new_each_time():
    class Filling(Propagator):
        def forward_impl(self, x, node=None):
            assert node == {}
            node["output"] = x
            return node

    for propagator in (Filling(), ComboProp([Filling()]), ChainProp([Filling()])):
        manager = PropagationManager(propagator)
        assert [manager.forward(i) for i in range(3)] == [0, 1, 2]


# -- weights that are not finite -------------------------------------------------------------------


@pytest.mark.parametrize("target", ["parameters", "node", "expanded", "module"])
@pytest.mark.parametrize("k_interval", [1, 2])
def test_total_propagation_leaves_an_exploded_gradient_behind(target, k_interval, capsys):
    """Where RP's part is not finite, LR has all of the weight, at that node and before it."""

    class Explodes(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * float("inf") * torch.tensor([[0.0], [1.0]] * (P // 2), dtype=g.dtype)

    model = nn.Linear(2, 2).double()
    manager = PropagationManager(TotalProp(k_interval=k_interval))
    x = torch.ones(P, 2, dtype=torch.float64)
    for _ in range(3):
        if target == "expanded":
            weight, bias = expand(model.weight, P), expand(model.bias, P)
            loc = torch.einsum("pi,pji->pj", x, weight) + bias
            ivw_target = [weight, bias]
        else:
            loc, ivw_target = model(x), model if target == "module" else target
        x = manager.sample(Normal(loc.tanh(), 0.5), ivw_target=ivw_target)
    manager.loss(Explodes.apply(x).square().sum(1)).backward()
    weights = torch.stack(manager.statistics["lr_weight"])
    assert weights[:k_interval].tolist() == [1.0] * k_interval
    assert bool(weights.isfinite().all())
    assert bool((weights[k_interval:] < 1.0).all())  # before it, RP is as good as ever
    for parameter in model.parameters():
        assert bool(parameter.grad.isfinite().all())
        assert bool((parameter.grad != 0).all())
    assert capsys.readouterr().out == ""


def test_nothing_is_printed_in_a_rollout(theta, capfd):
    for name in NAMES:
        fresh(name, theta)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


# -- graph that segments share ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_that_all_steps_share_has_the_gradient_of_one_made_anew(name):
    """The prototype went through it a second time, and raised."""
    encoder = nn.Linear(2, 2).double()
    observation = torch.randn(P, 2, dtype=torch.float64)
    gradients = []
    for once in (True, False):
        manager = PropagationManager(name)
        torch.manual_seed(0)
        x, code = torch.zeros(P, 2, dtype=torch.float64), encoder(observation)
        for _ in range(3):
            code = code if once else encoder(observation)
            x = manager.sample(Normal((x + code).tanh(), 0.3))
            manager.append_loss(x, lossfunc=lambda x: x.square().sum(1))
        gradients.append(torch.autograd.grad(manager.loss(), list(encoder.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
        assert bool((a != 0).all())


def test_a_pause_only_saves_passes_over_the_shared_graph():
    calls = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            calls.append(1)
            return g

    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    gradients = []
    for pause in (False, True):
        calls.clear()
        manager = PropagationManager(RPProp())
        torch.manual_seed(0)
        code = Counted.apply(weight.expand(P, 2))
        if pause:
            code = manager.forward(code, local_propagator=PauseProp())
        x = torch.zeros(P, 2, dtype=torch.float64)
        for _ in range(4):
            x = manager.sample(Normal(x + code, 0.3))
        gradients.append(torch.autograd.grad(manager.loss(x.square().sum(1)), weight)[0])
        assert len(calls) == (1 if pause else 4)
    torch.testing.assert_close(*gradients)
