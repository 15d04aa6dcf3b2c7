"""Inits and chains of them: defaults, slots, switches, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_proppo.initializers import (
    ChainInit,
    ChainInitTemplate,
    Choice,
    Empty,
    Init,
    Lock,
    Optional,
)


class Made:
    """Remembers what it was made with."""

    def __init__(self, *args, **kwargs):
        self.args = args
        self.kwargs = kwargs


class Other(Made):
    pass


def made_with(made):
    return made.args, made.kwargs


# -- Init ----------------------------------------------------------------------------------------


def test_an_init_makes_its_class_with_its_defaults():
    assert made_with(Init(Made)()) == ((), {})
    assert made_with(Init(Made, 1, 2, a=3)()) == ((1, 2), {"a": 3})


def test_defaults_may_be_given_in_two_ways_that_add_up():
    init = Init(Made, 1, defaults=(2,), kwdefaults={"a": 3, "b": 4}, b=5)
    assert made_with(init()) == ((1, 2), {"a": 3, "b": 5})


def test_positional_arguments_replace_all_defaults_and_keywords_merge():
    init = Init(Made, 1, 2, a=3, b=4)
    assert made_with(init(9)) == ((9,), {"a": 3, "b": 4})
    assert made_with(init(a=9)) == ((1, 2), {"a": 9, "b": 4})


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers()),
    st.dictionaries(st.sampled_from("abcd"), st.integers()),
)
def test_keywords_merge_as_dicts_do_and_a_call_leaves_the_defaults(defaults, call):
    init = Init(Made, **defaults)
    assert init(**call).kwargs == {**defaults, **call}
    assert init().kwargs == defaults


@pytest.mark.parametrize("default", [[1], {"a": [1]}, {1}], ids=["list", "dict", "set"])
def test_what_is_made_shares_no_mutable_default(default):
    init = Init(Made, default, key=default)
    first, second = init(), init()
    for made in (first, second):
        assert made.args == (default,)
        assert made.kwargs == {"key": default}
        assert made.args[0] is not default
        assert made.kwargs["key"] is not default
    assert first.args[0] is not second.args[0]
    assert first.kwargs["key"] is not second.kwargs["key"]
    assert first.args[0] is not first.kwargs["key"]


def test_what_is_given_in_the_call_is_passed_as_it_is():
    mine = [1]
    made = Init(Made, [0], key=[0])(mine, key=mine)
    assert made.args[0] is mine
    assert made.kwargs["key"] is mine


def test_changing_the_dict_of_defaults_afterwards_changes_nothing():
    defaults = {"a": 1}
    init = Init(Made, kwdefaults=defaults)
    defaults["a"] = 2
    assert init().kwargs == {"a": 1}


def test_an_init_of_an_init_makes_an_init():
    inner = Init.init(Made, 1)()
    assert type(inner) is Init
    assert made_with(inner()) == ((1,), {})
    switched = Optional.init(Made, True)()
    assert type(switched) is Optional
    assert isinstance(switched(), Made)
    assert switched(False) is None


# -- Lock ----------------------------------------------------------------------------------------


def test_a_lock_makes_its_class_with_its_defaults_only():
    lock = Lock(Made, 1, a=2)
    assert made_with(lock()) == ((1,), {"a": 2})


@pytest.mark.parametrize(("args", "kwargs"), [((9,), {}), ((), {"a": 9})])
def test_a_lock_refuses_arguments_and_names_them(args, kwargs):
    with pytest.raises(RuntimeError, match=r"takes no arguments, but got .*9"):
        Lock(Made, 1, a=2)(*args, **kwargs)


def test_a_lock_may_ignore_arguments():
    assert made_with(Lock(Made, 1, allow_unused=True)(9, b=9)) == ((1,), {})
    assert made_with(Lock(Made, 1)(9, b=9, allow_unused=True)) == ((1,), {})


# -- Optional ------------------------------------------------------------------------------------


def test_an_optional_is_switched_by_its_first_argument():
    assert Optional(Made, False)() is None
    assert made_with(Optional(Made, True)()) == ((), {})
    optional = Optional(Made, False, a=1)
    assert made_with(optional(True)) == ((), {"a": 1})
    assert made_with(optional(True, 2, b=3)) == ((2,), {"a": 1, "b": 3})
    assert optional(False, 2, b=3) is None
    assert made_with(optional(on=True)) == ((), {"a": 1})


def test_an_optional_may_be_switched_by_name():
    assert made_with(Optional(Made, a=1)(on=True)) == ((), {"a": 1})
    assert Optional(Made, on=True)(on=False) is None


@pytest.mark.parametrize("wrong", ["False", 1, None, {"a": 1}])
def test_an_optional_says_what_it_was_given_instead_of_a_switch(wrong):
    with pytest.raises(TypeError, match=r"is on, a bool; got .*To configure"):
        Optional(Made, True)(wrong)


def test_an_optional_without_any_switch_says_so():
    with pytest.raises(TypeError, match="got nothing"):
        Optional(Made)()


# -- Choice --------------------------------------------------------------------------------------


def test_a_choice_chooses_by_position_or_by_name():
    assert type(Choice((Made, Other), 0)()) is Made
    assert type(Choice((Made, Other), 0)(1)) is Other
    named = Choice({"made": Made, "other": Other}, "made", a=1)
    assert type(named()) is Made
    assert type(named("other")) is Other
    assert made_with(named("other", 2, a=3)) == ((2,), {"a": 3})
    assert type(named(choice="other")) is Other


def test_a_choice_may_be_made_by_keyword():
    named = Choice({"made": Made, "other": Other})
    assert type(named(choice="other")) is Other
    assert made_with(named(choice="made", a=1)) == ((), {"a": 1})


def test_a_choice_suggests_what_may_have_been_meant():
    with pytest.raises(KeyError, match="Did you mean 'other'"):
        Choice({"made": Made, "other": Other})("othr")
    with pytest.raises(KeyError, match=r"one of \[0, 1\]; got 2"):
        Choice((Made, Other))(2)
    with pytest.raises(KeyError, match="got nothing"):
        Choice((Made, Other))()


@pytest.mark.parametrize("wrong", [Made, [Made], "ab"])
def test_choices_are_a_tuple_or_a_dict(wrong):
    with pytest.raises(TypeError, match=f"tuple or dict of choices; got {type(wrong).__name__}"):
        Choice(wrong)


# -- Empty ---------------------------------------------------------------------------------------


def test_an_empty_slot_must_be_filled_first():
    chain = ChainInit(a=Made, b=Empty())
    with pytest.raises(RuntimeError, match="Empty slot"):
        chain()
    with pytest.raises(RuntimeError, match="Empty slot"):
        chain(b={"a": 1})


@pytest.mark.parametrize("filling", [Other, Init(Other, 1), Lock(Other)])
def test_an_empty_slot_takes_a_class_or_an_init(filling):
    chain = ChainInit(a=Made, b=Empty())
    assert [type(made) for made in chain.reconf(b=filling)()] == [Made, Other]
    with pytest.raises(RuntimeError, match="Empty"):
        chain()  # itself it has not been changed


@pytest.mark.parametrize("wrong", [{"a": 1}, (True,), 3])
def test_an_empty_slot_takes_nothing_else(wrong):
    with pytest.raises(TypeError, match=r"'b' is Empty .* got"):
        ChainInit(b=Empty()).reconf(b=wrong)


# -- ChainInit -----------------------------------------------------------------------------------


def test_a_chain_makes_its_slots_in_order():
    chain = ChainInit(b=Made, a=Init(Other, 1))
    assert [type(made) for made in chain()] == [Made, Other]
    assert list(chain.init(dictionary=True)) == ["b", "a"]
    assert list(chain) == list(chain.keys()) == ["b", "a"]
    assert [key for key, _ in chain.items()] == ["b", "a"]
    assert list(chain.values()) == [chain["b"], chain["a"]]
    assert len(chain) == 2
    assert "a" in chain
    assert "c" not in chain
    assert [type(made) for made in ChainInit(regular_dict=True, b=Made)()] == [Made]


def test_a_slot_is_configured_by_keywords_a_tuple_or_one_argument():
    chain = ChainInit(a=Init(Made, 1, k=2))
    assert made_with(chain()[0]) == ((1,), {"k": 2})
    assert made_with(chain(a={"k": 3, "m": 4})[0]) == ((1,), {"k": 3, "m": 4})
    assert made_with(chain(a=(5, 6, {"k": 7}, {"m": 8}))[0]) == ((5, 6), {"k": 7, "m": 8})
    assert made_with(chain(a=9)[0]) == ((9,), {"k": 2})
    assert made_with(chain(a=None)[0]) == ((1,), {"k": 2})


def test_a_slot_that_is_switched_off_is_left_out():
    chain = ChainInit(a=Optional(Made, True), b=Optional(Other, False))
    assert [type(made) for made in chain()] == [Made]
    assert [type(made) for made in chain(a=False, b=True)] == [Other]
    assert made_with(chain(a=(True, {"k": 1}))[0]) == ((), {"k": 1})
    assert chain.init(dictionary=True, a=False) == {}


@pytest.mark.parametrize("method", ["__call__", "init", "reconf"])
def test_an_unknown_slot_is_named_with_a_suggestion(method):
    chain = ChainInit(backprop=Made, base=Made)
    with pytest.raises(KeyError, match=r"slots are backprop, base\. Did you mean 'backprop'"):
        getattr(chain, method)(backpropp=True)
    with pytest.raises(KeyError, match="slots are none"):
        ChainInit()(a=1)


def test_a_reconfigured_chain_is_a_new_one():
    chain = ChainInit(a=Init(Made, 1), b=Optional(Other, True), c=Lock(Made))
    changed = chain.reconf(a=2, b=False)
    assert [made_with(made) for made in changed()] == [((2,), {}), ((), {})]
    assert len(changed(b=True)) == 3
    assert [made_with(made) for made in chain()] == [((1,), {}), ((), {}), ((), {})]
    replaced = chain.reconf(c=Optional(Other, False), a={"k": 1}, b=(True, {"k": 2}))
    assert [made_with(made) for made in replaced()] == [((), {"k": 1}), ((), {"k": 2})]


def test_a_reconfigured_slot_keeps_its_kind():
    chain = ChainInit(lock=Lock(Made), choice=Choice((Made, Other), 0), switch=Optional(Made, True))
    changed = chain.reconf(lock={"k": 1}, choice=1, switch=False)
    assert {key: type(init) for key, init in changed.items()} == {
        "lock": Lock,
        "choice": Choice,
        "switch": Optional,
    }
    lock, choice = changed()
    assert lock.kwargs == {"k": 1}
    assert type(choice) is Other


# -- ChainInitTemplate ---------------------------------------------------------------------------


def template():
    return ChainInitTemplate(
        switch=Optional(Optional.init(Made, True), False), base=Init, fixed=Lock(Init.init(Other))
    )


def test_a_template_makes_chains():
    chain = template()(switch=True, base=Other)
    assert type(chain) is ChainInit
    assert list(chain) == ["switch", "base", "fixed"]
    assert [type(made) for made in chain()] == [Made, Other, Other]
    assert [type(made) for made in chain(switch=False)] == [Other, Other]
    assert list(template()(base=Other)) == ["base", "fixed"]


def test_a_reconfigured_template_is_a_template():
    changed = template().reconf(switch=True)
    assert type(changed) is ChainInitTemplate
    assert list(changed(base=Other)) == ["switch", "base", "fixed"]


def test_a_template_names_unknown_slots():
    with pytest.raises(KeyError, match="Did you mean 'switch'"):
        template()(swtch=True, base=Made)


@given(st.lists(st.booleans(), min_size=1, max_size=5), st.data())
def test_the_switches_of_a_chain_decide_what_is_made(defaults, data):
    """Every pattern of switches, by default and in the call."""
    chain = ChainInit(
        **{f"s{i}": Optional(Init(Made, i), default) for i, default in enumerate(defaults)}
    )
    call = data.draw(
        st.dictionaries(st.sampled_from([f"s{i}" for i in range(len(defaults))]), st.booleans())
    )
    wanted = [i for i, default in enumerate(defaults) if call.get(f"s{i}", default)]
    assert [made.args[0] for made in chain(**call)] == wanted
