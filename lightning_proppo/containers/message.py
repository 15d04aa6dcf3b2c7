"""Containers addressed to nodes, and what propagators return made into such."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping
from typing import Any

from lightning_proppo.containers.container import Container

Target = int | tuple[int, ...] | None


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

    def _parts(self) -> Iterable[Container]:
        return self.containers()

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
