"""A container on a tape."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lightning_proppo.containers.container import Container
from lightning_proppo.containers.contents import Content
from lightning_proppo.containers.message import Message

if TYPE_CHECKING:
    from lightning_proppo.propagators.base import Propagator

# What a forward computation leaves unsaid: its node is kept, and cleared by the backward pass.
MARKS: Mapping[str, Any] = MappingProxyType({"register_node": True, "clear": True})
NOTHING: Mapping[str, Any] = MappingProxyType({})


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
