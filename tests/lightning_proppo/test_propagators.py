"""Propagators where something is missing: costs, gradients, parameters, their composite."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from lightning_proppo import PropagationError, PropagationManager, expand
from lightning_proppo.containers import Container, Message, Node
from lightning_proppo.propagators import (
    BackPropagator,
    ChainProp,
    ComboProp,
    LossProp,
    LRBase,
    LRProp,
    PauseBase,
    Propagator,
    ResampleBase,
    RPBase,
    RPProp,
    TotalProp,
    TPBase,
)
from lightning_proppo.tape import Tape

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


# -- the tape ------------------------------------------------------------------------------------


class Says(Propagator):
    def __init__(self, say=None, **kwargs):
        super().__init__(**kwargs)
        self.say = say or {}

    def forward_impl(self, x, node=None, ahead=None):
        seen = None if node.get("inbox") is None else dict(node["inbox"].items())
        return {"output": seen, **({} if ahead is None else {"forward_message": ahead})}

    def backward_impl(self, node, message):
        return self.say

    def onward_impl(self, node, message):
        node["heard"] = dict(message.items())
        return self.say


def test_messages_that_leave_the_tape_are_kept_apart_by_how_far_they_go():
    tape = Tape()
    tape.record(None, Says({"a": 1, "targets": -2}))
    tape.record(None, Says({"b": 2, "targets": [-2, -3]}))
    remaining = tape.run()
    found = {target: dict(part.items()) for target, part in remaining.messages()}
    assert found == {-1: {"b": 2}, -2: {"b": 2, "a": 1}}


def test_what_leaves_at_the_near_end_is_gone():
    tape = Tape()
    tape.record(None, Says({"a": 1, "targets": 5}))
    assert len(tape.run()) == 0


def test_a_message_passes_through_an_empty_tape():
    message = Message({"a": 1}, target=-3)
    assert Tape().run(message=message) is message
    assert dict(Tape().run(message=Container(a=1)).items()) == {"a": 1}


def test_a_node_without_a_propagator_is_named():
    tape = Tape()
    tape.record(None, Says())
    tape.nodes.append(Node())
    with pytest.raises(PropagationError, match="node 1 of the tape has no propagator"):
        tape.run()


def test_forward_messages_add_up_and_may_look_back():
    manager = PropagationManager(Says())
    manager.forward(None, ahead=Message({"a": 1}, target=(1, 2)))
    assert manager.forward(None, ahead={"b": 2}) == {"a": 1}
    assert manager.forward(None, ahead=Message({"back": 3}, target=-1)) == {"a": 1, "b": 2}
    assert dict(manager.nodes[2].messages.items()) == {"back": 3}
    assert manager.forward(None) is None


@pytest.mark.parametrize(
    "says",
    [
        [{"a": 1}, {"b": 2, "targets": 1}],
        [{"a": 1, "targets": 1}, {"b": 2}],
        [{"a": 1, "targets": 1}, {"b": 2, "targets": 1}],
        [None, [{"a": 1}, {"b": 2}]],
    ],
)
def test_computations_that_run_onward_send_one_message_to_the_node_after(says):
    manager = PropagationManager(Says(), terminal_propagator=None)
    manager.forward(None, local_propagator=ComboProp([Says(s) for s in says]))
    manager.forward(None)
    manager.trigger("onward", reverse=False)
    assert manager.nodes[1]["heard"] == {"a": 1, "b": 2}


def test_a_computation_may_send_nothing_at_all():
    tape = Tape()
    for nothing in (None, [], {}, Message()):
        tape.record(None, Says(nothing))
    assert len(tape.run()) == 0


def test_a_node_may_force_its_messages_to_several_targets():
    manager = PropagationManager(Says(), terminal_propagator=None)
    for _ in range(2):
        manager.forward(None)
    manager.forward(None, local_propagator=Says({"a": 1, "targets": -1}), force_targets=[-2, 0])
    manager.trigger("onward")
    assert [node["heard"] for node in manager.nodes] == [{"a": 1}, {}, {}]
    assert dict(manager.nodes[2].messages.items()) == {"a": 1}


@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_tape_counts_its_own_terminal_node_apart(length):
    tape = Tape(BackPropagator())
    for _ in range(length):
        tape.record(None, Says())
    assert len(tape) == length + 1
    assert tape.recorded == tape.calls == length
    tape.release()
    assert len(tape) == 0
