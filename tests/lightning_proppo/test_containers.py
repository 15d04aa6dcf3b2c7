"""Contents, containers, nodes and messages: what updates do, and that nothing is shared."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_proppo.containers import Container, Content, Listed, Locked, Message, Node, Summed
from lightning_proppo.propagators import BackPropagator, Propagator

names = st.text("abc", min_size=1, max_size=2)
numbers = st.integers(-9, 9)
dicts = st.dictionaries(names, numbers, max_size=4)
targets = st.one_of(st.none(), st.integers(-4, 4), st.tuples(st.integers(-4, 4)))


# -- contents ------------------------------------------------------------------------------------


def test_a_content_is_replaced():
    content = Content(1)
    content.set(2)
    assert content.get() == 2
    content.update(3)
    assert content.get() == 3
    content.update(Content(4))
    assert content.get() == 4


def test_a_content_of_a_content_is_its_value():
    assert Content(Content(Summed(3))).get() == 3


def test_mappings_in_a_content_are_merged_and_not_changed():
    given_dict = {"a": 1, "b": 2}
    content = Content(given_dict)
    content.update({"b": 3, "c": 4})
    assert content.get() == {"a": 1, "b": 3, "c": 4}
    assert given_dict == {"a": 1, "b": 2}


def test_whatever_has_an_update_of_its_own_is_updated_in_a_copy():
    given_set = {1, 2}
    content = Content(given_set)
    content.update({3})
    assert content.get() == {1, 2, 3}
    assert given_set == {1, 2}


def test_a_summed_content_adds_and_leaves_its_tensor_alone():
    first = torch.ones(3)
    content = Summed(first)
    content.update(torch.full((3,), 2.0))
    content.update(Content(torch.ones(3)))
    assert torch.equal(content.get(), torch.full((3,), 4.0))
    assert torch.equal(first, torch.ones(3))


def test_a_summed_content_is_replaced_by_set():
    content = Summed(1)
    content.set(5)
    assert content.get() == 5


@pytest.mark.parametrize("method", ["set", "update"])
def test_a_locked_content_refuses_and_names_both_values(method):
    content = Locked("old")
    with pytest.raises(RuntimeError, match=r"'old'.*'new'"):
        getattr(content, method)(Content("new"))
    assert content.get() == "old"


def test_a_listed_content_appends_items_and_the_items_of_another_list():
    content = Listed(1, Content(2))
    content.update(3)
    content.update(Listed(4, 5), Content(6))
    content.update([7])
    assert content.get() == [1, 2, 3, 4, 5, 6, [7]]
    content.set(8, Listed(9))
    assert content.get() == [8, 9]


def test_an_update_does_not_change_a_list_that_was_read_before():
    content = Listed(1)
    read = content.get()
    content.update(2)
    assert read == [1]


def test_arithmetic_is_that_of_the_values():
    two, three = Content(2.0), Content(3.0)
    assert two + three == two + 3.0 == 5.0
    assert two * three == two * 3.0 == 4.0 * Content(1.5) == 6.0
    a, b = torch.randn(2, 3), torch.randn(3, 2)
    assert torch.equal(Content(a) @ Content(b), a @ b)
    assert torch.equal(Content(a) @ b, a @ b)


@pytest.mark.parametrize("kind", [Content, Summed, Locked, Listed])
def test_a_content_shows_its_kind_and_its_value(kind):
    shown = "[3]" if kind is Listed else "3"
    assert repr(kind(3)) == f"{kind.__name__}({shown})"
    assert str(kind(3)) == shown


@pytest.mark.parametrize("kind", [Content, Summed, Locked, Listed])
def test_a_copy_is_of_the_same_kind_and_independent(kind):
    original = kind(3)
    twin = original.copy()
    assert type(twin) is kind
    assert twin.get() == original.get()
    if kind is not Locked:
        twin.update(4)
        assert original.get() == kind(3).get()


@given(st.lists(numbers, min_size=1))
def test_listed_and_summed_agree_with_python(values):
    summed, listed = Summed(values[0]), Listed(values[0])
    for value in values[1:]:
        summed.update(value)
        listed.update(value)
    assert summed.get() == sum(values)
    assert listed.get() == values


# -- containers ----------------------------------------------------------------------------------


@given(dicts, dicts)
def test_a_container_of_plain_values_is_updated_as_a_dict_is(first, second):
    container = Container(first)
    container.update(second)
    assert dict(container.items()) == {**first, **second}
    other = Container(first)
    other.update(Container(second))
    assert dict(other.items()) == {**first, **second}


def test_a_container_reads_and_writes_like_a_dict():
    container = Container({"a": 1}, b=2)
    assert list(container) == list(container.keys()) == ["b", "a"]
    assert sorted(container.values()) == [1, 2]
    assert len(container) == 2
    assert "a" in container
    assert container["a"] == container.get("a") == 1
    assert container.get("c") is None
    assert container.get("c", 7) == 7
    container["c"] = 3
    assert container.pop("c") == 3
    assert container.pop("c", 8) == 8
    with pytest.raises(KeyError, match="c"):
        container.pop("c")
    with pytest.raises(KeyError, match="c"):
        container["c"]
    container.clear()
    assert len(container) == 0


def test_the_dict_wins_over_keywords_of_the_same_name():
    assert Container({"a": 1}, a=2)["a"] == 1


def test_contents_keep_their_kind_and_follow_its_rule():
    container = Container(sum=Summed(1), items=Listed(1), fixed=Locked(1), plain=1)
    container.update({"sum": 2, "items": 2, "plain": 2})
    assert dict(container.items()) == {"sum": 3, "items": [1, 2], "fixed": 1, "plain": 2}
    with pytest.raises(RuntimeError, match="Locked"):
        container["fixed"] = 2
    with pytest.raises(RuntimeError, match="Locked"):
        container.update({"fixed": 2})
    assert type(container.get_contents()["sum"]) is Summed
    container["sum"] = 10  # setting replaces the value and keeps the kind
    container.update({"sum": 1})
    assert container["sum"] == 11


def test_a_new_name_brings_its_kind_along():
    container = Container()
    container["sum"] = Summed(1)
    container.update({"items": Listed(1)})
    container.update(Container(sum=2, items=2))
    assert dict(container.items()) == {"sum": 3, "items": [1, 2]}


def test_two_containers_never_share_a_content():
    content = Summed(1)
    first, second = Container(total=content), Container(total=content)
    third = Container(first)
    third.update({"total": 5})
    first.update({"total": 1})
    fourth = Container()
    fourth.update(first)
    fourth.update({"total": 1})
    assert (content.get(), first["total"], second["total"], third["total"]) == (1, 2, 1, 6)
    assert fourth["total"] == 3


def test_a_copied_container_is_independent():
    container = Container(items=Listed(1))
    for twin in (container.copy(), copy.copy(container)):
        twin.update({"items": 2, "more": 1})
    assert dict(container.items()) == {"items": [1]}


def test_a_container_takes_the_contents_of_a_message_for_all_of_its_targets():
    message = Message({"a": 1}, target=-1)
    message.update(Message({"b": 2}, target=-2))
    container = Container(a=0)
    container.update(message)
    assert dict(container.items()) == {"a": 1, "b": 2}


@pytest.mark.parametrize("wrong", [3, None, [1, 2], "ab"])
def test_a_container_is_updated_with_containers_and_dicts_only(wrong):
    with pytest.raises(TypeError, match="Container or a dict; got"):
        Container().update(wrong)


def test_containers_can_be_shown():
    assert str(Container(a=1)) == "Contents: {'a': Content(1)}"
    assert repr(Container(a=1)) == "Container({'a': Content(1)})"
    assert "Message" in str(Message(a=1))


# -- nodes ---------------------------------------------------------------------------------------


class Echo(Propagator):
    def forward_impl(self, x, node=None, add=0):
        return {"output": x + add}

    def backward_impl(self, node, message):
        return {"got": message.get("a"), "had": node.get("b")}


def test_a_node_runs_its_propagator():
    node = Node({"b": 2}, propagator=Echo())
    node.receive({"a": 1})
    assert node.forward(1, add=2)["output"] == 3
    assert dict(node.backward().items()) == {"got": 1, "had": 2}


def test_a_node_without_a_propagator_says_so():
    node = Node()
    with pytest.raises(RuntimeError, match="assign_propagator"):
        node.backward()
    node.assign_propagator(Echo())
    assert node.backward()["got"] is None


def test_a_mailbox_merges_what_arrives():
    node = Node()
    node.receive({"grads": Listed(1), "loss": Summed(1), "last": 1})
    node.receive(Container(grads=Listed(2), loss=2, last=2))
    message = Message({"grads": 3}, target=-1)
    message.update(Message({"loss": 3}, target=-2))
    node.receive(message)
    assert dict(node.messages.items()) == {"grads": [1, 2, 3], "loss": 6, "last": 2}


def test_what_is_received_is_not_shared_with_the_sender():
    sent = Container(grads=Listed(1))
    first, second = Node(), Node()
    for node in (first, second):
        node.receive(sent)
    first.receive({"grads": 2})
    assert second.messages["grads"] == [1]
    assert sent["grads"] == [1]


def test_nodes_have_mailboxes_of_their_own():
    assert Node().messages is not Node().messages


class Box(Container):
    __slots__ = ()


@pytest.mark.parametrize("make", [dict, Container])
def test_a_node_made_of_a_container_takes_its_configuration_out_of_it(make):
    propagator = BackPropagator()
    source = make({"output": 1, "box_class": Box, "propagator": propagator})
    node = Node.from_container(source)
    assert dict(node.items()) == {"output": 1}
    assert type(node.messages) is Box
    assert node.propagator is propagator
    assert "box_class" in source  # the source is left as it was
    assert Node.from_container({"output": 1}).propagator is None


@pytest.mark.parametrize("wrong", [3, None, [1]])
def test_a_node_is_made_of_containers_and_dicts_only(wrong):
    with pytest.raises(TypeError, match=f"got {type(wrong).__name__}"):
        Node.from_container(wrong)


def test_a_copied_node_is_of_the_same_kind():
    node = Node({"a": 1}, propagator=BackPropagator())
    twin = node.copy()
    twin["a"] = 2
    assert type(twin) is Node
    assert twin.propagator is node.propagator
    assert node["a"] == 1


# -- messages ------------------------------------------------------------------------------------


def test_a_message_with_one_target_reads_and_writes_like_its_container():
    message = Message({"a": 1}, target=-2, b=2)
    message["c"] = 3
    assert list(message.targets()) == [-2]
    assert dict(message.items()) == {"a": 1, "b": 2, "c": 3}
    assert sorted(message.keys()) == ["a", "b", "c"]
    assert sorted(message.values()) == [1, 2, 3]
    assert message["c"] == message.get("c") == message.pop("c") == 3
    assert message.pop("c", 9) == message.get("c", 9) == 9
    assert "a" in message
    assert len(message) == 2
    assert not message.multi_message
    assert dict(message.get_message(-2).items()) == {"a": 1, "b": 2}


def test_a_message_without_a_target_leaves_it_to_the_node():
    assert list(Message(a=1).targets()) == [None]


def test_a_list_of_targets_is_as_good_as_a_tuple():
    assert list(Message(target=[-1, -2]).targets()) == [(-1, -2)]
    message = Message(a=1)
    message.retarget(None, [-1, -2])
    assert list(message.targets()) == [(-1, -2)]


def test_a_message_may_be_made_around_a_container():
    container = Container(a=Listed(1))
    message = Message(container=container)
    assert message.main() is container


def test_a_message_with_several_targets_is_read_by_target():
    message = Message({"a": 1}, target=-1)
    message.update(Message({"a": 2, "b": 3}, target=-2))
    assert message.multi_message
    assert [(target, dict(part.items())) for target, part in message.messages()] == [
        (-1, {"a": 1}),
        (-2, {"a": 2, "b": 3}),
    ]
    assert sorted(message.items()) == [("a", 1), ("a", 2), ("b", 3)]
    assert sorted(message.keys()) == ["a", "a", "b"]
    assert sorted(message.values()) == [1, 2, 3]
    assert message[-2]["b"] == message.get(-2)["b"] == 3
    assert message.get(-3) is None
    assert -2 in message
    assert "a" not in message
    message[-3] = {"c": 4}
    assert message.get_message(-3)["c"] == 4
    assert message.pop(-4, None) is None
    assert message.get_contents().keys() == {-1, -2, -3}


def test_a_message_whose_other_targets_are_popped_is_a_container_again():
    message = Message({"a": 1}, target=-1)
    message.update(Message({"a": 2}, target=-2))
    assert dict(message.pop_message(-1).items()) == {"a": 1}
    assert not message.multi_message
    assert message["a"] == 2
    message.pop_message(-2)
    with pytest.raises(KeyError, match="no target left"):
        message.main()


def test_a_target_that_two_messages_share_is_merged_by_content():
    message = Message({"grads": Listed(1), "loss": 1}, target=-1)
    message.update(Message({"grads": Listed(2), "loss": 2}, target=-1))
    assert dict(message.items()) == {"grads": [1, 2], "loss": 2}
    assert not message.multi_message


def test_a_container_without_a_target_updates_the_only_target_but_not_one_of_several():
    message = Message({"a": 1}, target=-1)
    message.update({"b": 2})
    message.update(Container(c=3))
    assert dict(message.items()) == {"a": 1, "b": 2, "c": 3}
    message.update(Message(target=-2))
    with pytest.raises(TypeError, match=r"targets \[-1, -2\]"):
        message.update({"d": 4})


@pytest.mark.parametrize("first", [None, -1])
def test_no_target_and_the_node_before_are_one_target_where_both_occur(first):
    message = Message({"a": 1, "b": 1}, target=first)
    message.update(Message({"b": 2, "c": 2}, target=-1 if first is None else None))
    assert list(message.targets()) == [-1]
    assert dict(message.items()) == {"a": 1, "b": 2, "c": 2}
    assert not message.multi_message


@pytest.mark.parametrize("wrong", [3, None, [1]])
def test_a_message_is_updated_with_containers_only(wrong):
    with pytest.raises(TypeError, match=f"got {type(wrong).__name__}"):
        Message().update(wrong)


def test_a_container_moves_to_another_target_in_its_place():
    message = Message({"a": 1})
    message.update(Message({"b": 2}, target=-3))
    message.retarget(None, -1)
    assert [(target, dict(part.items())) for target, part in message.messages()] == [
        (-1, {"a": 1}),
        (-3, {"b": 2}),
    ]


def test_a_cleared_message_keeps_its_targets():
    message = Message({"a": 1}, target=-1)
    message.update(Message({"b": 2}, target=-2))
    message.clear()
    assert len(message) == 0
    assert list(message.targets()) == [-1, -2]


def test_a_copied_message_is_independent():
    message = Message({"items": Listed(1)}, target=-1)
    twin = message.copy()
    twin.update({"items": 2})
    twin.update(Message(target=-2))
    assert dict(message.items()) == {"items": [1]}
    assert not message.multi_message
    assert twin.multi_message


@given(st.lists(st.tuples(targets, dicts), min_size=1, max_size=6))
def test_messages_merge_target_by_target_and_share_nothing(parts):
    """Against a dict of dicts."""
    if any(target == -1 for target, _ in parts):  # then no target is another name for it
        parts = [(-1 if target is None else target, contents) for target, contents in parts]
    expected: dict = {}
    sent = [Message(contents, target=target) for target, contents in parts]
    total = sent[0].copy()
    for target, contents in parts:
        expected.setdefault(target, {}).update(contents)
    for message in sent[1:]:
        total.update(message)
    assert {target: dict(part.items()) for target, part in total.messages()} == expected
    assert total.multi_message == (len(expected) > 1)
    for container in total.containers():
        container["new"] = 0
    for message, (_, contents) in zip(sent, parts, strict=True):
        assert dict(message.items()) == contents
