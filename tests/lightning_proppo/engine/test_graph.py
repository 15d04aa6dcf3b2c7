"""Cutting the graph, finding leaves, and pulling cotangents through one segment."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal

import lightning_proppo.engine.graph as graph
from lightning_proppo import PropagationError, PropagationManager
from lightning_proppo.engine.backward_pass import BackwardPass, activate, active_pass
from lightning_proppo.engine.cuts import cut, is_cut, mark_cut, tape_of
from lightning_proppo.engine.graph import (
    LeafIndex,
    find_leaves,
    hooks_muted,
    vector_jacobian_product,
)
from lightning_proppo.propagators import ChainProp, PauseProp, RPProp
from lightning_proppo.propagators.backprop import back_propagate


def leaf(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def ids(tensors):
    return sorted(id(t) for t in tensors)


# -- cuts ----------------------------------------------------------------------------------------


def test_a_cut_is_a_new_leaf_with_the_same_numbers():
    x = leaf(3) * 2.0
    y = cut(x)
    assert y.is_leaf
    assert y.requires_grad
    assert y.data_ptr() == x.data_ptr()
    assert is_cut(y)
    assert not is_cut(x)
    assert tape_of(y) is None


def test_a_cut_of_a_cut_is_another_leaf():
    first = cut(leaf(3) * 2.0)
    second = cut(first)
    assert second is not first
    second.grad = torch.ones(3, dtype=torch.float64)
    assert first.grad is None


def test_a_cut_of_a_parameter_leaves_the_parameter_alone():
    weight = nn.Parameter(torch.ones(3))
    assert not is_cut(weight) and is_cut(cut(weight))  # noqa: PT018
    assert weight.requires_grad


@pytest.mark.parametrize(
    "make",
    [
        lambda x: cut(x, requires_grad=False),
        lambda x: cut((10 * x).long()),
        lambda x: no_grad_cut(x),
    ],
)
def test_a_cut_that_needs_no_cotangent_is_only_detached(make):
    y = make(leaf(3) * 2.0)
    assert not y.requires_grad
    assert not is_cut(y)


@torch.no_grad()
def no_grad_cut(x):
    return cut(x)


def test_a_gradient_that_would_end_at_a_cut_is_refused():
    theta = leaf(2)
    manager = PropagationManager(RPProp())
    x = manager.sample(Normal(theta.expand(4, 2), 1.0))
    with pytest.raises(PropagationError, match=r"shape \[4, 2\].*would be lost"):
        x.sum().backward()
    assert x.grad is None
    manager.loss(x.sum(1)).backward()  # the rollout has not been hurt
    torch.testing.assert_close(theta.grad, torch.ones(2, dtype=torch.float64))


def test_a_cut_that_belongs_to_no_tape_collects_gradients():
    x = cut(leaf(3) * 2.0)
    x.sum().backward()
    assert torch.equal(x.grad, torch.ones(3, dtype=torch.float64))


def test_marking_twice_registers_one_hook():
    x = cut(leaf(3) * 2.0)
    for _ in range(3):
        mark_cut(x, None)
    assert len(x._post_accumulate_grad_hooks) == 1


# -- leaves --------------------------------------------------------------------------------------


def test_all_leaves_are_found_once():
    a, b, c, unused = leaf(3), leaf(3), leaf(3), leaf(3)
    y = (a * b).sin() + a.exp() * cut(c * 2.0)
    found = find_leaves([y.grad_fn, (b * 2.0).grad_fn, None])
    assert len(found) == 3
    assert {id(a), id(b)} < {id(t) for t in found}
    assert id(unused) not in {id(t) for t in found}
    assert sum(is_cut(t) for t in found) == 1
    assert find_leaves([]) == []


def test_a_deep_graph_is_walked_without_recursion():
    x = a = leaf(1)
    for _ in range(20_000):
        x = x + 1.0
    assert ids(find_leaves([x.grad_fn])) == ids([a])


def test_a_graph_with_many_paths_is_walked_in_linear_time():
    x = a = leaf(1)
    for _ in range(200):
        x = x + x  # 2^200 paths
    assert ids(find_leaves([x.grad_fn])) == ids([a])


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=15))
def test_the_leaves_are_those_that_autograd_reaches(pairs):
    """Random graphs on four leaves: each new tensor combines two earlier ones."""
    leaves = [leaf(2) for _ in range(4)]
    tensors = list(leaves)
    for i, j in pairs:
        tensors.append(tensors[i % len(tensors)].tanh() * tensors[j % len(tensors)])
    answers = torch.autograd.grad(tensors[-1].sum(), leaves, allow_unused=True)
    expected = [t for t, answer in zip(leaves, answers, strict=True) if answer is not None]
    assert ids(LeafIndex().leaves([tensors[-1]])) == ids(expected)


def test_an_index_walks_each_graph_once(monkeypatch):
    walks = []
    walk = find_leaves
    monkeypatch.setattr(graph, "find_leaves", lambda f: walks.append(1) or walk(f))
    a, b = leaf(3), leaf(3)
    y, z = a * 2.0, a * b
    index = LeafIndex()
    index.add([y, z])
    for _ in range(3):
        assert ids(index.leaves([z])) == ids([a, b])
        assert ids(index.leaves([y, z])) == ids([a, b])
        assert id(a) in ids(index.leaves([y]))
    assert len(walks) == 1
    index.leaves([b * 2.0])
    assert len(walks) == 2
    index.clear()
    index.leaves([z])
    assert len(walks) == 3


def test_an_index_knows_leaves_themselves_and_constants():
    a, constant = leaf(3), torch.ones(3)
    index = LeafIndex()
    assert ids(index.leaves([a, constant, a])) == ids([a])
    assert ids(index.add([a, constant])) == ids([a])
    assert index.leaves([constant]) == []


def test_one_pass_walks_each_segment_once(monkeypatch):
    """H segments that share an encoder: H walks, and none of them in the backward pass."""
    walks = []
    walk = find_leaves
    monkeypatch.setattr(graph, "find_leaves", lambda f: walks.append(1) or walk(f))
    theta, encoder = leaf(2), leaf(2, 2)
    manager = PropagationManager("TP")
    code = torch.randn(5, 2, dtype=torch.float64) @ encoder
    x = torch.zeros(5, 2, dtype=torch.float64)
    for _ in range(4):
        x = manager.sample(Normal((x + code + theta).sin(), 0.1))
    manager.append_loss(x.square().sum(1))
    loss = manager.loss()
    forward = len(walks)
    loss.backward()
    assert forward == len(walks)
    assert forward <= manager.size() + 5


# -- products ------------------------------------------------------------------------------------


def test_a_product_is_the_jacobian_transposed_times_the_cotangent():
    a, b = leaf(3), leaf(4)
    matrix = torch.randn(4, 3, dtype=torch.float64)

    def function(a, b):
        return (matrix @ a.sin()) * b, a.prod() * b.sum()

    outputs = function(a, b)
    cotangents = [torch.randn_like(o) for o in outputs]
    found = vector_jacobian_product(outputs, cotangents, [a, b])
    jacobians = torch.autograd.functional.jacobian(function, (a, b))
    for k in range(2):
        expected = sum(
            torch.tensordot(c, j[k], dims=c.dim())
            for c, j in zip(cotangents, jacobians, strict=True)
        )
        torch.testing.assert_close(found[k], expected)


def test_outputs_without_graph_and_inputs_without_path_are_none():
    a, b = leaf(3), leaf(3)
    one = torch.ones(3, dtype=torch.float64)
    found = vector_jacobian_product([one, a * 2.0], [one, one], [a, b])
    assert torch.equal(found[0], 2.0 * one)
    assert found[1] is None
    assert vector_jacobian_product([one], [one], [a, b]) == [None, None]
    assert vector_jacobian_product([a * 2.0], [one], []) == []
    with pytest.raises(RuntimeError, match="1 tensors and 0 gradients"):
        vector_jacobian_product([a * 2.0], [], [a])


def test_without_the_private_function_of_pytorch_the_gradients_are_the_same(monkeypatch):
    a, b = leaf(3), leaf(3)
    outputs, inputs = [(a * b).sin(), a * 2.0], [b, a]
    cotangents = [torch.rand(3, dtype=torch.float64) for _ in outputs]
    found = vector_jacobian_product(outputs, cotangents, inputs)
    monkeypatch.setattr(graph, "_run_engine", None)
    expected = vector_jacobian_product(outputs, cotangents, inputs)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_a_graph_that_segments_share_may_be_pulled_through_again_and_again():
    """Plain autograd frees the encoder's graph after the first segment."""
    weight = leaf(2, 2)
    code = (torch.randn(5, 2, dtype=torch.float64) @ weight).tanh()
    segments = [(code * k).sin().sum() for k in (1.0, 2.0, 3.0)]
    one = torch.ones((), dtype=torch.float64)
    found = [vector_jacobian_product([s], [one], [weight])[0] for s in segments]
    (expected,) = torch.autograd.grad(sum(segments), weight)
    torch.testing.assert_close(sum(found), expected)


def test_products_leave_no_gradient_behind():
    a = leaf(3)
    vector_jacobian_product([a.sin()], [torch.ones(3, dtype=torch.float64)], [a])
    assert a.grad is None


def test_products_do_not_fire_hooks_and_leave_them_registered():
    a = leaf(3)
    fired = []
    handle = a.register_hook(lambda g: fired.append(g))
    a.register_post_accumulate_grad_hook(lambda t: fired.append(t))
    one = torch.ones(3, dtype=torch.float64)
    vector_jacobian_product([a * 2.0], [one], [a, a])  # named twice, as total propagation does
    assert fired == []
    (a * 2.0).sum().backward()
    assert len(fired) == 2
    handle.remove()
    (a * 2.0).sum().backward()
    assert len(fired) == 3


def test_hooks_come_back_after_an_exception():
    a, plain = leaf(3), leaf(3)
    a.register_hook(lambda g: 5.0 * g)

    def fail():
        with hooks_muted([a, plain]):
            assert not a._backward_hooks
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    (found,) = torch.autograd.grad(a.sum(), a)
    assert torch.equal(found, torch.full((3,), 5.0, dtype=torch.float64))


# -- the pass ------------------------------------------------------------------------------------


def test_a_pullback_deposits_in_grad_for_cuts_and_keeps_what_parameters_get():
    weight, state = leaf(3), cut(leaf(3) * 2.0)
    running = BackwardPass()
    one = torch.ones(3, dtype=torch.float64)
    running.pull([weight * state], [one])
    running.pull([weight * state], [2.0 * one])
    torch.testing.assert_close(state.grad, 3.0 * weight.detach())
    torch.testing.assert_close(running.gradients[id(weight)], 3.0 * state.detach())
    assert running.parameters[id(weight)] is weight
    assert weight.grad is None


def test_a_pullback_takes_leaves_themselves():
    weight, state = leaf(3), cut(leaf(3) * 2.0)
    one = torch.ones(3, dtype=torch.float64)
    running = BackwardPass()
    running.pull([weight, state, weight * 1.0], [one, 2.0 * one, 3.0 * one])
    assert torch.equal(running.gradients[id(weight)], 4.0 * one)
    assert torch.equal(state.grad, 2.0 * one)


def test_sums_are_made_anew_and_the_cotangents_given_stay_as_they_are():
    weight = leaf(3)
    one = torch.ones(3, dtype=torch.float64)
    running = BackwardPass()
    for _ in range(3):
        running.deposit(weight, one)
    assert torch.equal(one, torch.ones(3, dtype=torch.float64))
    assert torch.equal(running.gradients[id(weight)], 3.0 * one)


def test_a_gradient_with_a_graph_is_deposited_without_it():
    weight, state = leaf(3), cut(leaf(3) * 2.0)
    running = BackwardPass()
    for target in (weight, state):
        running.deposit(target, leaf(3) * 2.0)
    assert not running.gradients[id(weight)].requires_grad
    assert not state.grad.requires_grad


def test_a_deferred_pass_goes_through_the_graph_once_and_finds_the_same():
    weight = leaf(3)
    calls = []

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2.0

        @staticmethod
        def backward(ctx, g):
            calls.append(1)
            return 2.0 * g

    shared = Counted.apply(weight)
    one = torch.ones(3, dtype=torch.float64)
    found = []
    for defer in (False, True):
        calls.clear()
        running = BackwardPass(defer=defer)
        for k in range(4):
            running.pull([shared * float(k + 1)], [one])
        assert len(calls) == (0 if defer else 4)
        running.finish()
        running.finish()  # a second time there is nothing left
        assert len(calls) == (1 if defer else 4)
        found.append(running.gradients[id(weight)])
    assert torch.equal(*found)
    assert torch.equal(found[0], 20.0 * one)


def test_a_pass_notes_values_without_their_graph():
    running = BackwardPass()
    for value in (1.0, 2.0):
        running.note("weight", leaf(1) * 0.0 + value)
    assert [float(v) for v in running.statistics["weight"]] == [1.0, 2.0]
    assert not any(v.requires_grad for v in running.statistics["weight"])


def test_the_active_pass_is_the_innermost_and_ends_with_its_block():
    outer, inner = BackwardPass(), BackwardPass()
    assert active_pass() is None
    with activate(outer):
        with activate(inner):
            assert active_pass() is inner
        assert active_pass() is outer
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(active_pass()))
        thread.start()
        thread.join()
        assert elsewhere == [None]
    assert active_pass() is None


def test_back_propagation_goes_to_the_active_pass_or_straight_to_grad():
    weight = leaf(3)
    one = torch.ones(3, dtype=torch.float64)
    running = BackwardPass()
    with activate(running):
        back_propagate([weight * 2.0, weight * 3.0, one], [one, None, one])
    assert weight.grad is None
    assert torch.equal(running.gradients[id(weight)], 2.0 * one)
    back_propagate([weight * 2.0], [one])
    assert torch.equal(weight.grad, 2.0 * one)
    back_propagate([], [])


# -- cuts that follow each other without anything between ------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_a_cut_of_a_cut_starts_from_nothing_in_a_second_pass(nested):
    """The first cut is reached by no graph, only by the second one's node."""
    theta = leaf(2)
    chain = ChainProp([RPProp(), PauseProp()])
    manager = PropagationManager(chain if nested else RPProp())
    x = torch.zeros(4, 2, dtype=torch.float64)
    for _ in range(2):
        x = manager.sample(Normal((x + theta).sin(), 0.1))
        if not nested:
            x = manager.forward(x, local_propagator=PauseProp())
    loss = manager.loss(x.square().sum(1))
    first, second, third = (
        torch.autograd.grad(loss, theta, retain_graph=True)[0] for _ in range(3)
    )
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_a_sample_that_is_the_cost_itself_starts_from_nothing_in_a_second_pass():
    theta = leaf(1)
    manager = PropagationManager(RPProp())
    loss = manager.loss(manager.sample(Normal(theta.expand(4, 1), 0.1)))
    for _ in range(2):
        (found,) = torch.autograd.grad(loss, theta, retain_graph=True)
        torch.testing.assert_close(found, torch.ones(1, dtype=torch.float64))


def test_pausing_a_sample_of_another_rollout_is_refused():
    """Its gradient would end there without a word."""
    theta = leaf(1)
    manager = PropagationManager(RPProp())
    x = manager.sample(Normal(theta.expand(4, 1), 0.1))
    manager.loss(x.square()).backward()
    y = manager.forward(x, local_propagator=PauseProp())
    with pytest.raises(PropagationError, match="another rollout"):
        manager.loss(y.square())
    z = manager.forward(x.detach() * theta, local_propagator=PauseProp())
    manager.loss(z.square()).backward()
