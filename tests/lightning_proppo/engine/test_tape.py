"""The tape: targets of messages, messages both ways, and other computations over its nodes."""

from __future__ import annotations

import pytest

from lightning_proppo import PropagationError, PropagationManager
from lightning_proppo.containers import Container, Message, Node
from lightning_proppo.engine.tape import Tape
from lightning_proppo.propagators import (
    BackPropagator,
    ChainProp,
    ComboProp,
    Propagator,
    SkipProp,
    SumBase,
)


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


# -- targets ---------------------------------------------------------------------------------------


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


def test_a_node_may_force_its_messages_to_several_targets():
    manager = PropagationManager(Says(), terminal_propagator=None)
    for _ in range(2):
        manager.forward(None)
    manager.forward(None, local_propagator=Says({"a": 1, "targets": -1}), force_targets=[-2, 0])
    manager.trigger("onward")
    assert [node["heard"] for node in manager.nodes] == [{"a": 1}, {}, {}]
    assert dict(manager.nodes[2].messages.items()) == {"a": 1}


def test_targets_beyond_the_tape_are_no_error():
    """There, the prototype read a name that it had never set."""
    manager = PropagationManager(Says({"a": 1, "targets": [-9, 9]}))
    manager.forward(None)
    remaining = manager.backward()
    assert [dict(part.items()) for part in remaining.containers()] == [{"a": 1}]


def test_a_skip_sends_messages_farther():
    log = []
    manager = PropagationManager(Recorder(log, "default"))
    for i in range(2):
        manager.forward(None, local_propagator=Recorder(log, i))
    manager.forward(None, local_propagator=SkipProp(skip=2))
    manager.forward(None, local_propagator=Recorder(log, 3, {"a": 1}))
    manager.backward()
    assert log == [(3, {}), (1, {}), (0, {"a": 1})]


def test_a_sum_adds_what_arrives_to_what_it_had():
    log = []
    manager = PropagationManager(Recorder(log, "default"))
    manager.forward(None, local_propagator=Recorder(log, 0))
    manager.forward(None, local_propagator=SumBase(sum_name="total", local_variable="reward"))
    manager.forward(None, local_propagator=Recorder(log, 2, {"reward": 2, "total": 3}))
    manager.backward()
    assert log[-1] == (0, {"total": 5})


def test_a_sum_of_nothing_is_named():
    manager = PropagationManager(SumBase(sum_name="total", local_variable="reward"))
    manager.forward(None)
    with pytest.raises(KeyError, match="reward"):
        manager.backward()


# -- forward messages, and the next propagator -----------------------------------------------------


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


def test_forward_messages_add_up_and_may_look_back():
    manager = PropagationManager(Says())
    manager.forward(None, ahead=Message({"a": 1}, target=(1, 2)))
    assert manager.forward(None, ahead={"b": 2}) == {"a": 1}
    assert manager.forward(None, ahead=Message({"back": 3}, target=-1)) == {"a": 1, "b": 2}
    assert dict(manager.nodes[2].messages.items()) == {"back": 3}
    assert manager.forward(None) is None


# -- other computations ----------------------------------------------------------------------------


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


# -- the tape itself -------------------------------------------------------------------------------


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


@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_tape_counts_its_own_terminal_node_apart(length):
    tape = Tape(BackPropagator())
    for _ in range(length):
        tape.record(None, Says())
    assert len(tape) == length + 1
    assert tape.recorded == tape.calls == length
    tape.release()
    assert len(tape) == 0
