"""Smart initializers (Appendix D, listing 3): how composite propagators become factories.

An :class:`Init` is a class with default arguments, waiting to be called. A :class:`ChainInit` is
an ordered set of named Inits that makes a list of objects, where each slot can be configured, left
out (:class:`Optional`), switched (:class:`Choice`), or fixed (:class:`Lock`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from lightning_proppo.errors import did_you_mean


def _own(default: Any) -> Any:
    """Return a default value, copied where it is a plain dict, list or set."""
    return copy.copy(default) if type(default) in (dict, list, set) else default


class Init:
    """A callable with default arguments.

    Args:
        cls: what is called.
        *args: default positional arguments; used only when none are given in the call.
        defaults: more default positional arguments.
        kwdefaults: default keyword arguments.
        **kwargs: more of them; these win over ``kwdefaults``.
    """

    def __init__(
        self,
        cls: Any,
        *args: Any,
        defaults: tuple[Any, ...] | None = None,
        kwdefaults: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._cls = cls
        self.defaults = (*args, *(defaults or ()))
        self.kwdefaults = {**(kwdefaults or {}), **kwargs}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make the object; positional arguments replace all default ones, keywords merge."""
        chosen = {**self.kwdefaults, **kwargs}
        # What is made must not share a default dict or list with what is made next.
        return self._call(
            *(args or map(_own, self.defaults)),
            **{key: value if key in kwargs else _own(value) for key, value in chosen.items()},
        )

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        return self._cls(*args, **kwargs)

    @classmethod
    def init(cls, *args: Any, **kwargs: Any) -> Init:
        """Return an Init of this very class, for use in a :class:`ChainInitTemplate`."""
        return Init(cls, *args, **kwargs)


class Lock(Init):
    """An Init whose default arguments cannot be changed.

    Args:
        allow_unused: ignore arguments given in the call instead of refusing them.
    """

    def __init__(self, *args: Any, allow_unused: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_unused = allow_unused

    def __call__(self, *args: Any, allow_unused: bool = False, **kwargs: Any) -> Any:
        """Make the object with the default arguments.

        Raises:
            RuntimeError: if arguments are given that are not to be ignored.
        """
        if (args or kwargs) and not (allow_unused or self.allow_unused):
            raise RuntimeError(
                f"this Lock of {self._cls!r} takes no arguments, but got {args} and {kwargs}; "
                "leave them out, or use Init for a slot that can be configured."
            )
        return super().__call__()


class Optional(Init):
    """An Init whose first argument, ``on``, says whether the object is made (else ``None``)."""

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if "on" in kwargs:  # stands in the place of a default
            args = (kwargs.pop("on"), *args[1:])
        if not args or not isinstance(args[0], bool):
            came = repr(args[0]) if args else "nothing"
            raise TypeError(
                f"the first argument of an Optional is on, a bool; got {came}. To configure "
                f"{self._cls!r} too, pass (True, {{...}})."
            )
        return super()._call(*args[1:], **kwargs) if args[0] else None


class Choice(Init):
    """An Init whose first argument chooses among a tuple or dict of classes.

    Raises:
        TypeError: if the choices are not a tuple or dict.
    """

    def __init__(self, cls: tuple[Any, ...] | dict[Any, Any], *args: Any, **kwargs: Any) -> None:
        if not isinstance(cls, (tuple, dict)):
            raise TypeError(f"cls must be a tuple or dict of choices; got {type(cls).__name__}.")
        super().__init__(cls, *args, **kwargs)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if "choice" in kwargs:  # stands in the place of a default
            args = (kwargs.pop("choice"), *args[1:])
        keys = list(self._cls) if isinstance(self._cls, dict) else list(range(len(self._cls)))
        if not args or args[0] not in keys:
            came = repr(args[0]) if args else "nothing"
            hint = did_you_mean(str(args[0]), map(str, keys)) if args else ""
            raise KeyError(
                f"the first argument of a Choice must be one of {keys}; got {came}.{hint}"
            )
        return self._cls[args[0]](*args[1:], **kwargs)


class Empty(Init):
    """A slot that must be replaced (by ``reconf``) before the chain can be made."""

    def __init__(self) -> None:
        super().__init__(None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "this chain has an Empty slot; replace it with reconf(slot=...) before making it."
        )


class ChainInit:
    """Named Inits in order; calling it makes the objects.

    Args:
        regular_dict: kept for the paper's signature; dictionaries are ordered anyway.
        **kwargs: an Init, or a class to be wrapped in one, for each slot.
    """

    def __init__(self, regular_dict: bool = False, **kwargs: Any) -> None:
        del regular_dict
        self._chaininit: dict[str, Init] = {
            key: value if isinstance(value, Init) else Init(value) for key, value in kwargs.items()
        }

    def __call__(self, **kwargs: Any) -> Any:
        """Make the objects; see :meth:`init`."""
        return self.init(**kwargs)

    def init(self, dictionary: bool = False, **kwargs: Any) -> Any:
        """Make the objects, leaving out those that are switched off.

        Args:
            dictionary: return a dict by slot instead of a list.
            **kwargs: arguments for each slot: a dict of keywords, a tuple of positional arguments
                (whose dicts are keywords), or one positional argument.

        Raises:
            KeyError: for an unknown slot.
        """
        self._check_slots(kwargs)
        made = {
            key: self._init_inputs(init, kwargs.get(key)) for key, init in self._chaininit.items()
        }
        kept = {key: value for key, value in made.items() if value is not None}
        return kept if dictionary else list(kept.values())

    def reconf(self, **kwargs: Any) -> ChainInit:
        """Return a new chain in which the given slots have other Inits or other defaults.

        An :class:`Empty` slot, which has no class yet, takes an Init or a class.

        Raises:
            KeyError: for an unknown slot.
            TypeError: for an Empty slot that is given neither an Init nor a class.
        """
        self._check_slots(kwargs)
        chain = dict(self._chaininit)
        for key, value in kwargs.items():
            if isinstance(value, Init):
                chain[key] = value
            elif isinstance(chain[key], Empty):
                if not callable(value):
                    raise TypeError(
                        f"the slot {key!r} is Empty and must be given an Init or a class; "
                        f"got {value!r}."
                    )
                chain[key] = Init(value)
            else:
                old = chain[key]
                chain[key] = self._init_inputs(_rewrap(type(old), old._cls), value)
        return type(self)(regular_dict=False, **chain)

    def items(self) -> ItemsView[str, Init]:
        """Return slots and Inits."""
        return self._chaininit.items()

    def values(self) -> ValuesView[Init]:
        """Return the Inits."""
        return self._chaininit.values()

    def keys(self) -> KeysView[str]:
        """Return the slots' names."""
        return self._chaininit.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self._chaininit)

    def __contains__(self, key: object) -> bool:
        return key in self._chaininit

    def __getitem__(self, key: str) -> Init:
        return self._chaininit[key]

    def __len__(self) -> int:
        return len(self._chaininit)

    def _check_slots(self, kwargs: Mapping[str, Any]) -> None:
        for key in kwargs:
            if key not in self._chaininit:
                raise KeyError(
                    f"{key!r} is not a slot of this chain; its slots are "
                    f"{', '.join(self._chaininit) or 'none'}."
                    f"{did_you_mean(key, self._chaininit)}"
                )

    @staticmethod
    def _init_inputs(init: Callable[..., Any], inputs: Any) -> Any:
        if inputs is None:
            return init()
        if isinstance(inputs, tuple):
            args = [item for item in inputs if not isinstance(item, dict)]
            keywords: dict[str, Any] = {}
            for item in inputs:
                if isinstance(item, dict):
                    keywords.update(item)
            return init(*args, **keywords)
        if isinstance(inputs, dict):
            return init(**inputs)
        return init(inputs)


def _rewrap(kind: type[Init], cls: Any) -> Callable[..., Init]:
    return lambda *args, **kwargs: kind(cls, *args, **kwargs)


class ChainInitTemplate(ChainInit):
    """A chain of Inits of Inits: calling it makes a :class:`ChainInit`."""

    def __call__(self, **kwargs: Any) -> ChainInit:
        """Make the chain; the arguments configure it slot by slot."""
        return ChainInit(**self.init(dictionary=True, **kwargs))
