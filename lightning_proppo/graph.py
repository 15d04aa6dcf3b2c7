"""Cutting PyTorch's graph into segments, and pulling cotangents back through one segment.

A rollout's graph is cut at its sampling nodes: the propagator hands out a detached leaf (a *cut*)
and keeps the tensor before it. A segment therefore ends in leaf tensors of two sorts: cuts of
earlier nodes, which collect their cotangent in ``.grad`` until their own node is reached, and
parameters, whose gradients a :class:`Pullback` collects for whoever started the pass.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from lightning_proppo.errors import PropagationError

_AccumulateGrad: Any = type(
    torch.zeros((), requires_grad=True).view(()).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
)

_run_engine: Any = getattr(torch.autograd.graph, "_engine_run_backward", None)

# Set on a cut: the tape that made it (None until the tape has registered its node).
_CUT_MARK = "_proppo_tape"


def cut(x: Tensor, requires_grad: bool = True) -> Tensor:
    """Return ``x`` detached, as a leaf that collects its cotangent in ``.grad``.

    Without grad mode (an evaluation) the result is only detached.
    """
    leaf = x.detach()
    if requires_grad and torch.is_grad_enabled() and leaf.is_floating_point():
        # detach() of a detached tensor shares storage but is a new leaf, so it is ours to mark.
        leaf.requires_grad_()
        mark_cut(leaf, None)
    return leaf


def mark_cut(leaf: Tensor, tape: Any) -> None:
    """Say which tape a cut belongs to: a weak reference to it."""
    if leaf.is_leaf and leaf.requires_grad and not is_cut(leaf):
        leaf.register_post_accumulate_grad_hook(_refuse_stray_gradient)
    setattr(leaf, _CUT_MARK, tape)


def _refuse_stray_gradient(leaf: Tensor) -> None:
    """Raise where a gradient reaches a cut that no pass will carry further.

    Our own segments are pulled back with ``torch.autograd.grad``, which accumulates nothing, so
    this is called only for what is differentiated beside the rollout. Inside a pass a propagator
    may do so: its node's turn comes.
    """
    owner = tape_of(leaf)
    if owner is None:  # made outside any rollout
        return
    tape = owner()
    if tape is not None and tape.root.running:
        return
    leaf.grad = None
    raise PropagationError(
        f"a term beside the rollout's loss depends on a sample of the rollout (shape "
        f"{list(leaf.shape)}), whose gradient would be lost: it ends at the sample. Add the term "
        "to the costs (append_loss, one value for each particle), or detach() the sample where "
        "no gradient through it is wanted."
    )


def is_cut(leaf: Tensor) -> bool:
    """Return whether ``leaf`` was made by a node (and is not a parameter)."""
    return hasattr(leaf, _CUT_MARK)


def tape_of(leaf: Tensor) -> Any:
    """Return the tape of a cut."""
    return getattr(leaf, _CUT_MARK, None)


def find_leaves(functions: Iterable[Any]) -> list[Tensor]:
    """Return the leaf tensors that autograd functions reach, each once."""
    stack = list(dict.fromkeys(function for function in functions if function is not None))
    seen = set(stack)
    leaves: list[Tensor] = []
    while stack:
        function = stack.pop()
        if type(function) is _AccumulateGrad:
            leaves.append(function.variable)
            continue
        for following, _ in function.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return leaves


class LeafIndex:
    """Remembers which leaves each tensor reaches, so that a segment is walked once.

    The index may know more leaves for a tensor than it reaches (its node's other tensors' too, but
    no other node's): autograd answers None for those.
    """

    __slots__ = ("_leaves",)

    def __init__(self) -> None:
        self._leaves: dict[Any, list[Tensor]] = {}

    def add(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Walk from ``tensors`` together and return the leaves that they reach."""
        functions = [t.grad_fn for t in tensors if t.grad_fn is not None]
        leaves = find_leaves(functions)
        leaves.extend(t for t in tensors if t.grad_fn is None and t.requires_grad)
        for function in functions:
            # What nodes share, e.g. the mean of two samples, does not reach all that either does.
            shared = function in self._leaves
            self._leaves[function] = find_leaves([function]) if shared else leaves
        return leaves

    def leaves(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the leaves of ``tensors``, each once."""
        found: dict[int, Tensor] = {}
        for tensor in tensors:
            if tensor.grad_fn is None:
                known = [tensor] if tensor.requires_grad else []
            else:
                known = self._leaves.get(tensor.grad_fn) or self.add([tensor])
            for leaf in known:
                found[id(leaf)] = leaf
        return list(found.values())

    def clear(self) -> None:
        """Forget everything (and let the graph go)."""
        self._leaves.clear()


@contextlib.contextmanager
def hooks_muted(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Keep hooks that the user registered on parameters from firing once for every segment.

    They fire when the total arrives in the parameter, as they would in plain PyTorch.
    """
    hooked = [leaf._backward_hooks for leaf in leaves if leaf._backward_hooks]
    kept = [dict(hooks) for hooks in hooked]
    for hooks in hooked:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, items in zip(hooked, kept, strict=True):
            hooks.update(items)


def vector_jacobian_product(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Any]
) -> list[Tensor | None]:
    """Return the vector-Jacobian product of one segment; ``None`` for inputs not reached.

    Args:
        outputs: tensors that may or may not require a gradient (those that do not are left out).
        cotangents: one for each output, of its shape.
        inputs: tensors or :class:`torch.autograd.graph.GradientEdge`.
    """
    connected = [output.requires_grad for output in outputs]
    if not all(connected):
        outputs = [*itertools.compress(outputs, connected)]
        cotangents = [*itertools.compress(cotangents, connected)]
    if not outputs or not inputs:
        return [None] * len(inputs)
    hooked = [leaf for leaf in inputs if isinstance(leaf, Tensor) and leaf._backward_hooks]
    if not hooked:
        return list(_gradients(outputs, inputs, cotangents))
    with hooks_muted(hooked):
        return list(_gradients(outputs, inputs, cotangents))


def _gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Any], cotangents: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    # The graph is kept: segments may share it (an encoder used at every step), and it goes when
    # the tape goes.
    found: tuple[Tensor | None, ...]
    if _run_engine is None:
        found = torch.autograd.grad(
            outputs, inputs, cotangents, retain_graph=True, allow_unused=True
        )
        return found
    # The same, less its checks in Python, which take as long as a small segment does.
    found = _run_engine(
        tuple(outputs),
        tuple(cotangents),
        True,  # retain_graph
        False,  # create_graph
        tuple(inputs),
        allow_unreachable=True,
        accumulate_grad=False,
    )
    return found


class Pullback:
    """One backward pass over a tape: pulls cotangents to leaves and collects their gradients.

    Args:
        index: which leaves the tape's tensors reach.
        defer: pull everything back together, in :meth:`finish`. Right where no cut waits for its
            cotangent, and there as fast as plain back-propagation: costs at each of H steps that
            share one graph would otherwise take H passes over it.

    Attributes:
        gradients: the gradients that arrived at parameters, by ``id`` of the parameter.
        statistics: what propagators noted on the way, e.g. ``"lr_weight"``: a list of tensors.
    """

    def __init__(self, index: LeafIndex | None = None, defer: bool = False) -> None:
        self.index = index if index is not None else LeafIndex()
        self._deferred: list[tuple[Tensor, Tensor]] | None = [] if defer else None
        self.gradients: dict[int, Tensor] = {}
        self.parameters: dict[int, Tensor] = {}
        self.statistics: dict[str, list[Tensor]] = {}

    def leaves(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the leaves (cuts and parameters) that ``outputs`` reach."""
        return self.index.leaves(outputs)

    def pull(self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> None:
        """Pull cotangents back through one segment and deposit what arrives at its leaves."""
        inner = []
        for output, cotangent in zip(outputs, cotangents, strict=True):
            if output.requires_grad and output.grad_fn is None:
                self.deposit(output, cotangent)
            else:
                inner.append((output, cotangent))
        if self._deferred is not None:
            self._deferred.extend(inner)
        else:
            self._pull(inner)

    def finish(self) -> None:
        """Pull back what was deferred."""
        if self._deferred:
            self._pull(self._deferred)
            self._deferred = []

    def _pull(self, inner: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not inner:
            return
        tensors = [output for output, _ in inner]
        leaves = self.leaves(tensors)
        gradients = vector_jacobian_product(tensors, [c for _, c in inner], leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                self.deposit(leaf, gradient)

    def deposit(self, leaf: Tensor, gradient: Tensor) -> None:
        """Add a gradient to a leaf's total: in ``.grad`` for a cut, here for a parameter."""
        if gradient.requires_grad:  # a propagator that computes with the segment's tensors
            gradient = gradient.detach()
        if is_cut(leaf):
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
            return
        key = id(leaf)
        if key in self.gradients:
            self.gradients[key] = self.gradients[key] + gradient
        else:
            self.parameters[key] = leaf
            self.gradients[key] = gradient

    def note(self, name: str, value: Tensor) -> None:
        """Keep a detached value under ``name``, for logging."""
        self.statistics.setdefault(name, []).append(value.detach())


_active: ContextVar[Pullback | None] = ContextVar("proppo_pullback", default=None)


def active_pullback() -> Pullback | None:
    """Return the pass that is running in this thread, or None."""
    return _active.get()


@contextlib.contextmanager
def activate(pullback: Pullback) -> Iterator[Pullback]:
    """Make ``pullback`` the running pass, also where it starts inside another one."""
    token = _active.set(pullback)
    try:
        yield pullback
    finally:
        _active.reset(token)
