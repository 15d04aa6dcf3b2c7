"""A computation that runs over a tape: node after node, with the messages among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lightning_proppo.containers import MARKS, Container, Message, Node, as_message
from lightning_proppo.engine.backward_pass import active_pass
from lightning_proppo.errors import PropagationError

if TYPE_CHECKING:
    from lightning_proppo.propagators.base import Propagator

# (node, its mailbox) -> what is sent; None: every message is passed on as it is.
Activation = Callable[[Any, Any], Any] | None


class Traversal:
    """Activates one computation at every node in turn and delivers the messages.

    Args:
        nodes: of a tape, in the order in which they were made.
        kind: ``"backward"``, or any other: the propagators' method ``<kind>_impl``.
        reverse: from the last node to the first (messages go to the node before by default); else
            from the first to the last (messages go to the node after).
        clear: whether nodes forget their contents once they have been activated.
    """

    def __init__(self, nodes: Sequence[Node], kind: str, reverse: bool, clear: bool) -> None:
        self.nodes = nodes
        self.kind = kind
        self.reverse = reverse
        self.clear = clear
        self.step = -1 if reverse else 1
        self._activations: dict[int, Activation] = {}
        self._outgoing: Message | None = None

    def run(self, message: Container | None = None) -> Message:
        """Go from one end to the other.

        Args:
            message: put into the mailbox of the first node that is activated; or a
                :class:`Message` whose targets count from just before that node (-1 is the node
                itself where the computation runs backward).

        Returns:
            What left the tape at the far end, with targets relative to it.

        Raises:
            PropagationError: if a node has no propagator.
        """
        nodes = self.nodes
        if message is not None:
            if not nodes:
                return message if isinstance(message, Message) else Message(container=message)
            self._begin_with(message)
        running = active_pass() if self.kind == "backward" else None
        run_hooks = running.run_hooks if running is not None and running.hooked else None
        current: Propagator | None = None
        activation: Activation = None
        for i in range(len(nodes) - 1, -1, -1) if self.reverse else range(len(nodes)):
            node = nodes[i]
            propagator = node.propagator
            if propagator is None:
                raise PropagationError(f"node {i} of the tape has no propagator.")
            if propagator is not current:
                current, activation = propagator, self._activation_of(propagator)
            if run_hooks is not None:
                run_hooks(node)
            if activation is not None or node.held is not MARKS or node.mail is not None:
                self._activate(i, node, activation)
            elif self.clear:
                # Without targets, an empty message that is passed on is no message.
                node.clear()
        outgoing = self._outgoing
        if outgoing is None:
            return Message()
        # One step beyond the end is what "no target given" means.
        if list(outgoing.targets()) == [self.step]:
            return Message(container=outgoing.get_message(self.step))
        return outgoing

    def _begin_with(self, message: Container) -> None:
        """Deliver a message from outside: from where a node before the first would be."""
        start = len(self.nodes) if self.reverse else -1
        parts = message.messages() if isinstance(message, Message) else [(None, message)]
        for target, container in parts:
            for relative in self._relatives(target, None, None):
                if 0 <= start + relative < len(self.nodes):
                    self.nodes[start + relative].receive(container)

    def _activation_of(self, propagator: Propagator) -> Activation:
        key = id(propagator)
        if key not in self._activations:
            self._activations[key] = propagator.activation(self.kind, self.reverse)
        return self._activations[key]

    def _activate(self, i: int, node: Node, activation: Activation) -> None:
        """Run the computation at one node and deliver what it sends."""
        mailbox = node.messages
        sent = mailbox if activation is None else activation(node, mailbox)
        if node.held is MARKS:
            force_targets = targets = None
        else:
            force_targets, targets = node.get("force_targets"), node.get("targets")
        by_default = force_targets is None and targets is None
        handed_on = message = None
        if by_default and type(sent) is Container and sent is mailbox and "targets" not in sent:
            handed_on = mailbox
        elif not (type(sent) is dict and not sent and by_default):
            message = as_message(sent, node.propagator)
        node.empty_mailbox()
        if self.clear and (node.held is MARKS or node.get("clear", True)):
            node.clear()
        if handed_on is not None and len(handed_on):
            index = i + self.step
            if 0 <= index < len(self.nodes) and self.nodes[index].mail is None:
                # The node's own mailbox becomes the next one's: nobody else holds it.
                self.nodes[index].mail = handed_on
                return
            message = Message(container=handed_on)
        if message is None:
            return
        for target, container in message.messages():
            if target is None and by_default:
                self._deliver(i, self.step, container)
                continue
            for relative in self._relatives(target, force_targets, targets):
                self._deliver(i, relative, container)

    def _deliver(self, i: int, relative: int, container: Container) -> None:
        """Put a message of node i into another's mailbox, or among those that leave the tape."""
        index = i + relative
        if 0 <= index < len(self.nodes):
            if len(container) or self.nodes[index].mail is not None:
                self.nodes[index].receive(container)
        elif (index < 0) == self.reverse and len(container):
            passed = Message(
                container, target=index if self.reverse else index - len(self.nodes) + 1
            )
            if self._outgoing is None:
                self._outgoing = passed
            else:
                self._outgoing.update(passed)

    def _relatives(self, target: Any, force_targets: Any, targets: Any) -> tuple[int, ...]:
        """Return whom a message is for: the node's will, the message's own, the node's advice."""
        for candidate in (force_targets, target, targets):
            if candidate is not None:
                check_targets("a message's targets", candidate)
                return (candidate,) if isinstance(candidate, int) else tuple(candidate)
        return (self.step,)


def check_targets(name: str, targets: Any) -> None:
    """Raise unless targets are an int or ints.

    Raises:
        TypeError: naming the argument.
    """
    if isinstance(targets, int):
        return
    if not isinstance(targets, (list, tuple)) or not all(isinstance(t, int) for t in targets):
        raise TypeError(
            f"{name} must be an int or a list of ints, relative to the sending node; "
            f"got {targets!r}."
        )
