"""Propagators put together, and where something is missing: costs, gradients, parameters."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from lightning_proppo import PropagationManager, expand
from lightning_proppo.propagators import (
    BackPropagator,
    ChainProp,
    ComboProp,
    LossProp,
    LRBase,
    LRProp,
    PauseBase,
    PauseProp,
    Propagator,
    ResampleBase,
    RPBase,
    RPProp,
    TotalProp,
    TPBase,
)

P = 6


@pytest.fixture
def theta():
    return torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)


def start():
    return torch.zeros(P, 2, dtype=torch.float64)


def squares(x):
    return x.square().sum(1)


@pytest.mark.parametrize("make", [RPProp, LRProp, TotalProp])
def test_a_sample_that_no_cost_follows_has_no_gradient(make, theta):
    """Beside one that has: its node is passed over."""
    other = torch.ones(2, dtype=torch.float64, requires_grad=True)
    manager = PropagationManager(make())
    x = manager.sample(Normal(start() + theta, 0.3))
    manager.append_loss(squares(x))
    manager.sample(Normal(start() + other, 0.3))
    found = torch.autograd.grad(manager.loss(), [theta, other], allow_unused=True)
    assert bool((found[0] != 0).all())
    assert found[1] is None


@pytest.mark.parametrize("target", ["parameters", "node", "expanded"])
def test_total_propagation_of_a_cost_that_does_not_depend_on_the_sample(target, theta):
    """RP's gradient is zero and so is its variance: it has all of the weight."""
    manager = PropagationManager(TotalProp())
    used = expand(theta, P) if target == "expanded" else theta
    given = used if target == "expanded" else target
    manager.sample(Normal(start() + used, 0.3), ivw_target=given)
    phi = torch.ones((), dtype=torch.float64, requires_grad=True)
    noise = torch.randn(P, dtype=torch.float64)
    found = torch.autograd.grad(manager.loss(phi * noise), [theta, phi], allow_unused=True)
    assert float(manager.statistics["lr_weight"][0]) == 0.0
    assert found[0] is None or bool((found[0] == 0).all())
    torch.testing.assert_close(found[1], noise.mean())


def test_total_propagation_where_nothing_that_is_compared_depends_on_the_sample(theta):
    """Then the two count alike, and the estimate is still one of the gradient."""
    apart = torch.ones(P, 1, dtype=torch.float64, requires_grad=True) * 1.0
    weights = []
    for target in (apart, expand(theta, P)):
        manager = PropagationManager("TP")
        x = manager.sample(Normal(start() + theta, 0.3), ivw_target=target)
        (found,) = torch.autograd.grad(manager.loss(squares(x)), theta)
        weights.append(float(manager.statistics["lr_weight"][0]))
        assert bool((found != 0).all())
    assert weights == [0.5, 0.5]


def test_total_propagation_before_any_parameter_compares_at_the_samples_before(theta):
    """A step without parameters of its own: the weights are those at its incoming sample."""
    manager = PropagationManager("TP")
    x = manager.sample(Normal(start() + theta, 0.3))
    y = manager.sample(Normal(3.0 * x, 0.3))
    (found,) = torch.autograd.grad(manager.loss(squares(y)), theta)
    assert bool((found != 0).all())
    assert 0.0 < float(manager.statistics["lr_weight"][0]) < 1.0


def test_a_rollout_without_parameters_at_all_is_no_error():
    manager = PropagationManager("TP")
    x = manager.sample(Normal(start(), 0.3))
    x = manager.sample(Normal(3.0 * x, 0.3))
    loss = manager.loss(squares(x))
    assert float(loss) > 0


def test_a_weighting_function_needs_expanded_targets(theta):
    propagator = TotalProp(base={"var_weighting_func": lambda lr, rp: (0.5, 0.5)})
    manager = PropagationManager(propagator)
    for name in ("parameters", "node"):
        with pytest.raises(TypeError, match=rf"expanded over the particles; got '{name}'"):
            manager.sample(Normal(start() + theta, 0.3), ivw_target=name)
    x = manager.sample(Normal(start() + theta, 0.3), ivw_target=theta)
    loss = manager.loss(squares(x))
    with pytest.raises(TypeError, match=r"parameter of shape \[2\].*lightning_proppo\.expand"):
        loss.backward()


def test_parameters_and_expanded_tensors_are_not_compared_together(theta):
    each = expand(theta, P)
    manager = PropagationManager("TP")
    x = manager.sample(Normal(start() + each, 0.3), ivw_target=[theta, each])
    loss = manager.loss(squares(x))
    with pytest.raises(TypeError, match="either parameters or tensors expanded"):
        loss.backward()


@pytest.mark.parametrize("base", [RPBase, LRBase, TPBase, PauseBase, ResampleBase])
def test_a_base_is_a_whole_propagator_with_the_terminal_one(base, theta):
    """One node only: what it sends is back-propagated at the end of the pass."""
    whole = PropagationManager(base())
    composite = PropagationManager(
        ComboProp([BackPropagator(), base()]), loss_propagator=base().loss_propagator()
    )
    assert isinstance(whole.loss_propagator, LossProp)
    found = []
    for manager in (whole, composite):
        torch.manual_seed(0)
        if base in (PauseBase, ResampleBase):
            x = manager.forward(theta + torch.randn(P, 2, dtype=torch.float64))
        else:
            x = manager.sample(Normal(start() + theta, 0.3))
        found.append(torch.autograd.grad(manager.loss(squares(x)), theta)[0])
    torch.testing.assert_close(*found)
    assert bool((found[0] != 0).all())


@pytest.mark.parametrize("wrong", [torch.arange(P), [0.0], None])
def test_resampling_takes_particles_only(wrong):
    with pytest.raises(TypeError, match="x must be a floating point tensor of particles"):
        PropagationManager(ResampleBase()).forward(wrong)


def test_resampling_may_leave_the_graph_whole(theta):
    """Attached and detached draw alike and have one gradient; only one of them makes a node."""
    found = []
    for detach in (True, False):
        manager = PropagationManager(ComboProp([BackPropagator(), ResampleBase()]))
        torch.manual_seed(0)
        x = manager.forward(theta + torch.randn(P, 2, dtype=torch.float64), detach=detach)
        assert manager.size() == (2 if detach else 1)
        found.append(torch.autograd.grad(manager.loss(squares(x)), theta)[0])
    torch.testing.assert_close(*found)


def test_an_empty_chain_is_no_node(theta):
    manager = PropagationManager(ChainProp())
    assert manager.forward(theta) is theta
    assert manager.size() == 1
    assert isinstance(manager.loss_propagator, LossProp)


# -- composition ---------------------------------------------------------------------------------


def rolled_out(propagator, theta, loss_propagator=None):
    """Return the gradient of a rollout of four steps, with a cost at each."""
    manager = PropagationManager(propagator, loss_propagator)
    torch.manual_seed(3)
    x = start()
    for _ in range(4):
        x = manager.sample(Normal((x + theta).sin(), 0.1))
        manager.append_loss(squares(x))
    return torch.autograd.grad(manager.loss(), theta)[0]


@pytest.mark.parametrize("kind", [RPProp, LRProp, TotalProp])
def test_back_propagation_may_be_left_to_the_loss(kind, theta):
    whole = rolled_out(kind(), theta)
    torch.testing.assert_close(rolled_out(kind(backprop=False), theta), whole)


@pytest.mark.parametrize("backprop", [True, False])
def test_a_pause_may_leave_back_propagation_to_the_loss(backprop, theta):
    manager = PropagationManager(RPProp())
    x = torch.ones(5, 2, dtype=torch.float64) * theta
    y = manager.forward(x, local_propagator=PauseProp(backprop=backprop))
    manager.loss(y.sum(1)).backward()
    torch.testing.assert_close(theta.grad, torch.ones_like(theta))


def test_chains_nest(theta):
    class Attached(Propagator):
        def forward_impl(self, x, node=None, dist=None):
            return {"output": dist.rsample(), "register_node": False}

    chain = ChainProp([ChainProp([Attached(), PauseProp()]), PauseProp()])
    found = rolled_out(chain, theta, LossProp(baseline=False))
    torch.testing.assert_close(found, rolled_out(RPProp(), theta))
