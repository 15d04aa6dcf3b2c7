"""Custom propagators as users of the prototype wrote them: unchanged but for their imports.

They override ``forward_impl`` and ``backward_impl`` with a mutable default ``node={}`` and a
``**kwargs`` that takes whatever comes, return plain dicts, cut the graph by themselves, and say
``'outputs'``, ``'grads'`` and ``'targets'`` in their messages. Each must give the gradient that the
library's own propagator of that kind gives.
"""

# ruff: noqa: B006

from __future__ import annotations

import importlib

import pytest
import torch
from torch.distributions import Normal

from lightning_proppo import (
    PropagationError,
    PropagationManager,
    inverse_variance_weighting,
    mean_baseline,
)
from lightning_proppo.containers import Container, Listed, Message, Node, Summed
from lightning_proppo.initializers import ChainInit, Choice, Empty, Init, Lock, Optional
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
    SequenceProp,
    SkipProp,
    TotalProp,
    mcgrad_temp,
)

PARTICLES = 12

NAMES = {
    "lightning_proppo": "PropagationManager inverse_variance_weighting expand mean_baseline"
    " no_baseline",
    "lightning_proppo.containers": "Content Summed Locked Listed Container Node Message",
    "lightning_proppo.initializers": "Init Lock Optional Choice Empty ChainInit ChainInitTemplate",
    "lightning_proppo.propagators": "Propagator SequenceProp ComboProp ChainProp BackPropagator"
    " BaselineProp mcgrad_temp PauseBase PauseProp SkipProp SumBase LossBase LossProp RPBase RPProp"
    " LRBase LRProp TPBase TotalProp ResampleBase ResampleProp GRProp GaussShapeBase GSProp"
    " GSLossBase GSLoss",
}


@pytest.mark.parametrize("module", NAMES)
def test_the_names_of_the_listings_are_there(module):
    found = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []


@pytest.mark.parametrize(
    ("kind", "slots"),
    [
        (RPProp, ["backprop", "base"]),
        (LossProp, ["backprop", "baseline", "base"]),
        (LRProp, ["backprop", "base", "baseline"]),
        (TotalProp, ["backprop", "base", "baseline"]),
        (PauseProp, ["backprop", "base"]),
    ],
)
def test_the_sequences_are_those_of_the_paper(kind, slots):
    """Whose order decides whether a baseline is subtracted before the estimate or after the sum."""
    assert list(kind.propagators) == slots
    parts = kind().propagators
    assert [type(part) for part in parts][:1] == [BackPropagator]
    for i, slot in enumerate(slots):
        if slot != "base":
            rest = kind(**{slot: False}).propagators
            assert [type(p) for p in rest] == [type(p) for j, p in enumerate(parts) if j != i]


SCALE = 0.1


@pytest.fixture
def theta():
    return torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)


def rollout(manager, theta, horizon=3, seed=0, by_parts=False, **options):
    """Record x[t+1] = sin(x[t] + theta) + noise in the paper's form, with costs at every step."""
    torch.manual_seed(seed)
    x = torch.zeros(PARTICLES, 2, dtype=torch.float64)
    for _ in range(horizon):
        x = manager.forward((x + theta).sin(), **options)
        if by_parts:
            manager.append_loss(x, lossfunc=lambda x: x.square().sum(1))
        else:
            manager.append_loss(x.square().sum(1))


def gradient(manager, theta, **options):
    """Of loss() and of the manager's own backward, which must agree."""
    rollout(manager, theta, **options)
    (found,) = torch.autograd.grad(manager.loss(), theta)
    rollout(manager, theta, **options)
    theta.grad = None
    manager.backward()
    torch.testing.assert_close(theta.grad, found)
    return found


def noise(x):
    return {"loc": torch.zeros_like(x), "scale": torch.full_like(x, SCALE)}


def assert_as(manager, reference, theta, **options):
    given = {} if isinstance(reference, dict) else {"dist_class": Normal, "dist_params": noise}
    expected = gradient(PropagationManager(reference), theta, **given)
    assert bool((expected != 0).all())
    torch.testing.assert_close(gradient(manager, theta, **options), expected)


# -- RP: pieces, and the ways to put them together ------------------------------------------------


class Jitter(Propagator):
    """RP with fixed noise; cuts the graph by itself."""

    def forward_impl(self, x, node={}, scale=SCALE, **kwargs):
        noisy = x + scale * torch.randn_like(x)
        leaf = noisy.detach()
        leaf.requires_grad_()
        return {"output": leaf, "pre_output": noisy, "register_node": True}

    def backward_impl(self, node, message):
        return {
            "outputs": Listed(node["pre_output"]),
            "grads": Listed(node["output"].grad),
            "targets": -1,
        }

    def loss_propagator(self):
        return LossProp(baseline=False)


class JitterCombo(ComboProp, propagators=mcgrad_temp(backprop=True, base=Jitter)):
    pass


class JitterBaselined(ComboProp, propagators=mcgrad_temp(backprop=True, base=Jitter)):
    """With a baseline slot that is of no use to it."""


class JitterByKeyword(ComboProp, propagators=ChainInit(backprop=BackPropagator, base=Jitter)):
    pass


class JitterInNode(Jitter):
    """Fills the node that it is given instead of returning a new one."""

    def forward_impl(self, x, node={}, **kwargs):
        node.update(super().forward_impl(x, node, **kwargs))
        return node


class JitterByContainer(Jitter):
    """Returns containers and messages of its own."""

    def forward_impl(self, x, node={}, **kwargs):
        return Container(cont_dict=super().forward_impl(x, node, **kwargs))

    def backward_impl(self, node, message):
        contents = super().backward_impl(node, message)
        return Message(cont_dict=contents, target=contents.pop("targets"))


class JitterByNode(Jitter):
    """Returns a node."""

    def forward_impl(self, x, node={}, **kwargs):
        return Node.from_container(super().forward_impl(x, node, **kwargs))

    def backward_impl(self, node, message):
        contents = super().backward_impl(node, message)
        del contents["targets"]
        return Container(contents)


class JitterByKeywordsOnly(Jitter):
    """Hands on whatever it is given."""

    def forward_impl(self, *args, **kwargs):
        return super().forward_impl(*args, **kwargs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: JitterCombo(),
        lambda: JitterCombo(scale=SCALE),
        lambda: JitterCombo(base={"scale": SCALE}),
        lambda: JitterByKeyword(),
        lambda: ComboProp(propagators=[BackPropagator(), Jitter()]),
        lambda: ComboProp([BackPropagator(), ComboProp([Jitter()])]),
        lambda: ComboProp([BackPropagator(), JitterInNode()]),
        lambda: ComboProp([BackPropagator(), JitterByContainer()]),
        lambda: ComboProp([BackPropagator(), JitterByNode()]),
        lambda: ComboProp([BackPropagator(), JitterByKeywordsOnly()]),
        lambda: ChainProp([ComboProp([BackPropagator(), Jitter()])]),
    ],
)
def test_reparameterization_put_together_by_hand_is_rp(make, theta):
    assert_as(PropagationManager(make()), RPProp(), theta)


def test_options_reach_the_custom_forward_computation(theta):
    manager = PropagationManager(JitterCombo(scale=0.0))
    rollout(manager, theta, horizon=1)
    first = manager.nodes[1]["output"]
    assert bool((first == first[0]).all())
    manager.reset()
    rollout(manager, theta, horizon=1, scale=1.0)
    assert float(manager.nodes[1]["output"].detach().std()) > 0.3


def test_the_terminal_propagator_takes_up_what_remains(theta):
    """A single node that only assembles its gradients leaves the back-propagation to the end."""
    manager = PropagationManager(Jitter())
    found = gradient(manager, theta, horizon=1)
    reference = PropagationManager(RPProp(dist_class=Normal, dist_params=noise))
    torch.testing.assert_close(found, gradient(reference, theta, horizon=1))
    nobody = PropagationManager(Jitter(), terminal_propagator=None)
    rollout(nobody, theta, horizon=1)
    remaining = nobody.backward()
    assert len(remaining["outputs"]) == len(remaining["grads"]) == 1


def test_class_keywords_are_defaults_of_what_is_made():
    class Louder(JitterCombo, scale=2.0):
        pass

    class Silent(Jitter, scale=0.0):
        pass

    x = torch.zeros(400, 1)
    assert 1.7 < float(PropagationManager(Louder()).forward(x).detach().std()) < 2.3
    assert 0.4 < float(PropagationManager(Louder(scale=0.5)).forward(x).detach().std()) < 0.6
    assert float(PropagationManager(Silent()).forward(x).detach().std()) == 0.0


def test_the_slots_of_a_class_are_reconfigured_from_outside(theta):
    """A library propagator with another base, by way of its class's chain."""

    class Mine(ComboProp, propagators=RPProp.propagators.reconf(base=Init(Jitter))):
        pass

    assert_as(PropagationManager(Mine()), RPProp(), theta)
    with pytest.raises(KeyError, match="Did you mean 'base'"):
        RPProp.propagators.reconf(bse=Init(Jitter))


def test_factories_have_switches_choices_locks_and_slots_to_fill(theta):
    chain = ChainInit(
        backprop=Optional(BackPropagator, True),
        base=Choice({"jitter": Jitter, "pause": PauseProp}, "jitter"),
        fixed=Lock(SkipProp, skip=1),
        free=Empty(),
    )

    class Factory(ComboProp, propagators=chain.reconf(free=BackPropagator)):
        def loss_propagator(self):
            return LossProp(baseline=False)

    assert [type(p) for p in Factory().propagators][1:] == [Jitter, SkipProp, BackPropagator]
    assert type(Factory(backprop=False, base="pause").propagators[0]) is PauseProp
    with pytest.raises(RuntimeError, match="Lock"):
        Factory(fixed={"skip": 2})


def test_a_combination_may_override_its_computations_and_have_options_of_its_own(theta):
    class Scaled(JitterCombo):
        def forward_impl(self, x, node={}, stretch=1.0, **kwargs):
            node = super().forward_impl(x, node, **kwargs)
            node["stretch"] = stretch
            return node

        def backward_impl(self, node, message):
            node["output"].grad.mul_(node["stretch"])
            return super().backward_impl(node, message)

    assert_as(PropagationManager(Scaled()), RPProp(), theta)
    once = gradient(PropagationManager(Scaled()), theta, horizon=1)
    twice = gradient(PropagationManager(Scaled(stretch=5.0)), theta, horizon=1, stretch=2.0)
    torch.testing.assert_close(twice, 2.0 * once)
    with pytest.raises(TypeError, match=r"unknown argument 'stretsh'"):
        ComboProp([RPProp()]).forward(None, stretsh=1.0)


def test_a_sequence_may_be_written_from_scratch(theta):
    """Merging messages as the paper's own combination does."""

    class Row(SequenceProp):
        def forward_impl(self, x, node={}, **kwargs):
            for propagator in self.propagators:
                node.update(propagator.forward_impl(x, node, **kwargs))
            return node

        def backward_impl(self, node, message):
            total = Message(cont_dict=message.get_contents())
            for propagator in reversed(self.propagators):
                sent = propagator.backward_impl(node, total._get_main_message())
                if isinstance(sent, dict):
                    target = sent.pop("targets", None)
                    sent = Message(cont_dict=sent, target=target)
                total.update(sent)
            return total

        def loss_propagator(self):
            return LossProp(baseline=False)

    class Backwards(Propagator):
        def backward_impl(self, node, message):
            outputs, grads = message.pop("outputs"), message.pop("grads")
            torch.autograd.backward(tensors=outputs, grad_tensors=grads)
            return message

    manager = PropagationManager(Row([Backwards(), Jitter()]))
    rollout(manager, theta)
    manager.backward()
    reference = PropagationManager(RPProp(dist_class=Normal, dist_params=noise))
    torch.testing.assert_close(theta.grad, gradient(reference, theta))


# -- LR, TP and losses ----------------------------------------------------------------------------


class Score(Propagator):
    """LR that keeps its log-density in the node."""

    def forward_impl(self, x, node={}, dist_class=Normal, scale=SCALE, **kwargs):
        dist = dist_class(torch.zeros_like(x), scale)
        noisy = (x + dist.sample()).detach()
        node["output"] = noisy
        node["log_prob"] = dist.log_prob(noisy - x)
        return node

    def backward_impl(self, node, message):
        name = "baselined_loss" if "baselined_loss" in message else "local_loss"
        loss = message[name] / message[name].numel()
        log_prob = node["log_prob"]
        return {"outputs": Listed(log_prob), "grads": Listed(loss.expand(log_prob.shape))}


class ScoreCombo(ComboProp, propagators=mcgrad_temp(backprop=True, base=Score, baseline=True)):
    def loss_propagator(self):
        return LossProp(backprop=False, baseline=False, lossgrad=False)


def test_likelihood_ratios_put_together_by_hand_are_lr(theta):
    assert_as(PropagationManager(ScoreCombo()), LRProp(), theta)
    assert_as(PropagationManager(ScoreCombo(baseline=False)), LRProp(baseline=False), theta)


def test_a_baseline_of_ones_own(theta):
    calls = []

    def first(losses, node):
        calls.append("first")
        return losses - losses.mean()

    def second(losses, node=None):
        assert "log_prob" in node  # the node at which it is subtracted
        calls.append("second")
        return mean_baseline(losses)

    given = {"baseline": (True, {"baseline_func": [first, second]})}
    assert_as(PropagationManager(ScoreCombo(**given)), LRProp(), theta)
    assert calls[:2] == ["second", "first"]  # from right to left, as all that runs backward


class Mixture(Propagator):
    """Total propagation with weights computed at the sample's mean."""

    def __init__(self, weigh=inverse_variance_weighting, **kwargs):
        super().__init__(**kwargs)
        self.weigh = weigh

    def forward_impl(self, x, node={}, **kwargs):
        dist = Normal(torch.zeros_like(x), SCALE)
        noisy = x + dist.rsample()
        leaf = noisy.detach().requires_grad_()
        return {
            "output": leaf,
            "pre_output": noisy,
            "log_prob": dist.log_prob(leaf.detach() - x),
            "target": x,
        }

    def backward_impl(self, node, message):
        loss = message["baselined_loss"] / PARTICLES
        loss = loss.expand(node["log_prob"].shape)
        pathwise = node["output"].grad
        lr, rp = (
            torch.autograd.grad(tensor, node["target"], cotangent, retain_graph=True)
            for tensor, cotangent in ((node["log_prob"], loss), (node["pre_output"], pathwise))
        )
        k_lr, k_rp = self.weigh(lr, rp)
        gradients = {
            "outputs": Listed(node["log_prob"], node["pre_output"]),
            "grads": Listed(k_lr * loss, k_rp * pathwise),
            "targets": -1,
        }
        return gradients, {"weights": (k_lr, k_rp), "targets": 0}


class MixtureCombo(ComboProp, propagators=mcgrad_temp(backprop=True, base=Mixture, baseline=True)):
    def loss_propagator(self):
        return LossProp(baseline=False)


def test_total_propagation_put_together_by_hand_is_tp(theta):
    """Against the library's with the same target, which the paper's form hands over."""

    class Targeted(TotalProp):
        def forward_impl(self, x, node={}, **kwargs):
            return super().forward_impl(x, node, ivw_target=x, **kwargs)

    assert_as(PropagationManager(MixtureCombo()), Targeted(), theta)
    even = MixtureCombo(base={"weigh": lambda lr, rp: (0.5, 0.5)})
    same = Targeted(base={"var_weighting_func": lambda lr, rp: (0.5, 0.5)})
    assert_as(PropagationManager(even), same, theta)


class Price(Propagator):
    """A loss that sends a running sum as a content that sums itself up."""

    def forward_impl(self, x, node={}, weight=1.0, **kwargs):
        cost = weight * x.reshape(-1, 1)
        return {"output": cost.detach(), "pre_output": cost}

    def backward_impl(self, node, message):
        message_out = {"local_loss": Summed(message.pop("local_loss", 0) + node["output"])}
        cost = node["pre_output"]
        message_out["outputs"] = Listed(cost)
        message_out["grads"] = Listed(torch.full_like(cost, 1.0 / cost.numel()))
        return message_out


@pytest.mark.parametrize("sampler", [RPProp, LRProp, TotalProp])
def test_a_loss_of_ones_own_may_stand_for_the_managers(sampler, theta):
    loss = ComboProp([BackPropagator(), Price()])
    given = {"dist_class": Normal, "dist_params": noise}
    assert_as(PropagationManager(sampler(**given), loss), sampler(), theta)

    class Own(sampler):
        def loss_propagator(self):
            return ComboProp([BackPropagator(), Price(weight=2.0)])

    doubled = gradient(PropagationManager(Own(**given)), theta)
    torch.testing.assert_close(doubled, 2.0 * gradient(PropagationManager(sampler(**given)), theta))


def test_a_loss_may_be_computed_by_another_propagator_at_one_step(theta):
    manager = PropagationManager(RPProp(dist_class=Normal, dist_params=noise))
    manager.add_propagator("priced", ComboProp([BackPropagator(), Price()]))
    reference = PropagationManager(RPProp(dist_class=Normal, dist_params=noise))
    found = []
    for m, options in ((manager, {"loss_propagator": "priced", "weight": 3.0}), (reference, {})):
        torch.manual_seed(0)
        x = m.forward(theta.expand(PARTICLES, 2))
        m.append_loss(x.square().sum(1))
        cost = x.sum(1)
        m.append_loss(cost if options else 3.0 * cost, **options)
        found.append(torch.autograd.grad(m.loss(), theta)[0])
    torch.testing.assert_close(*found)


# -- chains with a manager of their own ------------------------------------------------------------


class OwnManager(SequenceProp):
    """Chains propagators by a manager that it makes at every step and keeps in the node."""

    def forward_impl(self, x, node={}, **kwargs):
        inner = PropagationManager(default_propagator=None, terminal_propagator=None)
        for propagator in self.propagators:
            x = inner.forward(x, local_propagator=propagator, **kwargs)
        node = {"output": x, "manager": inner}
        if inner.size() == 0:
            node["register_node"] = False
        return node

    def backward_impl(self, node, message):
        return node["manager"].backward(message=message)

    def loss_propagator(self):
        return self.propagators[-1].loss_propagator()


@pytest.mark.parametrize(
    "parts",
    [
        lambda: [JitterCombo()],
        lambda: [JitterCombo(), PauseProp()],
        lambda: [PauseProp(), ScoreCombo()],
        lambda: [MixtureCombo(), PauseProp()],
        lambda: [PauseProp(), OwnManager([PauseProp(), JitterCombo()])],
    ],
)
def test_a_chain_with_a_manager_of_its_own_is_the_librarys_chain(parts, theta):
    found = gradient(PropagationManager(OwnManager(parts())), theta)
    expected = gradient(PropagationManager(ChainProp(parts())), theta)
    assert bool((expected != 0).all())
    torch.testing.assert_close(found, expected)


def test_a_chain_with_a_manager_of_its_own_may_be_differentiated_twice(theta):
    manager = PropagationManager(OwnManager([JitterCombo(), PauseProp()]))
    rollout(manager, theta)
    loss = manager.loss()
    (first,) = torch.autograd.grad(loss, theta, retain_graph=True)
    (second,) = torch.autograd.grad(loss, theta)
    torch.testing.assert_close(first, second)


def test_a_chain_of_propagators_that_make_no_nodes_makes_none_either(theta):
    class Through(Propagator):
        def forward_impl(self, x, node={}, **kwargs):
            return {"output": 2.0 * x, "register_node": False}

    for chain in (OwnManager([Through(), Through()]), ChainProp([Through(), Through()])):
        manager = PropagationManager(chain)
        output = manager.forward(theta)
        assert torch.equal(output, 4.0 * theta)
        assert manager.size() == 1


def test_a_manager_inside_a_node_takes_no_loss_during_a_pass(theta):
    class Greedy(OwnManager):
        def backward_impl(self, node, message):
            return node["manager"].backward(torch.ones(PARTICLES), message=message)

    manager = PropagationManager(Greedy([JitterCombo()]))
    rollout(manager, theta)
    with pytest.raises(PropagationError, match="running already"):
        manager.backward()


def test_options_may_be_given_to_each_part_of_a_chain(theta):
    """Defaults, common options, and options of one part, the last winning."""
    chain = ChainProp([JitterCombo(scale=5.0), JitterCombo(scale=5.0)])
    x = torch.zeros(4000, 1)
    quiet = PropagationManager(chain).forward(x, scale=0.5)
    assert 0.6 < float(quiet.detach().std()) < 0.8
    one = PropagationManager(chain).forward(x, scale=0.5, chain_kwargs=[{"scale": 0.0}, {}])
    assert 0.45 < float(one.detach().std()) < 0.55
    with pytest.raises(ValueError, match="one dict for each of the 2"):
        PropagationManager(chain).forward(x, chain_kwargs=[{}])


# -- messages and memory ---------------------------------------------------------------------------


class Tell(Propagator):
    """Writes down what arrives and says what it is told to say."""

    def __init__(self, log, name, say=None, **kwargs):
        super().__init__(**kwargs)
        self.log, self.name, self.say = log, name, say or {}

    def forward_impl(self, x, node={}, **kwargs):
        return {"output": x, **kwargs}

    def backward_impl(self, node, message):
        self.log.append((self.name, dict(message.items())))
        return dict(self.say)


def talk(log, *propagators, **options):
    manager = PropagationManager(
        Tell(log, "default"), terminal_propagator=Tell(log, "terminal"), **options
    )
    for i, propagator in enumerate(propagators):
        manager.forward(
            None,
            local_propagator=propagator if isinstance(propagator, Propagator) else None,
            **({} if isinstance(propagator, Propagator) else {"name": i}),
        )
    return manager


class SkipInPlace(Propagator):
    """Writes the target into the very message that it hands on."""

    def backward_impl(self, node, message):
        message["targets"] = -2
        return message


@pytest.mark.parametrize(
    "skip",
    [SkipInPlace(), ComboProp([SkipInPlace()]), ComboProp([BackPropagator(), SkipInPlace()])],
)
def test_a_target_may_be_written_into_the_message_that_is_handed_on(skip):
    log = []
    talk(log, Tell(log, 0), Tell(log, 1), skip, Tell(log, 3, {"a": 1})).backward()
    assert log == [(3, {}), (1, {}), (0, {"a": 1}), ("terminal", {})]


def test_a_combination_without_further_targets_sends_one_message():
    log = []
    both = ComboProp([Tell([], "left", {"b": 2}), Tell([], "right", {"a": 1, "targets": -1})])
    talk(log, Tell(log, 0), both).backward()
    assert log[0] == (0, {"a": 1, "b": 2})


def test_a_message_to_itself_is_read_in_the_next_pass_over_the_same_nodes(theta):
    class Memory(JitterCombo):
        seen = ()

        def backward_impl(self, node, message):
            Memory.seen = (*Memory.seen, message.pop("passes", 0))
            count = Memory.seen[-1] + 1
            gradients = super().backward_impl(node, message)
            return [gradients, Message({"passes": count}, target=0)]

    manager = PropagationManager(Memory())
    rollout(manager, theta, horizon=1)
    loss = manager.loss()
    for _ in range(3):
        loss.backward(retain_graph=True)
    assert Memory.seen == (0, 1, 2)


def test_a_node_that_is_not_to_be_cleared_keeps_its_contents_after_the_pass(theta):
    class Keeping(JitterCombo):
        def forward_impl(self, x, node={}, **kwargs):
            return {**super().forward_impl(x, node, **kwargs), "clear": False}

    for propagator, kept in ((Keeping(), True), (JitterCombo(), False)):
        manager = PropagationManager(propagator)
        rollout(manager, theta, horizon=1)
        manager.backward()
        assert ("output" in manager.nodes[1]) is kept


def test_a_propagator_may_compute_without_any_gradient():
    """Returns of a decaying reward: messages are not gradients only."""

    class Reward(Propagator):
        def forward_impl(self, x, node={}, **kwargs):
            return {"output": x, "reward": x}

        def backward_impl(self, node, message):
            total = node["reward"] + 0.5 * message.get("return", 0.0)
            returns.append(total)
            return {"return": total}

    returns: list = []
    manager = PropagationManager(Reward(), terminal_propagator=None)
    for reward in (1.0, 2.0, 4.0):
        manager.forward(reward)
    remaining = manager.backward()
    assert returns == [4.0, 4.0, 3.0]
    assert remaining["return"] == 3.0


def test_a_message_given_to_backward_may_name_its_target():
    for target, reader in ((None, 2), (-1, 2), (-2, 1), (-4, "terminal"), ([-1, -3], 0)):
        log = []
        manager = talk(log, *[Tell(log, i) for i in range(3)])
        manager.backward(message=Message({"a": 1}, target=target))
        assert (reader, {"a": 1}) in log
        assert len([entry for entry in log if entry[1]]) == (2 if isinstance(target, list) else 1)


def test_a_baseline_alone_passes_on_what_it_has_no_use_for():
    log = []
    talk(log, Tell(log, 0), BaselineProp(), Tell(log, 2, {"other": 1})).backward()
    assert log[1] == (0, {"other": 1})


def test_shaped_losses_go_with_a_custom_likelihood_ratio(theta):
    found = gradient(PropagationManager(ScoreCombo(), GSLoss()), theta, by_parts=True)
    lr = LRProp(dist_class=Normal, dist_params=noise)
    expected = gradient(PropagationManager(lr, GSLoss()), theta, by_parts=True)
    torch.testing.assert_close(found, expected)


def test_the_default_propagator_chooses_the_loss_propagator():
    class Choosy(Propagator):
        def loss_propagator(self):
            return chosen

    chosen = Price()
    assert PropagationManager(Choosy()).loss_propagator is chosen
    assert PropagationManager(ChainProp([RPProp(), Choosy()])).loss_propagator is chosen
    other = Price()
    assert PropagationManager(Choosy(), other).loss_propagator is other
    assert isinstance(PropagationManager(Propagator()).loss_propagator, LossProp)
