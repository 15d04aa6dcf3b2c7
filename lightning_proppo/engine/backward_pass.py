"""One backward pass over a tape, and which one is running."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

from lightning_proppo.disagreement import Look
from lightning_proppo.engine.cuts import is_cut
from lightning_proppo.engine.graph import LeafIndex, vector_jacobian_product


class BackwardPass:
    """One backward pass over a tape: pulls cotangents to leaves and collects their gradients.

    Args:
        index: which leaves the tape's tensors reach.
        defer: pull everything back together, in :meth:`finish`. Right where no cut waits for its
            cotangent, and there as fast as plain back-propagation: costs at each of H steps that
            share one graph would otherwise take H passes over it.
        hooked: cuts with hooks of the user's, by ``id`` of the node that made them.
        incoming: the gradient [] of the rollout's loss; None: one.
        look: what is known of RP's bias, and is learned of it in this pass.

    Attributes:
        gradients: the gradients that arrived at parameters, by ``id`` of the parameter.
        statistics: what propagators noted on the way, e.g. ``"lr_weight"``: a list of tensors.
    """

    def __init__(
        self,
        index: LeafIndex | None = None,
        defer: bool = False,
        hooked: Mapping[int, Sequence[Tensor]] | None = None,
        incoming: Tensor | None = None,
        look: Look | None = None,
    ) -> None:
        self.look = look
        self.index = index if index is not None else LeafIndex()
        self.hooked = {} if hooked is None else hooked
        self.incoming = incoming
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

    def run_hooks(self, node: object) -> None:
        """Run the user's hooks on the cuts of a node whose turn it is: their cotangents are whole.

        As in PyTorch, a hook sees the gradient of what ``backward`` was called on, and what it
        returns takes the gradient's place.
        """
        for leaf in self.hooked.get(id(node), ()):
            total = leaf.grad
            if total is None:
                continue
            del leaf.grad
            scale = total.new_ones(()) if self.incoming is None else self.incoming.to(total)
            torch.autograd.backward([leaf], [total * scale])
            if leaf.grad is not None:
                # The pass is that of the loss itself; where that counts for nothing, so does this.
                leaf.grad = torch.where(scale == 0, 0.0, leaf.grad / scale)

    def note(self, name: str, value: Tensor) -> None:
        """Keep a detached value under ``name``, for logging."""
        self.statistics.setdefault(name, []).append(value.detach())


_active: ContextVar[BackwardPass | None] = ContextVar("proppo_backward_pass", default=None)


def active_pass() -> BackwardPass | None:
    """Return the pass that is running in this thread, or None."""
    return _active.get()


def active_index() -> LeafIndex:
    """Return the running pass's index of leaves, or a new one."""
    running = _active.get()
    return LeafIndex() if running is None else running.index


@contextlib.contextmanager
def activate(one: BackwardPass) -> Iterator[BackwardPass]:
    """Make ``one`` the running pass, also where it starts inside another one."""
    token = _active.set(one)
    try:
        yield one
    finally:
        _active.reset(token)
