"""Baselines: closed forms, and that LR uses the leave-one-out one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from lightning_proppo import PropagationManager, expand, mean_baseline, no_baseline
from lightning_proppo.containers import Container
from lightning_proppo.mathematics.cotangents import lr_cotangent
from lightning_proppo.propagators import BaselineProp, LossProp, LRProp, TotalProp

losses = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=9)


@given(losses)
def test_from_each_loss_the_mean_of_the_others_is_subtracted(values):
    column = torch.tensor(values, dtype=torch.float64).unsqueeze(1)
    found = mean_baseline(column).squeeze(1).tolist()
    for i, value in enumerate(values):
        others = values[:i] + values[i + 1 :]
        assert found[i] == pytest.approx(value - sum(others) / len(others), rel=1e-9, abs=1e-6)


@given(losses, st.floats(-1e3, 1e3))
def test_a_constant_on_all_losses_changes_nothing(values, constant):
    column = torch.tensor(values, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(
        mean_baseline(column + constant), mean_baseline(column), rtol=1e-9, atol=1e-6
    )


@given(losses)
def test_it_is_the_mean_of_all_up_to_a_factor(values):
    column = torch.tensor(values, dtype=torch.float64)
    count = len(values)
    expected = (column - column.mean()) * count / (count - 1)
    torch.testing.assert_close(mean_baseline(column), expected, rtol=1e-9, atol=1e-6)


def test_a_particles_baseline_does_not_depend_on_it():
    column = torch.randn(5, 1, dtype=torch.float64)
    changed = column.clone()
    changed[2] += 100.0
    before, after = column - mean_baseline(column), changed - mean_baseline(changed)
    torch.testing.assert_close(before[2], after[2])
    assert bool((before[[0, 1, 3, 4]] != after[[0, 1, 3, 4]]).all())


def test_the_losses_are_not_changed_and_carry_no_graph():
    column = torch.randn(5, 1, requires_grad=True)
    before = column.detach().clone()
    found = mean_baseline(column)
    assert not found.requires_grad
    assert torch.equal(column, before)


def test_without_baseline_the_losses_stay_as_they_are():
    column = torch.randn(5, 1)
    assert no_baseline(column) is column
    assert no_baseline(column, Container()) is column


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_shapes_are_kept(shape):
    assert mean_baseline(torch.randn(shape)).shape == shape


# -- in use --------------------------------------------------------------------------------------


def by_hand(mu, noise, centre, sigma=0.5):
    """mean_i (f_i - b_i) (x_i - mu) / sigma^2 for f = exp(x), with b from ``centre``."""
    x = mu.detach() + sigma * noise
    f = x.exp().sum(1, keepdim=True)
    return (centre(f) * (x - mu.detach()) / sigma**2).mean(0)


def lr_gradient(propagator, loss_propagator=None):
    mu = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    manager = PropagationManager(propagator, loss_propagator)
    torch.manual_seed(0)
    x = manager.sample(Normal(mu.expand(6, 2), 0.5))
    manager.loss(x.exp().sum(1)).backward()
    torch.manual_seed(0)
    noise = torch.normal(torch.zeros(6, 2, dtype=torch.float64), 1.0)
    torch.testing.assert_close(x.detach(), mu.detach() + 0.5 * noise)
    return mu, noise


@pytest.mark.parametrize("propagator", ["LR", LRProp()])
def test_lr_subtracts_the_leave_one_out_baseline_by_default(propagator):
    mu, noise = lr_gradient(propagator)

    def leave_one_out(f):
        rows = [f[i] - torch.cat([f[:i], f[i + 1 :]]).mean() for i in range(6)]
        return torch.stack(rows)

    torch.testing.assert_close(mu.grad, by_hand(mu, noise, leave_one_out))
    for other in (lambda f: f, lambda f: f - f.mean()):
        assert not torch.allclose(mu.grad, by_hand(mu, noise, other))


@pytest.mark.parametrize(
    "propagator",
    [LRProp(baseline=False), LRProp(baseline={"baseline_func": no_baseline, "on": True})],
)
def test_the_baseline_can_be_left_out(propagator):
    mu, noise = lr_gradient(propagator)
    torch.testing.assert_close(mu.grad, by_hand(mu, noise, lambda f: f))


def test_the_baseline_may_be_subtracted_at_the_loss_instead():
    mu, noise = lr_gradient(LRProp(baseline=False), LossProp())
    torch.testing.assert_close(mu.grad, by_hand(mu, noise, mean_baseline))


def test_total_propagation_subtracts_it_too():
    """With all of its weight on LR it is LR."""
    mu = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    manager = PropagationManager(TotalProp(base={"var_weighting_func": lambda lr, rp: (1.0, 0.0)}))
    each = expand(mu, 6)
    torch.manual_seed(0)
    x = manager.sample(Normal(each, 0.5), ivw_target=each)
    manager.loss(x.exp().sum(1)).backward()
    noise = (x.detach() - mu.detach()) / 0.5
    torch.testing.assert_close(mu.grad, by_hand(mu, noise, mean_baseline))


@pytest.mark.parametrize(
    "functions", [mean_baseline, [mean_baseline], (no_baseline, mean_baseline)]
)
def test_a_baseline_propagator_adds_the_baselined_loss_to_the_message(functions):
    column = torch.randn(5, 1, dtype=torch.float64)
    message = Container(local_loss=column, other=1)
    sent = BaselineProp(functions).backward(Container(), message)
    torch.testing.assert_close(sent["baselined_loss"], mean_baseline(column))
    assert message["local_loss"] is column


def test_a_baseline_function_sees_the_node():
    node = Container(offset=3.0)
    prop = BaselineProp(lambda losses, node: losses - node["offset"])
    sent = prop.backward(node, Container(local_loss=torch.full((2, 1), 5.0)))
    assert sent["baselined_loss"].tolist() == [[2.0], [2.0]]


def test_a_baseline_is_of_the_sum_from_its_own_step_on():
    """What a later sample has subtracted is not used at an earlier one."""
    mu = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    manager = PropagationManager(LRProp(baseline=False))
    x = manager.sample(Normal(mu.expand(6, 2), 0.5))
    manager.append_loss(x.exp().sum(1))
    y = manager.sample(Normal(torch.zeros_like(x), 0.5), local_propagator=LRProp())
    manager.append_loss(y.square().sum(1))
    manager.loss().backward()
    total = (x.exp() + y.square()).sum(1, keepdim=True)
    torch.testing.assert_close(mu.grad, (total * (x - mu.detach()) / 0.5**2).mean(0))


# -- the cotangent that the losses become --------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2)])
def test_the_cotangent_gives_the_mean_of_loss_times_score(shape):
    mu = torch.randn(shape[1:], dtype=torch.float64, requires_grad=True)
    x = torch.randn(shape, dtype=torch.float64)
    column = torch.randn(5, 1, dtype=torch.float64)
    log_prob = Normal(mu.expand(shape), 0.7).log_prob(x)
    (found,) = torch.autograd.grad(log_prob, mu, lr_cotangent(column, log_prob))
    expected = sum(float(column[i]) * (x[i] - mu.detach()) / 0.7**2 for i in range(5)) / 5
    torch.testing.assert_close(found, expected)
    flat = lr_cotangent(column.squeeze(1), log_prob)
    assert torch.equal(flat, lr_cotangent(column, log_prob))
    assert flat.shape == log_prob.shape


def test_the_cotangent_takes_the_precision_of_the_density():
    log_prob = torch.zeros(5, 2)
    assert lr_cotangent(torch.ones(5, 1, dtype=torch.float64), log_prob).dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (4,), (1, 5)])
def test_the_cotangent_needs_one_loss_for_each_particle(shape):
    with pytest.raises(ValueError, match="one cost for each particle; got 5 costs"):
        lr_cotangent(torch.ones(5, 1), torch.zeros(shape))


def test_functions_are_applied_from_the_last_to_the_first():
    propagator = BaselineProp([lambda x, node: 2 * x, lambda x, node: x + 1])
    message = Container({"local_loss": torch.ones(3, 1)})
    assert propagator.backward_impl(None, message)["baselined_loss"].tolist() == [[4.0]] * 3


def test_other_losses_get_another_baseline():
    """Also where what changed them has left the old one in the message."""
    propagator = BaselineProp()
    message = Container({"local_loss": torch.tensor([[0.0], [2.0]])})
    message.update(propagator.backward_impl(None, message))
    assert propagator.backward_impl(None, message) is None  # known
    message["local_loss"] = torch.tensor([[0.0], [4.0]])
    assert propagator.backward_impl(None, message)["baselined_loss"].tolist() == [[-4.0], [4.0]]
