"""A tape: the nodes of one rollout in the order in which they were made, and what they reach.

It knows neither Lightning nor which propagators exist.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_proppo.containers import MARKS, Container, Content, Message, Node
from lightning_proppo.disagreement import DisagreementMemory
from lightning_proppo.engine.cuts import is_cut, mark_cut, tape_of
from lightning_proppo.engine.graph import LeafIndex
from lightning_proppo.engine.traversal import Traversal, check_targets
from lightning_proppo.mathematics.precision import floating_tensors
from lightning_proppo.ranks import ALONE

if TYPE_CHECKING:
    from lightning_proppo.propagators.base import Propagator


# What most of a node's values are that are no tensors; nothing can be inside them.
_ATOMS = frozenset((bool, int, float, str, type(None)))


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


def _tensors_of(node: Node) -> list[Tensor]:
    """Return the tensors among a node's values, and in their dicts, lists and tuples."""
    found: list[Tensor] = []
    for item in node.held.values():
        kind = type(item)
        if kind is Tensor:
            found.append(item)
        elif kind not in _ATOMS:
            found.extend(tensors_in(item.get() if isinstance(item, Content) else item))
    return found


def _inner_tape(node: Node) -> Tape | None:
    """Return the tape that a node holds (or the manager that it holds, as in the paper)."""
    for name in ("tape", "manager"):
        if name in node:
            held = node[name]
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
        ranks: whose particles make up its batch.
        memory: what earlier gradients say of RP's bias, or None.
    """

    def __init__(self, terminal_propagator: Propagator | None = None) -> None:
        self.nodes: list[Node] = []
        self.calls = 0
        self.next_propagator: str | Propagator | None = None
        self.keep = False
        self.running = False
        self.ranks = ALONE
        self.memory: DisagreementMemory | None = None
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

    def record(
        self,
        x: Any,
        propagator: Propagator,
        kwargs: Mapping[str, Any] | None = None,
        force_targets: Any = None,
        register: bool = True,
    ) -> Node:
        """Run a propagator's forward computation and make its node the last on the tape.

        Args:
            x: the input.
            propagator: what computes.
            kwargs: the propagator's forward options.
            force_targets: where the node's messages go, whatever they say.
            register: False for an evaluation: the node is made but not put on the tape.

        Returns:
            The node; its ``'output'`` is what the computation gave.
        """
        kwargs = {} if kwargs is None else kwargs
        if force_targets is not None:
            check_targets("force_targets", force_targets)
        if self._ahead and len(self.nodes) in self._ahead:
            kwargs = {**kwargs, "inbox": self._ahead[len(self.nodes)]}
        made = propagator.contents_of_node(x, kwargs)
        if self._ahead:
            self._ahead.pop(len(self.nodes), None)
        self.calls += 1
        if type(made) is dict and not made and force_targets is None:
            # Nothing to be kept, to be sent, or to be looked for tensors.
            node = Node.blank(propagator)
            self.next_propagator = None
            if register:
                self.nodes.append(node)
            return node
        node = made if isinstance(made, Node) else Node.from_container(made)
        node.propagator = propagator
        for name, value in MARKS.items():
            if name not in node:
                node[name] = value
        if force_targets is not None:
            node["force_targets"] = force_targets
        self.next_propagator = node.pop("next_propagator", None)
        ahead = node.pop("forward_message", None)
        if register and node["register_node"]:
            self._adopt(node, x, kwargs)
            self.nodes.append(node)
            if ahead is not None:
                self._send_ahead(ahead)
        return node

    def check_reach(self, force_targets: Any) -> None:
        """Raise if messages of the next node, forced to these targets, would be lost.

        Raises:
            TypeError: if they are no targets.
            ValueError: if there are not so many nodes before it.
        """
        check_targets("force_targets", force_targets)
        before = len(self.nodes)
        for target in (force_targets,) if isinstance(force_targets, int) else force_targets:
            # To go one further than the first node is to leave the tape, as messages do.
            if target < -max(before, 1):
                raise ValueError(
                    f"force_targets must be nodes of this rollout, relative to this one; got "
                    f"{target}, but there are {before} nodes before it (with the terminal one), "
                    "and its messages would be lost."
                )

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
        clear = kind == "backward" and not self.root.keep
        try:
            return Traversal(self.nodes, kind, reverse, clear).run(message)
        finally:
            self.running = was_running

    def collect_leaves(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Walk every node's graph once.

        Returns:
            The parameters, and the cuts, that the recorded graph reaches, each by ``id``.
        """
        parameters: dict[int, Tensor] = {}
        cuts: dict[int, Tensor] = {}
        segments: list[list[Tensor]] = []
        for node in self._full_nodes():
            roots = []
            for tensor in _tensors_of(node):
                if tensor.is_leaf and is_cut(tensor):
                    # Also one that no later tensor was computed from: a cut of a cut, or a sample
                    # that is a cost as it is.
                    cuts[id(tensor)] = tensor
                elif tensor.requires_grad:
                    roots.append(tensor)
            if roots:
                segments.append(roots)
        if not cuts:
            # The whole graph is one segment. Costs at every step would be walked from again and
            # again, each as far as to the start.
            segments = [list(chain.from_iterable(segments))]
        for roots in segments:
            for leaf in self.index.add(roots):
                (cuts if is_cut(leaf) else parameters)[id(leaf)] = leaf
        return parameters, cuts

    def _full_nodes(self) -> Iterator[Node]:
        """Iterate over nodes with contents, also on tapes in nodes, which are to use our index."""
        for node in self.nodes:
            if node.held is MARKS:
                continue
            inner = _inner_tape(node)
            if inner is not None:
                inner.index = self.index
                yield from inner._full_nodes()
            yield node

    def makers(self, cuts: Sequence[Tensor]) -> dict[int, list[Tensor]]:
        """Return cuts by ``id`` of the node that made them, which is the first to hold them."""
        wanted = {id(leaf) for leaf in cuts}
        made: dict[int, list[Tensor]] = {}
        for node in self._full_nodes() if wanted else ():
            for tensor in _tensors_of(node):
                if id(tensor) in wanted:
                    wanted.remove(id(tensor))
                    made.setdefault(id(node), []).append(tensor)
        return made

    def release(self) -> None:
        """Let go of all nodes and of the graph that they hold."""
        for node in self.nodes:
            node.clear()
            node.empty_mailbox()
        self.nodes = []
        self._ahead.clear()
        self.index.clear()

    def _adopt(self, node: Node, x: Any, kwargs: Mapping[str, Any]) -> None:
        """Mark the leaves that the propagator made as cuts of this tape."""
        inner = _inner_tape(node)
        if inner is not None:
            inner.parent = weakref.ref(self)
        given: set[int] | None = None
        for tensor in _tensors_of(node):
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
