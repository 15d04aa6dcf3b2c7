"""The manager: what it samples, what its loss is, and what it records."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from lightning_proppo import PropagationError, PropagationManager
from lightning_proppo.propagators import LRProp, Propagator, RPProp

from ..errors import all_that_it_says


@pytest.fixture
def theta():
    return torch.ones(1, dtype=torch.float64, requires_grad=True)


def normal(x):
    return Normal(x, 0.1)


def start(particles=4):
    return torch.zeros(particles, 1, dtype=torch.float64)


# -- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "describe",
    [
        lambda loc, scale: (loc, scale),
        lambda loc, scale: {"loc": loc, "scale": scale},
        lambda loc, scale: lambda x: {"loc": 0 * x, "scale": scale},
    ],
    ids=["sequence", "mapping", "function of x"],
)
def test_the_forms_of_dist_params(describe):
    manager = PropagationManager(RPProp(dist_class=Normal))
    x = start().requires_grad_()
    torch.manual_seed(1)
    y = manager.forward(x, dist_params=describe(start(), 0.1))
    torch.manual_seed(1)
    torch.testing.assert_close(y, normal(x).rsample())


def test_get_node_returns_the_node_just_made():
    manager = PropagationManager("LR")
    x, node = manager.forward(None, dist=normal(start()), get_node=True)
    assert node is manager.nodes[-1]
    assert node["output"] is x


def test_get_node_returns_a_node_that_is_not_registered():
    manager = PropagationManager(RPProp(detach=False))
    x, node = manager.forward(None, dist=normal(start()), get_node=True)
    assert node["output"] is x
    assert manager.size() == 1  # only the terminal node


# -- losses --------------------------------------------------------------------------------------


def test_the_value_is_the_mean_over_particles_of_the_summed_costs(theta):
    manager = PropagationManager("RP")
    x = manager.sample(normal(start() + theta))
    y = manager.sample(normal(x))
    manager.append_loss(x.square())
    value = manager.loss(y.square().squeeze(1))
    torch.testing.assert_close(value, x.square().mean() + y.square().mean())


def test_lr_takes_costs_without_a_graph(theta):
    manager = PropagationManager("LR")
    x = manager.sample(normal(start() + theta))
    manager.loss(torch.as_tensor(x.numpy() ** 2)).backward()
    assert theta.grad.abs() > 0


def test_a_cost_that_depends_on_a_parameter_directly_has_its_gradient_with_lr(theta):
    manager = PropagationManager("LR")
    x = manager.sample(normal(start()))
    manager.loss(x.square().squeeze(1) + 3.0 * theta).backward()
    torch.testing.assert_close(theta.grad, torch.full_like(theta, 3.0))


def test_backward_inside_a_backward_pass_is_refused(theta):
    manager, inner = PropagationManager("RP"), PropagationManager("RP")

    class Nesting(Propagator):
        def backward_impl(self, node, message):
            inner.backward(inner.sample(normal(start() + theta)).square())

    manager.forward(None, local_propagator=Nesting())
    with pytest.raises(PropagationError, match="running already"):
        manager.backward()


# -- what is recorded ----------------------------------------------------------------------------


def test_nothing_is_recorded_without_grad(theta):
    manager = PropagationManager("TP")
    with torch.no_grad():
        x = manager.sample(normal(start() + theta))
        assert not x.requires_grad
        value = manager.loss(x.square())
    torch.testing.assert_close(value, x.square().mean())
    assert not value.requires_grad
    assert manager.recorded == 0
    assert manager.size() == 1


def test_backward_leaves_nodes_to_be_looked_at_until_the_next_rollout(theta):
    manager = PropagationManager(LRProp())
    manager.backward(manager.sample(normal(start() + theta)).square())
    assert manager.size() == 3
    manager.sample(normal(start() + theta))
    assert manager.size() == 2
    manager.reset()
    manager.backward(manager.sample(normal(start() + theta)).square(), clear_nodes=True)
    assert manager.size() == 1


def test_nodes_of_an_abandoned_rollout_before_an_update_are_named():
    matrix = torch.ones(3, 3, requires_grad=True)
    manager = PropagationManager("LR")
    manager.sample(normal((torch.ones(4, 3) @ matrix).tanh() @ matrix))
    with torch.no_grad():
        matrix.add_(1.0)
    x = manager.sample(normal(torch.ones(4, 3) @ matrix))
    loss = manager.loss(x.square().sum(1))
    with pytest.raises(RuntimeError) as caught:
        loss.backward()
    assert "call manager.reset()" in all_that_it_says(caught.value)
