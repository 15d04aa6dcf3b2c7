"""The manager and its tape: nodes, names, targets, messages both ways, and other computations."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal

from lightning_proppo import PropagationError, PropagationManager, no_baseline
from lightning_proppo.containers import Listed, Message
from lightning_proppo.propagators import (
    BackPropagator,
    ChainProp,
    ComboProp,
    GRProp,
    GSLoss,
    LossProp,
    LRProp,
    PauseProp,
    Propagator,
    RPProp,
    SkipProp,
    SumBase,
    TotalProp,
)

from ..errors import all_that_it_says


class Recorder(Propagator):
    """Writes its messages' contents into a list and sends what it is told to."""

    def __init__(self, log, name, send=None):
        super().__init__()
        self.log = log
        self.name = name
        self.send = send if send is not None else {}

    def forward_impl(self, x, node=None):
        return {"output": x}

    def backward_impl(self, node, message):
        self.log.append((self.name, dict(message.items())))
        return self.send


def chain(log, sends, terminal=True):
    manager = PropagationManager(
        Recorder(log, "default"),
        terminal_propagator=Recorder(log, "terminal") if terminal else None,
    )
    for i, send in enumerate(sends):
        manager.forward(None, local_propagator=Recorder(log, i, send))
    return manager


def normal(x, scale=0.1):
    return Normal(x, scale)


# -- targets -------------------------------------------------------------------------------------


def test_default_target_is_the_node_before():
    log = []
    chain(log, [{"a": 0}, {"a": 1}, {"a": 2}]).backward()
    assert log == [(2, {}), (1, {"a": 2}), (0, {"a": 1}), ("terminal", {"a": 0})]


def test_a_message_may_name_its_target():
    log = []
    chain(log, [{}, {}, {"a": 2, "targets": -2}]).backward()
    assert log == [(2, {}), (1, {}), (0, {"a": 2}), ("terminal", {})]


def test_a_message_may_have_several_targets():
    log = []
    chain(log, [{}, {}, {"a": 2, "targets": [-1, -2]}]).backward()
    assert log[1:3] == [(1, {"a": 2}), (0, {"a": 2})]


def test_targets_resolve_force_then_message_then_node():
    class WithTargets(Recorder):
        def forward_impl(self, x, node=None):
            return {"output": x, "targets": -3}

    for force, own, expected in ((-1, -2, 1), (None, -2, 0), (None, None, "terminal")):
        log = []
        manager = PropagationManager(
            Recorder(log, "default"), terminal_propagator=Recorder(log, "terminal")
        )
        for i in range(2):
            manager.forward(None, local_propagator=Recorder(log, i))
        send = {"a": 2} if own is None else {"a": 2, "targets": own}
        manager.forward(None, local_propagator=WithTargets(log, 2, send), force_targets=force)
        manager.backward()
        assert [name for name, content in log if content] == [expected]


def test_messages_that_leave_the_tape_are_returned():
    log = []
    manager = chain(log, [{"a": 0}, {}], terminal=False)
    assert dict(manager.backward().items()) == {"a": 0}


def test_a_message_given_to_backward_reaches_the_last_node():
    log = []
    chain(log, [{}, {}]).backward(message={"hello": 1})
    assert log[0] == (1, {"hello": 1})


def test_wrong_targets_are_an_error():
    with pytest.raises(TypeError, match="targets must be an int"):
        chain([], [{}, {"a": 1, "targets": "before"}]).backward()


def test_a_propagator_that_returns_nonsense_is_named():
    class Nonsense(Propagator):
        def backward_impl(self, node, message):
            return 3

    manager = PropagationManager(Nonsense())
    manager.forward(None)
    with pytest.raises(TypeError, match=r"Nonsense.*must return a message"):
        manager.backward()
    manager.forward(None)  # usable
    assert manager.size() == 2


# -- forward messages, next propagator, other computations ---------------------------------------


def test_forward_messages_reach_the_next_node():
    class Teller(Propagator):
        def forward_impl(self, x, node=None):
            return {"output": x, "forward_message": {"told": x}}

    class Listener(Propagator):
        def forward_impl(self, x, node=None):
            inbox = node.get("inbox")
            return {"output": None if inbox is None else inbox["told"]}

    manager = PropagationManager(Listener())
    manager.forward(7, local_propagator=Teller())
    assert manager.forward(None) == 7
    assert manager.forward(None) is None


def test_forward_messages_may_skip_nodes():
    class Teller(Propagator):
        def forward_impl(self, x, node=None):
            return {"output": x, "forward_message": Message({"told": x}, target=2)}

    class Listener(Propagator):
        def forward_impl(self, x, node=None):
            return {"output": "inbox" in node}

    manager = PropagationManager(Listener())
    manager.forward(7, local_propagator=Teller())
    assert [manager.forward(None) for _ in range(3)] == [False, True, False]


def test_forward_may_choose_the_next_propagator():
    log = []

    class Chooser(Propagator):
        def forward_impl(self, x, node=None):
            return {"output": x, "next_propagator": "special"}

    manager = PropagationManager(Recorder(log, "default"))
    manager.add_propagator("special", Recorder(log, "special"))
    manager.forward(None, local_propagator=Chooser())
    manager.forward(None)
    manager.forward(None)
    manager.backward()
    assert [name for name, _ in log] == ["default", "special"]


def test_other_computations_run_over_the_graph_in_both_directions():
    class Counter(Propagator):
        def forward_impl(self, x, node=None):
            return {"output": x, "value": x}

        def tally_impl(self, node, message):
            node["seen"] = message.get("sum", 0)
            return {"sum": message.get("sum", 0) + node["value"]}

    manager = PropagationManager(Counter(), terminal_propagator=None)
    for x in (1, 2, 3):
        manager.forward(x)
    assert manager.trigger("tally")["sum"] == 6
    assert [node["seen"] for node in manager.nodes] == [5, 3, 0]
    assert manager.trigger("tally", reverse=False)["sum"] == 6
    assert [node["seen"] for node in manager.nodes] == [0, 1, 3]
    assert manager.trigger("tally", message={"sum": 10})["sum"] == 16


def test_other_computations_reach_into_sequences_and_chains():
    class Counter(Propagator):
        def forward_impl(self, x, node=None):
            return {"output": x}

        def tally_impl(self, node, message):
            return {"sum": message.get("sum", 0) + 1}

    manager = PropagationManager(
        ChainProp([Counter(), ComboProp([Counter(), Counter()])]), terminal_propagator=None
    )
    manager.forward(1)
    manager.forward(1)
    assert manager.trigger("tally")["sum"] == 6


def test_unknown_computations_are_an_error():
    manager = PropagationManager("RP")
    with pytest.raises(ValueError, match="tally_impl"):
        manager.trigger("tally")
    with pytest.raises(ValueError, match=r"manager\.backward"):
        manager.trigger("backward")


def test_messages_wait_in_the_mailbox_for_a_later_computation():
    class Mailer(Propagator):
        def forward_impl(self, x, node=None):
            return {"output": x}

        def first_impl(self, node, message):
            return {"note": 1, "targets": 0}

        def second_impl(self, node, message):
            node["read"] = message.get("note")
            return {}

    manager = PropagationManager(Mailer())
    manager.forward(None)
    manager.trigger("first")
    manager.trigger("second")
    assert manager.nodes[-1]["read"] == 1


# -- the faults of the prototype -----------------------------------------------------------------


def test_get_node_returns_the_node_just_made():
    manager = PropagationManager("LR")
    x, node = manager.forward(None, dist=normal(torch.zeros(5, 2)), get_node=True)
    assert node is manager.nodes[-1]
    assert node["output"] is x


def test_get_node_returns_a_node_that_is_not_registered():
    manager = PropagationManager(RPProp(detach=False))
    x, node = manager.forward(None, dist=normal(torch.zeros(5, 2)), get_node=True)
    assert node["output"] is x
    assert manager.size() == 1


def test_a_shorter_rollout_does_not_process_nodes_of_a_longer_one():
    theta = torch.zeros(1, requires_grad=True)
    log = []

    class Counting(LRProp):
        def backward_impl(self, node, message):
            log.append(1)
            return super().backward_impl(node, message)

    manager = PropagationManager(Counting())
    for horizon in (7, 3, 5):
        x = torch.zeros(4, 1)
        for _ in range(horizon):
            x = manager.sample(normal(x + theta))
        log.clear()
        manager.backward(x.square())
        assert len(log) == horizon


def test_the_cost_of_a_node_is_not_changed_by_the_pass():
    manager = PropagationManager("RP")
    theta = torch.ones(1, requires_grad=True)
    x = torch.zeros(4, 1)
    given = []
    for _ in range(3):
        x = manager.sample(normal(x + theta))
        cost = x.square().sum(1)
        manager.append_loss(cost)
        given.append((cost, cost.detach().clone()))
    manager.loss().backward()
    for cost, before in given:
        assert torch.equal(cost, before)


def test_no_defaults_are_shared():
    first, second = PropagationManager(), PropagationManager()
    assert first.default_propagator is not second.default_propagator
    assert first.terminal_propagator is not second.terminal_propagator
    one, two = TotalProp(), TotalProp()
    assert all(a is not b for a, b in zip(one.propagators, two.propagators, strict=True))
    assert one.default_forward_kwargs is not two.default_forward_kwargs


def test_nothing_is_recorded_without_grad():
    manager = PropagationManager("TP")
    theta = torch.ones(1, requires_grad=True)
    with torch.no_grad():
        x = manager.sample(normal(torch.zeros(4, 1) + theta))
        assert not x.requires_grad
        value = manager.loss(x.square())
        assert torch.isclose(value, x.square().mean())
        assert not value.requires_grad
    assert manager.recorded == 0
    assert manager.size() == 1
    x = manager.sample(normal(torch.zeros(4, 1) + theta))
    manager.loss(x.square()).backward()
    assert theta.grad is not None


def test_an_evaluation_inside_a_rollout_leaves_it_alone():
    theta = torch.ones(1, requires_grad=True)
    results = []
    for evaluate in (False, True):
        torch.manual_seed(0)
        manager = PropagationManager("LR")
        x = manager.sample(normal(torch.zeros(4, 1) + theta))
        if evaluate:
            state = torch.get_rng_state()
            with torch.no_grad():
                y = manager.sample(normal(x))
                manager.append_loss(y.square())
                manager.loss()
            torch.set_rng_state(state)
        x = manager.sample(normal(x + theta))
        results.append(torch.autograd.grad(manager.loss(x.square()), theta)[0])
    assert torch.equal(*results)


def test_reset_forgets_an_abandoned_rollout():
    theta = torch.ones(1, requires_grad=True)
    manager = PropagationManager("LR")
    manager.sample(normal(torch.zeros(8, 1) + theta))
    manager.append_loss(torch.ones(8))
    manager.reset()
    torch.manual_seed(0)
    x = manager.sample(normal(torch.zeros(4, 1) + theta))
    found = torch.autograd.grad(manager.loss(x.square()), theta)[0]
    torch.manual_seed(0)
    fresh = PropagationManager("LR")
    x = fresh.sample(normal(torch.zeros(4, 1) + theta))
    assert torch.equal(found, torch.autograd.grad(fresh.loss(x.square()), theta)[0])


def test_rollout_context_forgets_on_an_exception():
    manager = PropagationManager("LR")

    def abandon():
        with manager.rollout():
            manager.sample(normal(torch.zeros(4, 1)))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        abandon()
    assert manager.recorded == 0


def test_nodes_of_an_abandoned_rollout_of_another_size_are_named():
    theta = torch.ones(1, requires_grad=True)
    manager = PropagationManager("LR")
    manager.sample(normal(torch.zeros(8, 1) + theta))
    x = manager.sample(normal(torch.zeros(4, 1) + theta))
    loss = manager.loss(x.square())
    with pytest.raises(ValueError, match="reset"):
        loss.backward()


def test_nodes_of_an_abandoned_rollout_before_an_update_are_named():
    theta = torch.ones(3, 3, requires_grad=True)
    manager = PropagationManager("RP")
    manager.default_propagator = LRProp()
    x = torch.ones(4, 3)
    manager.sample(normal((x @ theta).tanh() @ theta))
    with torch.no_grad():
        theta.add_(1.0)
    x = manager.sample(normal(x @ theta))
    loss = manager.loss(x.square().sum(1))
    with pytest.raises(RuntimeError) as caught:
        loss.backward()
    assert "call manager.reset()" in all_that_it_says(caught.value)


@pytest.mark.parametrize("name", ["RP", "LR", "TP", "GR"])
def test_misspelt_options_are_refused(name):
    manager = PropagationManager(name)
    with pytest.raises(TypeError, match="Did you mean 'dist_params'"):
        manager.forward(torch.zeros(4, 1), dist_class=Normal, dist_parms=(0.0, 1.0))
    assert manager.recorded == 0


def test_misspelt_constructor_arguments_are_refused():
    with pytest.raises(TypeError, match="Did you mean 'backprop'"):
        RPProp(backpropp=False)
    with pytest.raises(TypeError, match="Did you mean 'baseline'"):
        LRProp(baseline_func=no_baseline)
    with pytest.raises(TypeError, match="Did you mean 'k_interval'"):
        TotalProp(k_intervall=2)
    with pytest.raises(TypeError, match="Did you mean 'sum_loss'"):
        GSLoss(gs_loss={"sumloss": False})


@pytest.mark.parametrize("k_interval", [1, 2, 3, 100])
def test_k_interval(k_interval):
    theta = torch.ones(1, requires_grad=True, dtype=torch.float64)
    manager = PropagationManager(TotalProp(k_interval=k_interval))
    torch.manual_seed(0)
    x = torch.zeros(50, 1, dtype=torch.float64)
    for _ in range(6):
        x = manager.sample(normal((x + theta).sin()))
        manager.append_loss(x.square())
    manager.loss().backward()
    weights = torch.stack(manager.statistics["lr_weight"])
    assert len(weights) == 6
    assert len(weights.unique()) == -(-6 // k_interval)
    for i in range(6):
        assert weights[i] == weights[i - i % k_interval]


@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
def test_wrong_k_interval(value):
    with pytest.raises(ValueError, match="k_interval"):
        PropagationManager("TP").sample(normal(torch.zeros(4, 1)), k_interval=value)


def test_gaussian_resampling_with_gaussian_shaping_runs():
    torch.manual_seed(0)
    theta = torch.ones(1, requires_grad=True, dtype=torch.float64)
    manager = PropagationManager(GRProp(), loss_propagator=GSLoss())
    x = torch.zeros(100, 2, dtype=torch.float64)
    for _ in range(3):
        x = manager.sample(normal(x + theta))
        manager.append_loss(x, lossfunc=lambda x: x.square().sum(1))
    manager.loss().backward()
    # d/dtheta sum_t 2 (t theta)^2 = sum_t 4 t^2 theta
    assert torch.isclose(theta.grad, torch.tensor([56.0], dtype=torch.float64), rtol=0.05)


def test_graph_shared_between_segments_needs_no_pause():
    torch.manual_seed(0)
    encoder = torch.nn.Linear(2, 2).double()
    observation = torch.randn(20, 2, dtype=torch.float64)

    def rollout(sample, encode_once):
        torch.manual_seed(1)
        x, h = torch.zeros(20, 2, dtype=torch.float64), encoder(observation)
        for _ in range(4):
            h = h if encode_once else encoder(observation)
            skip = 0.5 * x
            x = sample(normal((x + h).tanh())) + skip
        return x.square().sum(1)

    for propagator in (RPProp(), LRProp(), TotalProp()):
        gradients = []
        for once in (True, False):
            manager = PropagationManager(propagator)
            loss = manager.loss(rollout(manager.sample, once))
            gradients.append(torch.autograd.grad(loss, list(encoder.parameters())))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)
    plain = rollout(lambda dist: dist.rsample(), True).mean()
    manager = PropagationManager(RPProp())
    ours = manager.loss(rollout(manager.sample, True))
    for a, b in zip(
        torch.autograd.grad(plain, list(encoder.parameters())),
        torch.autograd.grad(ours, list(encoder.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# -- losses --------------------------------------------------------------------------------------


def test_a_nested_second_loss_on_an_empty_tape():
    manager = PropagationManager("RP")
    theta = torch.ones(1, requires_grad=True)
    x = manager.sample(normal(torch.zeros(4, 1) + theta))
    first = manager.loss(x.square())
    with pytest.raises(PropagationError, match="nothing was recorded"):
        manager.loss(x.square())
    first.backward()
    assert theta.grad is not None


def test_loss_without_costs():
    manager = PropagationManager("RP")
    manager.sample(normal(torch.zeros(4, 1)))
    with pytest.raises(PropagationError, match="no costs"):
        manager.loss()
    assert manager.recorded == 0


@pytest.mark.parametrize("name", ["RP", "TP", "GR"])
def test_costs_without_a_graph(name):
    manager = PropagationManager(name)
    x = manager.sample(normal(torch.zeros(8, 1).requires_grad_() + 0.0))
    with pytest.raises(PropagationError, match="no graph"):
        manager.loss(x.detach().square())


def test_lr_takes_costs_without_a_graph():
    theta = torch.ones(1, requires_grad=True)
    manager = PropagationManager("LR")
    x = manager.sample(normal(torch.zeros(8, 1) + theta))
    manager.loss(torch.as_tensor(x.numpy() ** 2)).backward()
    assert theta.grad.abs() > 0


@pytest.mark.parametrize(
    ("costs", "error", "message"),
    [
        (torch.zeros(4, 2), ValueError, r"\[4, 2\]"),
        (torch.zeros(()), ValueError, r"shape \[\]"),
        (torch.zeros(0), ValueError, r"\[0, 1\]"),
        (torch.zeros(4, dtype=torch.int64), TypeError, "int64"),
        ([1.0, 2.0], TypeError, "list"),
        (None, PropagationError, "no costs"),
    ],
)
def test_wrong_costs_name_what_came(costs, error, message):
    manager = PropagationManager("LR")
    theta = torch.ones(1, requires_grad=True)
    manager.sample(normal(torch.zeros(4, 1) + theta))
    with pytest.raises(error, match=message):
        manager.loss(costs)
    x = manager.sample(normal(torch.zeros(4, 1) + theta))
    manager.loss(x.square()).backward()
    assert theta.grad is not None


def test_costs_with_another_number_of_particles():
    manager = PropagationManager("RP")
    x = manager.sample(normal(torch.ones(4, 1).requires_grad_() * 2))
    manager.append_loss(x.square())
    with pytest.raises(ValueError, match="same number of particles"):
        manager.append_loss(x[:2].square())


def test_one_particle_is_enough_for_rp_and_too_few_for_lr():
    theta = torch.ones(1, requires_grad=True)
    for name in ("RP", "LR", "TP"):
        manager = PropagationManager(name)
        x = manager.sample(normal(torch.zeros(1, 1) + theta))
        loss = manager.loss(x.square())
        if name == "RP":
            loss.backward()
        else:
            with pytest.raises(ValueError, match="at least 2 particles"):
                loss.backward()


def test_gaussian_shaping_asks_for_state_and_function():
    manager = PropagationManager("GS")
    with pytest.raises(TypeError, match="lossfunc"):
        manager.append_loss({"x": torch.arange(4.0)[:, None]})


def test_the_value_is_the_mean_over_particles_of_the_summed_costs():
    manager = PropagationManager("RP")
    x = manager.sample(normal(torch.ones(4, 1).requires_grad_() * 2))
    y = manager.sample(normal(x))
    manager.append_loss(x.square())
    value = manager.loss(y.square().squeeze(1))
    assert torch.isclose(value, x.square().mean() + y.square().mean())


def test_samples_of_another_rollout_are_refused():
    theta = torch.ones(1, requires_grad=True)
    manager = PropagationManager("TP")
    x = manager.sample(normal(torch.zeros(4, 1) + theta))
    first = manager.loss(x.square())
    x = manager.sample(normal(x + theta))
    with pytest.raises(PropagationError, match="another rollout"):
        manager.loss(x.square())
    first.backward()
    x = manager.sample(normal(x.detach() + theta))
    manager.loss(x.square()).backward()


def test_a_cost_that_depends_on_a_parameter_directly_has_its_gradient_with_lr():
    theta = torch.ones(1, requires_grad=True, dtype=torch.float64)
    manager = PropagationManager("LR")
    x = manager.sample(normal(torch.zeros(4, 1, dtype=torch.float64)))
    manager.loss(x.square().squeeze(1) + 3.0 * theta).backward()
    assert torch.isclose(theta.grad, torch.tensor([3.0], dtype=torch.float64))


# -- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RP", "TP"])
def test_distributions_without_rsample_need_lr(name):
    with pytest.raises(TypeError, match="use LR"):
        PropagationManager(name).sample(Bernoulli(torch.full((4, 1), 0.5)))


def test_discrete_samples_with_lr():
    torch.manual_seed(0)
    logits = torch.zeros(3, requires_grad=True, dtype=torch.float64)
    manager = PropagationManager("LR")
    action = manager.sample(Categorical(logits=logits.expand(2000, 3)))
    manager.loss((action == 1).double()).backward()
    expected = torch.tensor([-1.0, 2.0, -1.0], dtype=torch.float64) / 9
    torch.testing.assert_close(logits.grad, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"dist": "normal"}, TypeError),
        ({}, TypeError),
        ({"dist_class": Normal}, TypeError),
        ({"dist": Normal(0.0, 1.0), "dist_class": Normal}, TypeError),
        ({"dist_class": Normal, "dist_params": 3}, TypeError),
    ],
)
def test_incomplete_distributions(arguments, error):
    manager = PropagationManager("RP")
    with pytest.raises(error):
        manager.forward(torch.zeros(4, 1), **arguments)
    assert manager.recorded == 0


@pytest.mark.parametrize(
    "dist_params", [(0.0, 0.1), {"loc": 0.0, "scale": 0.1}, lambda x: {"loc": 0 * x, "scale": 0.1}]
)
def test_the_forms_of_dist_params(dist_params):
    manager = PropagationManager(RPProp(dist_class=Normal))
    x = torch.zeros(500, 1)
    if not callable(dist_params):
        dist_params_x = (
            tuple(torch.full_like(x, v) for v in dist_params)
            if isinstance(dist_params, tuple)
            else {k: torch.full_like(x, v) for k, v in dist_params.items()}
        )
    else:
        dist_params_x = dist_params
    y = manager.forward(x, dist_params=dist_params_x)
    assert y.shape == x.shape
    assert 0.08 < y.std() < 0.12


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("parameter", ValueError),
        (3, TypeError),
        (torch.zeros(4, 1), TypeError),
        ([], ValueError),
        (torch.nn.ReLU(), ValueError),
    ],
)
def test_wrong_ivw_targets(target, error):
    with pytest.raises(error, match="ivw_target"):
        PropagationManager("TP").sample(normal(torch.zeros(4, 1)), ivw_target=target)


def test_a_target_that_is_not_expanded():
    theta = torch.ones(1, requires_grad=True)
    manager = PropagationManager("TP")
    x = manager.sample(normal(torch.zeros(4, 1) + theta), ivw_target=theta * 1.0)
    loss = manager.loss(x.square())
    with pytest.raises(ValueError, match="expanded over the particles"):
        loss.backward()


# -- the manager itself --------------------------------------------------------------------------


def test_unknown_names():
    with pytest.raises(ValueError, match="Did you mean 'TP'"):
        PropagationManager("TPP")
    manager = PropagationManager("RP")
    manager.add_propagator("pause", PauseProp())
    with pytest.raises(KeyError, match="Did you mean 'pause'"):
        manager.forward(torch.zeros(2, 1), local_propagator="puase")


@pytest.mark.parametrize(
    "arguments",
    [
        {"default_propagator": 3},
        {"default_propagator": RPProp},
        {"loss_propagator": "GS"},
        {"terminal_propagator": 1},
    ],
)
def test_what_is_no_propagator(arguments):
    with pytest.raises(TypeError, match=next(iter(arguments))):
        PropagationManager(**arguments)


def test_named_and_local_propagators_mix():
    theta = torch.ones(1, requires_grad=True, dtype=torch.float64)
    manager = PropagationManager("RP")
    manager.add_propagator("lr", LRProp())
    torch.manual_seed(0)
    x = torch.zeros(4000, 1, dtype=torch.float64)
    x = manager.sample(normal(x + theta))
    x = manager.sample(normal(x + theta), local_propagator="lr")
    x = manager.sample(normal(x + theta), local_propagator=RPProp())
    manager.loss(x.square()).backward()
    assert torch.isclose(theta.grad, torch.tensor([18.0], dtype=torch.float64), rtol=0.1)


def test_backward_leaves_nodes_to_be_looked_at_until_the_next_rollout():
    manager = PropagationManager(LRProp())
    theta = torch.ones(1, requires_grad=True)
    x = manager.sample(normal(torch.zeros(4, 1) + theta))
    manager.backward(x.square())
    assert manager.size() == 3
    manager.sample(normal(torch.zeros(4, 1) + theta))
    assert manager.size() == 2
    manager.reset()
    x = manager.sample(normal(torch.zeros(4, 1) + theta))
    manager.backward(x.square(), clear_nodes=True)
    assert manager.size() == 1


def test_an_exception_in_a_backward_pass_leaves_the_manager_usable():
    class Failing(RPProp):
        def backward_impl(self, node, message):
            raise ZeroDivisionError

    theta = torch.ones(1, requires_grad=True)
    manager = PropagationManager(Failing())
    x = manager.sample(normal(torch.zeros(4, 1) + theta))
    with pytest.raises(ZeroDivisionError):
        manager.backward(x.square())
    manager.default_propagator = RPProp()
    x = manager.sample(normal(torch.zeros(4, 1) + theta))
    manager.backward(x.square())
    assert theta.grad is not None


def test_backward_inside_a_backward_pass_is_refused():
    manager = PropagationManager("RP")
    inner = PropagationManager("RP")

    class Nesting(Propagator):
        def backward_impl(self, node, message):
            x = inner.sample(normal(torch.ones(4, 1).requires_grad_() * 1.0))
            inner.backward(x.square())

    manager.forward(None, local_propagator=Nesting())
    with pytest.raises(PropagationError, match="running already"):
        manager.backward()


def test_no_tape_stays_alive():
    theta = torch.ones(1, requires_grad=True)
    manager = PropagationManager("TP")
    alive = []
    for _ in range(3):
        x = torch.zeros(4, 1)
        for _ in range(3):
            x = manager.sample(normal(x + theta))
        alive.append(weakref.ref(manager._tape))
        loss = manager.loss(x.square())
        loss.backward()
        del loss, x
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


# -- composition ---------------------------------------------------------------------------------


def run(manager, theta, horizon=4, **options):
    torch.manual_seed(3)
    x = torch.zeros(30, 2, dtype=torch.float64)
    for _ in range(horizon):
        x = manager.sample(normal((x + theta).sin()), **options)
        manager.append_loss(x.square().sum(1))
    theta.grad = None
    manager.backward()
    return theta.grad.clone()


@pytest.mark.parametrize("kind", [RPProp, LRProp, TotalProp, PauseProp])
def test_back_propagation_may_be_left_to_the_loss(kind):
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    if kind is PauseProp:
        x = torch.ones(5, 2, dtype=torch.float64)
        for backprop in (True, False):
            manager = PropagationManager(RPProp())
            manager.add_propagator("pause", PauseProp(backprop=backprop))
            theta.grad = None
            manager.backward(manager.forward(x * theta, local_propagator="pause").sum(1))
            torch.testing.assert_close(theta.grad, torch.ones(2, dtype=torch.float64))
        return
    a = run(PropagationManager(kind()), theta)
    b = run(PropagationManager(kind(backprop=False)), theta)
    torch.testing.assert_close(a, b)


def test_attached_and_detached_rp_agree():
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    a = run(PropagationManager(RPProp(detach=False)), theta)
    b = run(PropagationManager(RPProp()), theta)
    torch.testing.assert_close(a, b)
    manager = PropagationManager(RPProp(detach=False))
    manager.sample(normal(torch.zeros(3, 1)))
    assert manager.size() == 1  # only the terminal node


def test_chains_nest():
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    a = run(PropagationManager(RPProp()), theta)

    class Deep(Propagator):
        def forward_impl(self, x, node=None, dist=None):
            return {"output": dist.rsample(), "register_node": False}

    inner = ChainProp([Deep(), PauseProp()])
    b = run(PropagationManager(ChainProp([inner, PauseProp()]), LossProp(baseline=False)), theta)
    torch.testing.assert_close(a, b)


def test_the_baseline_of_the_loss_and_of_the_sample_are_the_same_where_there_is_one_loss():
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    at_sample = run(PropagationManager(LRProp()), theta, horizon=1)
    at_loss = run(PropagationManager(LRProp(baseline=False), LossProp()), theta, horizon=1)
    torch.testing.assert_close(at_sample, at_loss)
    without = run(PropagationManager(LRProp(baseline=False)), theta, horizon=1)
    named = run(PropagationManager(LRProp(baseline={"baseline_func": no_baseline})), theta, 1)
    torch.testing.assert_close(without, named)
    assert not torch.allclose(without, at_sample)


def test_a_baseline_is_of_the_sum_from_its_own_step_on():
    """A baselined loss sent by a later node must not be used for an earlier one."""
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    manager = PropagationManager(LRProp(baseline=False))
    manager.add_propagator("baselined", LRProp())
    reference = PropagationManager(LRProp(baseline=False))
    gradients = []
    for m, local in ((manager, "baselined"), (reference, LRProp())):
        torch.manual_seed(0)
        x = torch.zeros(6, 2, dtype=torch.float64)
        x = m.sample(normal(x + theta))
        m.append_loss(x.square().sum(1))
        y = m.sample(normal(torch.zeros_like(x)), local_propagator=local)
        m.append_loss(y.square().sum(1))
        theta.grad = None
        if m is reference:
            # by hand: the first sample's own log-density with the unbaselined sum
            m.reset()
            log_prob = normal(torch.zeros(6, 2, dtype=torch.float64) + theta).log_prob(x)
            total = (x.square() + y.square()).sum(1, keepdim=True)
            (log_prob * total / 6).sum().backward()
        else:
            m.backward()
        gradients.append(theta.grad.clone())
    torch.testing.assert_close(*gradients)


def test_sum_and_skip():
    log = []
    manager = PropagationManager(Recorder(log, "default"))
    manager.forward(None, local_propagator=Recorder(log, 0))
    manager.forward(None, local_propagator=SumBase(sum_name="total", local_variable="reward"))
    manager.forward(None, local_propagator=Recorder(log, 2, {"reward": 2, "total": 3}))
    manager.backward()
    assert log[-1] == (0, {"total": 5})
    log.clear()
    manager = PropagationManager(Recorder(log, "default"))
    for i in range(2):
        manager.forward(None, local_propagator=Recorder(log, i))
    manager.forward(None, local_propagator=SkipProp(skip=2))
    manager.forward(None, local_propagator=Recorder(log, 3, {"a": 1}))
    manager.backward()
    assert log == [(3, {}), (1, {}), (0, {"a": 1})]
    with pytest.raises(ValueError, match="skip"):
        SkipProp(skip=0)
    manager = PropagationManager(SumBase(sum_name="total", local_variable="reward"))
    manager.forward(None)
    with pytest.raises(KeyError, match="reward"):
        manager.backward()


def test_a_propagator_written_for_the_prototype_runs():
    """Overrides both impls with the prototype's signatures and reads ``.grad`` of its own cut."""

    class Prototype(Propagator):
        def forward_impl(self, x, node={}, scale=0.1, **kwargs):  # noqa: B006
            noisy = x + scale * torch.randn_like(x)
            detached = noisy.detach()
            detached.requires_grad_()
            return {"output": detached, "pre_output": noisy, "register_node": True}

        def backward_impl(self, node, message):
            return {
                "outputs": Listed(node["pre_output"]),
                "grads": Listed(node["output"].grad),
                "targets": -1,
            }

    class Combined(ComboProp):
        pass

    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    gradients = []
    for prototype in (True, False):
        torch.manual_seed(0)
        manager = PropagationManager(
            Combined(propagators=[BackPropagator(), Prototype(scale=0.1)])
            if prototype
            else RPProp(dist_class=Normal, dist_params=lambda x: {"loc": 0 * x, "scale": 0.1})
        )
        x = torch.zeros(5, 2, dtype=torch.float64)
        for _ in range(3):
            x = manager.forward((x + theta).sin())
        loss = manager.loss(x.square().sum(1))
        gradients.append(torch.autograd.grad(loss, theta)[0])
    torch.testing.assert_close(*gradients)
