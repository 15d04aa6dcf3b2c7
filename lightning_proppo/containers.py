"""Smart contents and the containers that hold them (Appendix D, listing 2).

A :class:`Content` decides what happens when a second value arrives under a name that is taken:
plain values are replaced, :class:`Summed` adds, :class:`Listed` appends, :class:`Locked` refuses.
A :class:`Container` maps names to contents, a :class:`Node` is a container with a mailbox and a
propagator, and a :class:`Message` is a container for each target that it is addressed to.

Nothing here is changed in place by an update: values that arrive are combined into new ones, so
two containers never share a mutable content.

Most values are plain, and a rollout has a dozen of them at every node. A container therefore keeps
a plain value as it is and makes a :class:`Content` of it only for who asks for contents
(:meth:`Container.get_contents`).
"""

from __future__ import annotations

import copy
from collections.abc import ItemsView, Iterator, KeysView, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_proppo.propagators.base import Propagator

Target = int | tuple[int, ...] | None

# What a forward computation leaves unsaid: its node is kept, and cleared by the backward pass.
MARKS: Mapping[str, Any] = MappingProxyType({"register_node": True, "clear": True})
NOTHING: Mapping[str, Any] = MappingProxyType({})


def _value(item: Any) -> Any:
    return item.get() if isinstance(item, Content) else item


def _merged(old: Any, new: Any) -> Any:
    """Return what a plain value becomes when another arrives under its name."""
    # Nothing is a mapping that has no keys(), and to ask a tensor for them is quicker.
    mapping = hasattr(old, "keys") and isinstance(old, Mapping)
    if mapping and isinstance(new, Mapping):
        return {**old, **new}
    if hasattr(old, "update") and not mapping:
        merged = copy.copy(old)
        merged.update(new)
        return merged
    return new


def _twin(item: Any) -> Any:
    """Return a container's item for another container, where it can be updated independently."""
    if isinstance(item, Content):
        return item.copy()
    return list(item) if isinstance(item, list) else item


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
        self.set(_merged(self._content, _value(value)))

    def copy(self) -> Content:
        """Return a content of the same kind that can be updated independently."""
        twin = object.__new__(type(self))
        twin._content = _twin(self._content)
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

    # Contents, or plain values instead of contents of the plain kind.
    _contents: dict[Any, Any]

    def __init__(
        self, cont_dict: Mapping[Any, Any] | Container | None = None, **kwargs: Any
    ) -> None:
        for key, item in kwargs.items():
            if isinstance(item, Content):
                kwargs[key] = item.copy()
        if isinstance(cont_dict, Container):
            kwargs.update(cont_dict._twins())
        elif cont_dict is not None:
            for key, item in dict(cont_dict).items():
                kwargs[key] = item.copy() if isinstance(item, Content) else item
        self._contents = kwargs

    def clear(self) -> None:
        """Forget all contents."""
        self._contents.clear()

    def get_contents(self) -> dict[Any, Any]:
        """Return the mapping from names to :class:`Content` objects."""
        contents = self._contents
        for key, item in contents.items():
            if not isinstance(item, Content):
                contents[key] = Content(item)
        return contents

    def set_content(self, key: Any, value: Any) -> None:
        """Set ``key``; a content that is there keeps its kind, a new one brings its own."""
        contents = self._contents
        if key not in contents:
            contents[key] = value.copy() if isinstance(value, Content) else value
        elif isinstance(contents[key], Content):
            contents[key].set(value)
        else:
            contents[key] = _value(value)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default`` where there is none."""
        return self[key] if key in self._contents else default

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
        return _value(self._contents.pop(key))

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
        if isinstance(container, Container):
            arrived = container._twins()
        elif isinstance(container, Mapping):
            arrived = dict(container)
        else:
            raise TypeError(
                f"a container is updated with a Container or a dict; got {container!r}."
            )
        contents = self._contents
        for key, value in arrived.items():
            if key not in contents:
                contents[key] = value.copy() if isinstance(value, Content) else value
            elif isinstance(contents[key], Content):
                contents[key].update(value)
            else:
                contents[key] = _merged(contents[key], _value(value))

    def _twins(self) -> dict[Any, Any]:
        """Return the contents for another container."""
        return {key: _twin(item) for key, item in self._contents.items()}

    def _copies(self) -> dict[Any, Any]:
        """Return the contents for a copy of this container."""
        return self._twins()

    def __copy__(self) -> Container:
        twin = type(self).__new__(type(self))
        for cls in type(self).__mro__:
            for name in getattr(cls, "__slots__", ()):
                setattr(twin, name, getattr(self, name))
        twin._contents = self._copies()
        return twin

    def copy(self) -> Container:
        """Return a container of the same kind that can be updated independently."""
        return copy.copy(self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, key: Any) -> Any:
        item = self._contents[key]
        return item.get() if isinstance(item, Content) else item

    def __setitem__(self, key: Any, value: Any) -> None:
        self.set_content(key, value)

    def __contains__(self, key: Any) -> bool:
        return key in self._contents

    def __str__(self) -> str:
        return f"Contents: {self.get_contents()}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.get_contents()})"


class Node(Container):
    """A container on a tape: contents, a mailbox for messages, and a propagator.

    Many nodes hold nothing and many get no mail, so neither the contents nor the mailbox is made
    before somebody looks.

    Args:
        cont_dict: initial contents.
        box_class: class of the mailbox.
        propagator: what computes at this node; ``None`` for the manager's default.
        **kwargs: more initial contents.

    Attributes:
        held: the contents. Until somebody looks, those of a blank node are :data:`MARKS` itself,
            which all such nodes share; once cleared they are :data:`NOTHING`.
        mail: the mailbox; None for one that nobody has looked at.
        propagator: what computes at this node.
    """

    __slots__ = ("held", "mail", "propagator")

    held: Mapping[Any, Any]
    mail: Container | None
    propagator: Propagator | None

    def __init__(
        self,
        cont_dict: Mapping[Any, Any] | Container | None = None,
        box_class: type[Container] = Container,
        propagator: Propagator | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(cont_dict, **kwargs)
        # A class of the user's own may count its instances, or be full from the beginning.
        self.mail = None if box_class is Container else box_class()
        self.propagator = propagator

    @classmethod
    def from_container(cls, container: Container | Mapping[str, Any]) -> Node:
        """Make a node of a container; ``box_class`` and ``propagator`` in it configure the node.

        Raises:
            TypeError: for anything but a container or a mapping.
        """
        if not isinstance(container, (Container, Mapping)):
            raise TypeError(
                "container must be a Container or a dict, as forward_impl returns them; "
                f"got {type(container).__name__}."
            )
        node = cls(container)
        if "box_class" in node:
            node.mail = node.pop("box_class")()
        if "propagator" in node:
            node.propagator = node.pop("propagator")
        return node

    @classmethod
    def blank(cls, propagator: Propagator | None) -> Node:
        """Return a node that holds :data:`MARKS`."""
        node = cls.__new__(cls)
        node.held = MARKS
        node.mail = None
        node.propagator = propagator
        return node

    @property
    def _contents(self) -> dict[Any, Any]:
        held = self.held
        if not isinstance(held, dict):
            self.held = held = dict(held)
        return held

    @_contents.setter
    def _contents(self, contents: dict[Any, Any]) -> None:
        self.held = contents

    # Reading makes no contents.

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default`` where there is none."""
        item = self.held.get(key, default)
        return item.get() if isinstance(item, Content) else item

    def __getitem__(self, key: Any) -> Any:
        item = self.held[key]
        return item.get() if isinstance(item, Content) else item

    def __contains__(self, key: Any) -> bool:
        return key in self.held

    @property
    def messages(self) -> Container:
        """The mailbox."""
        if self.mail is None:
            self.mail = Container()
        return self.mail

    @messages.setter
    def messages(self, box: Container) -> None:
        self.mail = box

    def clear(self) -> None:
        """Forget all contents."""
        if isinstance(self.held, dict):
            self.held.clear()
        else:
            self.held = NOTHING

    def forward(self, x: Any, **kwargs: Any) -> Any:
        """Run the propagator's forward computation on ``x``."""
        return self._assigned().forward(x, **kwargs)

    def backward(self) -> Message:
        """Run the propagator's backward computation on this node and its mailbox."""
        return self._assigned().backward(self, self.messages)

    def receive(self, message: Container | Mapping[str, Any]) -> None:
        """Put a message's containers into the mailbox."""
        self.messages.update(message)

    def empty_mailbox(self) -> None:
        """Forget the messages that have been read."""
        if type(self.mail) is Container:
            self.mail = None
        elif self.mail is not None:
            self.mail.clear()

    def assign_propagator(self, propagator: Propagator | None) -> None:
        """Set the propagator that computes at this node."""
        self.propagator = propagator

    def __copy__(self) -> Container:
        twin = super().__copy__()
        if isinstance(twin, Node) and self.mail is not None:
            twin.mail = self.mail.copy()
        return twin

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
                    self._contents[target] = Container(container)
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

    def _twins(self) -> dict[Any, Any]:
        return dict(self._contents) if self.multi_message else self.main()._twins()

    def _copies(self) -> dict[Any, Any]:
        return {target: container.copy() for target, container in self.messages()}

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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._contents})"

    def _switch_multi(self) -> None:
        self.multi_message = len(self._contents) > 1


def as_message(sent: Any, sender: object) -> Message:
    """Make a message of what a propagator's computation returned.

    Raises:
        TypeError: for anything but a message, a container, a dict, None or a sequence of those.
    """
    if isinstance(sent, Message):
        return sent
    if sent is None:
        return Message()
    if isinstance(sent, (dict, Container)):
        message = Message(sent)
        if "targets" in message:
            message.retarget(None, message.pop("targets"))
        return message
    if isinstance(sent, (tuple, list)):
        merged = as_message(sent[0], sender) if sent else Message()
        for part in sent[1:]:
            merged.update(as_message(part, sender))
        return merged
    raise TypeError(
        f"a computation of {type(sender).__name__} must return a message (a dict, Container, "
        f"Message, a list of those, or None); got {type(sent).__name__}."
    )
