"""Smart contents and the containers that hold them (Appendix D, listing 2).

A :class:`Content` decides what happens when a second value arrives under a name that is taken:
plain values are replaced, :class:`Summed` adds, :class:`Listed` appends, :class:`Locked` refuses.
A :class:`Container` maps names to contents, a :class:`Node` is a container with a mailbox and a
propagator, and a :class:`Message` is a container for each target that it is addressed to.

Nothing here is changed in place by an update: values that arrive are combined into new ones, so
two containers never share a mutable content.
"""

from __future__ import annotations

import copy
from collections.abc import ItemsView, Iterator, KeysView, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_proppo.propagators.base import Propagator

Target = int | tuple[int, ...] | None


def _value(item: Any) -> Any:
    return item.get() if isinstance(item, Content) else item


class Content:
    """A value that may be replaced."""

    __slots__ = ("_content",)

    def __init__(self, content: Any) -> None:
        self._content = _value(content)

    def get(self) -> Any:
        """Return the value."""
        return self._content

    def set(self, value: Any) -> None:
        """Replace the value."""
        self._content = _value(value)

    def update(self, value: Any) -> None:
        """Merge mappings, replace anything else."""
        old, new = self._content, _value(value)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            self._content = {**old, **new}
        elif hasattr(old, "update") and not isinstance(old, Mapping):
            merged = copy.copy(old)
            merged.update(new)
            self._content = merged
        else:
            self.set(new)

    def copy(self) -> Content:
        """Return a content of the same kind that can be updated independently."""
        twin = object.__new__(type(self))
        value = self._content
        twin._content = list(value) if isinstance(value, list) else value
        return twin

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._content})"

    def __str__(self) -> str:
        return str(self._content)

    def __add__(self, value: Any) -> Any:
        return self._content + _value(value)

    def __mul__(self, value: Any) -> Any:
        return self._content * _value(value)

    def __rmul__(self, value: Any) -> Any:
        return _value(value) * self._content

    def __matmul__(self, value: Any) -> Any:
        return self._content @ _value(value)


class Summed(Content):
    """A value to which updates are added (never in place)."""

    __slots__ = ()

    def update(self, value: Any) -> None:
        """Add ``value``."""
        self.set(self + value)


class Locked(Content):
    """A value that is never changed."""

    __slots__ = ()

    def set(self, value: Any) -> None:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"this content is Locked at {self._content!r} and cannot be set to {_value(value)!r}; "
            "use Content for a value that changes."
        )

    def update(self, value: Any) -> None:
        """Refuse, as :meth:`set` does."""
        self.set(value)


class Listed(Content):
    """A list to which updates are appended."""

    __slots__ = ()

    def __init__(self, *items: Any) -> None:
        self._content = [_value(item) for item in items]

    def update(self, *items: Any) -> None:
        """Append each item; another :class:`Listed` is appended item by item."""
        self._content = self._content + self._flatten(items)

    def set(self, *items: Any) -> None:
        """Replace the list by the items."""
        self._content = self._flatten(items)

    @staticmethod
    def _flatten(items: tuple[Any, ...]) -> list[Any]:
        flat: list[Any] = []
        for item in items:
            if isinstance(item, Listed):
                flat.extend(item.get())
            else:
                flat.append(_value(item))
        return flat


class Container:
    """A mapping from names to contents; reading a name gives the plain value.

    Args:
        cont_dict: initial contents (a container's keep their kind); they win over ``kwargs`` of
            the same name.
        **kwargs: more initial contents.
    """

    __slots__ = ("_contents",)

    _contents: dict[Any, Any]

    def __init__(
        self, cont_dict: Mapping[Any, Any] | Container | None = None, **kwargs: Any
    ) -> None:
        if cont_dict is not None:
            if isinstance(cont_dict, Container):
                cont_dict = cont_dict.get_contents()
            kwargs.update(cont_dict)
        self._contents = {
            k: v.copy() if isinstance(v, Content) else Content(v) for k, v in kwargs.items()
        }

    def clear(self) -> None:
        """Forget all contents."""
        self._contents.clear()

    def get_contents(self) -> dict[Any, Any]:
        """Return the mapping from names to :class:`Content` objects."""
        return self._contents

    def set_content(self, key: Any, value: Any) -> None:
        """Set ``key``; a content that is there keeps its kind, a new one brings its own."""
        if key in self._contents:
            self._contents[key].set(value)
        else:
            self._contents[key] = value.copy() if isinstance(value, Content) else Content(value)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default`` where there is none."""
        return self._contents[key].get() if key in self._contents else default

    def keys(self) -> Any:
        """Return the names."""
        return self._contents.keys()

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Iterate over names and plain values."""
        return ((key, self[key]) for key in self.keys())

    def values(self) -> Iterator[Any]:
        """Iterate over plain values."""
        return (self[key] for key in self.keys())

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove ``key`` and return its plain value (or ``default``)."""
        if key not in self._contents and default:
            return default[0]
        return self._contents.pop(key).get()

    def update(self, container: Container | Mapping[Any, Any]) -> None:
        """Update content by content: names that are taken follow their content's own rule.

        A message counts as the contents for all of its targets.

        Raises:
            TypeError: for anything but a container or a mapping.
        """
        if isinstance(container, Message):
            for part in container.containers():
                self.update(part)
            return
        if not isinstance(container, (Container, Mapping)):
            raise TypeError(
                f"a container is updated with a Container or a dict; got {container!r}."
            )
        contents = container._contents if isinstance(container, Container) else container
        for key, value in list(contents.items()):
            if key in self._contents:
                self._contents[key].update(value)
            else:
                self._contents[key] = value.copy() if isinstance(value, Content) else Content(value)

    def __copy__(self) -> Container:
        twin = type(self).__new__(type(self))
        for cls in type(self).__mro__:
            for name in getattr(cls, "__slots__", ()):
                setattr(twin, name, getattr(self, name))
        twin._contents = {key: item.copy() for key, item in self._contents.items()}
        return twin

    def copy(self) -> Container:
        """Return a container of the same kind that can be updated independently."""
        return copy.copy(self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, key: Any) -> Any:
        return self._contents[key].get()

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set_content(key, value)

    def __contains__(self, key: Any) -> bool:
        return key in self._contents

    def __str__(self) -> str:
        return f"Contents: {self._contents}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._contents})"


class Node(Container):
    """A container on a tape: contents, a mailbox for messages, and a propagator.

    Args:
        cont_dict: initial contents.
        box_class: class of the mailbox.
        propagator: what computes at this node; ``None`` for the manager's default.
        **kwargs: more initial contents.
    """

    __slots__ = ("messages", "propagator")

    def __init__(
        self,
        cont_dict: Mapping[Any, Any] | Container | None = None,
        box_class: type[Container] = Container,
        propagator: Propagator | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(cont_dict, **kwargs)
        self.messages = box_class()
        self.propagator = propagator

    @classmethod
    def from_container(cls, container: Container | Mapping[str, Any]) -> Node:
        """Make a node of a container; ``box_class`` and ``propagator`` in it configure the node.

        Raises:
            TypeError: for anything but a container or a mapping.
        """
        if isinstance(container, Container):
            contents = dict(container.get_contents())
        elif isinstance(container, Mapping):
            contents = dict(container)
        else:
            raise TypeError(
                "container must be a Container or a dict, as forward_impl returns them; "
                f"got {type(container).__name__}."
            )
        configuration = {
            key: _value(contents.pop(key)) for key in ("box_class", "propagator") if key in contents
        }
        return cls(contents, **configuration)

    def forward(self, x: Any, **kwargs: Any) -> Any:
        """Run the propagator's forward computation on ``x``."""
        return self._assigned().forward(x, **kwargs)

    def backward(self) -> Message:
        """Run the propagator's backward computation on this node and its mailbox."""
        return self._assigned().backward(self, self.messages)

    def receive(self, message: Container | Mapping[str, Any]) -> None:
        """Put a message's containers into the mailbox."""
        self.messages.update(message)

    def assign_propagator(self, propagator: Propagator | None) -> None:
        """Set the propagator that computes at this node."""
        self.propagator = propagator

    def _assigned(self) -> Propagator:
        if self.propagator is None:
            raise RuntimeError("this node has no propagator; call assign_propagator first.")
        return self.propagator


class Message(Container):
    """Containers by target; with a single target it reads and writes like that container.

    A target is an index relative to the sending node (-1 is the node before), a tuple of such, or
    ``None``: wherever the node's ``'targets'`` say, else -1.

    Args:
        cont_dict: contents for ``target``.
        target: who gets them.
        container: an existing container for ``target``, instead of ``cont_dict``.
        **kwargs: more contents for ``target``.
    """

    __slots__ = ("multi_message",)

    def __init__(
        self,
        cont_dict: Mapping[Any, Any] | Container | None = None,
        target: Target | list[int] = None,
        container: Container | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(target, list):
            target = tuple(target)
        main = Container(cont_dict, **kwargs) if container is None else container
        self._contents: dict[Target, Container] = {target: main}
        self.multi_message = False

    def targets(self) -> KeysView[Target]:
        """Return the targets."""
        return self._contents.keys()

    def messages(self) -> ItemsView[Target, Container]:
        """Return pairs of target and container."""
        return self._contents.items()

    def containers(self) -> Iterator[Container]:
        """Iterate over the containers of all targets."""
        return iter(self._contents.values())

    def get_message(self, target: Target) -> Container:
        """Return the container of one target."""
        return self._contents[target]

    def pop_message(self, target: Target) -> Container:
        """Remove one target and return its container."""
        container = self._contents.pop(target)
        self._switch_multi()
        return container

    def retarget(self, old: Target, new: Target | list[int]) -> None:
        """Give the container of ``old`` to ``new``, in its place."""
        if isinstance(new, list):
            new = tuple(new)
        self._contents = {
            new if target == old else target: container
            for target, container in self._contents.items()
        }

    def main(self) -> Container:
        """Return the container of the first target.

        Raises:
            KeyError: if the last target has been popped.
        """
        for container in self._contents.values():
            return container
        raise KeyError("this message has no target left: its last one was popped.")

    # The paper's name, which propagators that combine others there call.
    _get_main_message = main

    def update(self, message: Container | Mapping[Any, Any]) -> None:
        """Merge another message target by target, or a container into the only target.

        No target at all and the node before (-1) are one and the same, where both occur.

        Raises:
            TypeError: for a container without target where there are several targets.
        """
        if isinstance(message, Message):
            for target, container in message.messages():
                if target is None and -1 in self._contents:
                    target = -1
                elif target == -1 and None in self._contents:
                    self.retarget(None, -1)
                if target in self._contents:
                    self._contents[target].update(container)
                else:
                    self._contents[target] = Container(container.get_contents())
            self._switch_multi()
        elif isinstance(message, (Container, Mapping)):
            if self.multi_message:
                raise TypeError(
                    f"this message has the targets {list(self.targets())}, so it is not clear "
                    "which of them to update; pass a Message with its own target."
                )
            self.main().update(message)
        else:
            raise TypeError(
                f"message must be a Message, a Container or a dict; got {type(message).__name__}."
            )

    def keys(self) -> Any:
        """Return the names in all containers."""
        if not self.multi_message:
            return self.main().keys()
        return [key for container in self.containers() for key in container]

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Iterate over names and values in all containers."""
        return (item for container in self.containers() for item in container.items())

    def values(self) -> Iterator[Any]:
        """Iterate over the values in all containers."""
        return (value for container in self.containers() for value in container.values())

    def get_contents(self) -> dict[Any, Any]:
        """Return the contents of the only container, or the containers by target."""
        return self._contents if self.multi_message else self.main().get_contents()

    def get(self, key: Any, default: Any = None) -> Any:
        """Return a value of the only container, or the container of a target."""
        if self.multi_message:
            return self._contents.get(key, default)
        return self.main().get(key, default)

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove a name from the only container, or a target from several."""
        if self.multi_message:
            if key not in self._contents and default:
                return default[0]
            return self.pop_message(key)
        return self.main().pop(key, *default)

    def clear(self) -> None:
        """Forget the contents of every target."""
        for container in self.containers():
            container.clear()

    def __len__(self) -> int:
        return sum(len(container) for container in self.containers())

    def __getitem__(self, key: Any) -> Any:
        return self._contents[key] if self.multi_message else self.main()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.multi_message:
            self._contents[key] = value if isinstance(value, Container) else Container(value)
        else:
            self.main().set_content(key, value)

    def __contains__(self, key: Any) -> bool:
        return key in (self._contents if self.multi_message else self.main())

    def __str__(self) -> str:
        return f"Message: {self._contents}"

    def _switch_multi(self) -> None:
        self.multi_message = len(self._contents) > 1
