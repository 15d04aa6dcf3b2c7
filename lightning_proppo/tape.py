"""A tape: the nodes of one rollout in the order in which they were made, and messages among them.

The tape knows nodes, targets and the two directions in which a computation can run over them. It
knows neither Lightning nor which propagators exist.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_proppo.containers import Container, Message, Node
from lightning_proppo.densities import floating_tensors
from lightning_proppo.errors import PropagationError
from lightning_proppo.graph import LeafIndex, is_cut, mark_cut, tape_of

if TYPE_CHECKING:
    from lightning_proppo.propagators.base import Propagator


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in a value: itself, or inside dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def _inner_tape(node: Node) -> Tape | None:
    """Return the tape that a node holds (or the manager that it holds, as in the paper)."""
    for name in ("tape", "manager"):
        held = node.get(name)
        inner = getattr(held, "_tape", held)
        if isinstance(inner, Tape):
            return inner
    return None


def _tensors_held(propagator: Propagator | None) -> Iterator[Tensor]:
    """Iterate over the tensors that a propagator, or one that it is made of, had before."""
    if propagator is not None:
        yield from tensors_in(vars(propagator))
        for part in getattr(propagator, "propagators", ()):
            yield from _tensors_held(part)


class Tape:
    """The nodes of one rollout.

    Args:
        terminal_propagator: computes at a node before the first; receives what messages remain at
            the end of a backward pass. ``None`` for no such node.

    Attributes:
        nodes: the nodes, the terminal one (where there is one) first.
        calls: how many forward computations were made, registered as nodes or not.
        next_propagator: what the last forward computation chose for the next one, or None.
        keep: whether nodes keep their contents in a backward pass, for another one.
        running: whether a computation runs over the nodes.
    """

    def __init__(self, terminal_propagator: Propagator | None = None) -> None:
        self.nodes: list[Node] = []
        self.calls = 0
        self.next_propagator: str | Propagator | None = None
        self.keep = False
        self.running = False
        self.index = LeafIndex()
        self.parent: weakref.ref[Tape] | None = None
        self._ahead: dict[int, Container] = {}
        if terminal_propagator is not None:
            node = Node({"clear": False})
            node.assign_propagator(terminal_propagator)
            self.nodes.append(node)
        self._own = len(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def recorded(self) -> int:
        """How many nodes were made, without the terminal one."""
        return len(self.nodes) - self._own

    @property
    def root(self) -> Tape:
        """The tape that this one is nested in, at the outermost."""
        parent = self.parent() if self.parent is not None else None
        return self if parent is None else parent.root

    def forward(
        self,
        x: Any,
        propagator: Propagator,
        force_targets: Any = None,
        register: bool = True,
        **kwargs: Any,
    ) -> Node:
        """Run a propagator's forward computation and make its node the last on the tape.

        Args:
            x: the input.
            propagator: what computes.
            force_targets: where the node's messages go, whatever they say.
            register: False for an evaluation: the node is made but not put on the tape.
            **kwargs: the propagator's forward options.

        Returns:
            The node; its ``'output'`` is what the computation gave.
        """
        if force_targets is not None:
            _check_targets("force_targets", force_targets)
        waiting = self._ahead.get(len(self.nodes))
        if waiting is not None:
            kwargs["inbox"] = waiting
        container = propagator.forward(x, **kwargs)
        node = container if isinstance(container, Node) else Node.from_container(container)
        node.assign_propagator(propagator)
        self.calls += 1
        if force_targets is not None:
            node["force_targets"] = force_targets
        self.next_propagator = node.pop("next_propagator", None)
        ahead = node.pop("forward_message", None)
        self._ahead.pop(len(self.nodes), None)
        if register and node["register_node"]:
            self._adopt(node, x, kwargs)
            self.nodes.append(node)
            if ahead is not None:
                self._send_ahead(ahead)
        return node

    def run(
        self, kind: str = "backward", message: Container | None = None, reverse: bool = True
    ) -> Message:
        """Activate one computation at every node in turn and deliver the messages.

        Args:
            kind: ``"backward"``, or any other: the propagators' method ``<kind>_impl``.
            message: put into the mailbox of the first node that is activated; or a
                :class:`Message` whose targets count from just before that node (-1 is the node
                itself where the computation runs backward).
            reverse: from the last node to the first (messages go to the node before by default);
                else from the first to the last (messages go to the node after).

        Returns:
            What left the tape at the far end, with targets relative to it.
        """
        was_running, self.running = self.running, True
        try:
            return self._run(kind, message, reverse)
        finally:
            self.running = was_running

    def _run(self, kind: str, message: Container | None, reverse: bool) -> Message:
        nodes = self.nodes
        keep = self.root.keep
        outgoing: Message | None = None
        indices = range(len(nodes) - 1, -1, -1) if reverse else range(len(nodes))
        if message is not None:
            if not nodes:
                return message if isinstance(message, Message) else Message(container=message)
            # It comes from outside: from where a node before the first to be activated would be.
            start = len(nodes) if reverse else -1
            parts = message.messages() if isinstance(message, Message) else [(None, message)]
            for target, container in parts:
                for relative in self._resolve(target, None, None, reverse):
                    if 0 <= start + relative < len(nodes):
                        nodes[start + relative].receive(container)
        for i in indices:
            node = nodes[i]
            propagator = node.propagator
            if propagator is None:
                raise PropagationError(f"node {i} of the tape has no propagator.")
            sent = propagator.compute(kind, node, node.messages, reverse=reverse)
            force_targets = node.get("force_targets")
            targets = node.get("targets")
            if kind == "backward" and not keep and node.get("clear", True):
                node.clear()
            node.messages.clear()
            for target, container in sent.messages():
                for relative in self._resolve(target, force_targets, targets, reverse):
                    index = i + relative
                    if 0 <= index < len(nodes):
                        nodes[index].receive(container)
                    elif (index < 0) == reverse and len(container):
                        over = index if reverse else index - len(nodes) + 1
                        passed = Message(container.get_contents(), target=over)
                        if outgoing is None:
                            outgoing = passed
                        else:
                            outgoing.update(passed)
        if outgoing is None:
            return Message()
        # One step beyond the end is what "no target given" means.
        default = -1 if reverse else 1
        if list(outgoing.targets()) == [default]:
            return Message(container=outgoing.get_message(default))
        return outgoing

    def collect_leaves(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Walk every node's graph once.

        Returns:
            The parameters, and the cuts, that the recorded graph reaches, each by ``id``.
        """
        parameters: dict[int, Tensor] = {}
        cuts: dict[int, Tensor] = {}
        for node in self.nodes:
            inner = _inner_tape(node)
            if inner is not None:
                inner.index = self.index
                inner_parameters, inner_cuts = inner.collect_leaves()
                parameters.update(inner_parameters)
                cuts.update(inner_cuts)
            roots = []
            for tensor in chain.from_iterable(map(tensors_in, node.values())):
                if tensor.is_leaf and is_cut(tensor):
                    # Also one that no later tensor was computed from: a cut of a cut, or a sample
                    # that is a cost as it is.
                    cuts[id(tensor)] = tensor
                elif tensor.requires_grad:
                    roots.append(tensor)
            for leaf in self.index.add(roots):
                (cuts if is_cut(leaf) else parameters)[id(leaf)] = leaf
        return parameters, cuts

    def release(self) -> None:
        """Let go of all nodes and of the graph that they hold."""
        for node in self.nodes:
            node.clear()
            node.messages.clear()
        self.nodes = []
        self._ahead.clear()
        self.index.clear()

    def _adopt(self, node: Node, x: Any, kwargs: Mapping[str, Any]) -> None:
        """Mark the leaves that the propagator made as cuts of this tape."""
        inner = _inner_tape(node)
        if inner is not None:
            inner.parent = weakref.ref(self)
        given: set[int] | None = None
        for value in node.values():
            for tensor in tensors_in(value):
                if not (tensor.requires_grad and tensor.is_leaf):
                    continue
                if is_cut(tensor):
                    if tape_of(tensor) is None:
                        mark_cut(tensor, weakref.ref(self))
                    continue
                # A propagator may detach by itself, as the paper's listings do. What it was not
                # given, and what is no parameter, it has made.
                if given is None:
                    given = {id(t) for t in tensors_in([x, dict(kwargs)])}
                    given |= {id(t) for t in _tensors_held(node.propagator)}
                    for dist in kwargs.values():
                        if isinstance(dist, Distribution):  # whose location may be such a leaf
                            given |= {id(t) for t in floating_tensors(dist)}
                if not isinstance(tensor, nn.Parameter) and id(tensor) not in given:
                    mark_cut(tensor, weakref.ref(self))

    def _send_ahead(self, message: Any) -> None:
        """Keep a forward computation's message for a node that is still to be made."""
        if not isinstance(message, Message):
            message = Message(message)
        sender = len(self.nodes) - 1
        for target, container in message.messages():
            relatives = (
                (1,) if target is None else (target if isinstance(target, tuple) else (target,))
            )
            for relative in relatives:
                index = sender + relative
                if 0 <= index < len(self.nodes):
                    self.nodes[index].receive(container)
                else:
                    box = self._ahead.setdefault(index, Container())
                    box.update(container)

    @staticmethod
    def _resolve(target: Any, force_targets: Any, targets: Any, reverse: bool) -> tuple[int, ...]:
        for candidate in (force_targets, target, targets):
            if candidate is not None:
                chosen = candidate
                break
        else:
            return (-1,) if reverse else (1,)
        _check_targets("a message's targets", chosen)
        return (chosen,) if isinstance(chosen, int) else tuple(chosen)


def _check_targets(name: str, targets: Any) -> None:
    if isinstance(targets, int):
        return
    if not isinstance(targets, (list, tuple)) or not all(isinstance(t, int) for t in targets):
        raise TypeError(
            f"{name} must be an int or a list of ints, relative to the sending node; "
            f"got {targets!r}."
        )
