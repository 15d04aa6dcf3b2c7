"""The hand-over: one autograd node whose backward pass runs a tape's propagators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_proppo.containers import Message
from lightning_proppo.disagreement import Look
from lightning_proppo.engine.backward_pass import BackwardPass, activate
from lightning_proppo.engine.cuts import has_hooks, tape_of
from lightning_proppo.engine.tape import Tape
from lightning_proppo.errors import PropagationError, add_note
from lightning_proppo.mathematics.precision import full_precision
from lightning_proppo.ranks import activate_ranks

Report: TypeAlias = Callable[[dict[str, list[Tensor]], bool], None]

_DIFFERENTIATED = (
    "this rollout has been differentiated and its tape released; to do it twice, pass "
    "retain_graph=True the first time."
)
_FAILED = (
    "this rollout's tape was released when a backward pass over it failed; record a new rollout."
)


class ClosedTape:
    """A tape that takes no more nodes and waits to be differentiated.

    Args:
        tape: the tape.
        name: of the manager's method that closed it, for error messages.
        takes_more: whether parameters may turn up that were not known when the tape was closed
            (where gradients are handed to them one by one; an autograd node cannot take more).

    Attributes:
        parameters: the leaf tensors that the recorded graph reaches.
        differentiated: whether a backward pass has been run.

    Raises:
        PropagationError: if the recorded graph reaches samples of another rollout.
    """

    def __init__(self, tape: Tape, name: str, takes_more: bool = False) -> None:
        parameters, cuts = tape.collect_leaves()
        for leaf in cuts.values():
            owner = tape_of(leaf)
            other = owner() if owner is not None else None
            if other is None or other.root is not tape:
                tape.release()
                raise PropagationError(
                    f"{name}: the costs depend on a sample of another rollout (shape "
                    f"{list(leaf.shape)}), whose gradient would be lost. To start a rollout from "
                    "where another ended, detach() the state; to differentiate through both, "
                    "record them before a single loss()."
                )
        self.tape = tape
        self.takes_more = takes_more
        self.parameters = list(parameters.values())
        self.differentiated = False
        self._cuts = list(cuts.values())
        self._released: str | None = None
        self._look: Look | None = None  # of the latest pass

    def gradients(
        self, keep: bool, message: Any = None, incoming: Tensor | None = None
    ) -> tuple[list[Tensor | None], Message, dict[str, list[Tensor]]]:
        """Run the propagators backward.

        Args:
            keep: keep the tape for another pass.
            message: put into the last node's mailbox.
            incoming: the gradient [] of the rollout's loss, for hooks and ``.grad`` of samples;
                None: one.

        Returns:
            A gradient of the loss for each parameter (None where none arrived), the messages that
            left the tape, and what propagators noted.

        Raises:
            PropagationError: if the tape has been released by an earlier pass.
        """
        if self._released is not None:
            raise PropagationError(self._released)
        cuts = self._cuts
        earlier = [leaf.grad for leaf in cuts]
        for leaf in cuts:
            leaf.grad = None
        hooked = self.tape.makers([leaf for leaf in cuts if has_hooks(leaf)])
        self.tape.keep = keep
        memory = self.tape.memory
        if memory is not None:
            self._look = self._look.again() if self._look else memory.begin(len(self.tape))
        look = self._look
        try:
            # A pass may start inside another thread or another pass; this one is its own.
            # Each operation's backward runs in the precision of its forward; sums over particles
            # must not be cast where backward is called under autocast (manual optimization).
            with (
                full_precision(self.parameters[0]) if self.parameters else nullcontext(),
                activate(
                    BackwardPass(self.tape.index, not cuts, hooked, incoming, look)
                ) as running,
                activate_ranks(self.tape.ranks),
            ):
                remaining = self.tape.run("backward", message)
                running.finish()
                if memory is not None and look is not None and not self.differentiated:
                    memory.keep(look)
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error):
                add_note(
                    error,
                    "A sample may have been changed in place (write x = x + 1 in the place of "
                    "x += 1). Or the tape may hold nodes of an earlier, abandoned rollout whose "
                    "parameters have been updated since; call manager.reset() after abandoning a "
                    "rollout.",
                )
            self.release(_FAILED)
            raise
        except BaseException:
            self.release(_FAILED)
            raise
        self.differentiated = True
        _add_up(cuts, earlier, incoming)
        known = {id(parameter) for parameter in self.parameters}
        late = [p for key, p in running.parameters.items() if key not in known]
        if late and not self.takes_more:
            self.release(_FAILED)
            raise PropagationError(
                "a propagator reached a parameter during the backward pass (shape "
                f"{list(late[0].shape)}) that nothing recorded in the forward computation "
                "depends on. PyTorch has to know a loss's parameters when the loss is made, so "
                "this gradient would be lost: let forward_impl put it into its node as well "
                "({'parameters': [parameter], ...}), or call manager.backward(...) instead of "
                "manager.loss(...)."
            )
        self.parameters.extend(late)
        found = [running.gradients.get(id(parameter)) for parameter in self.parameters]
        if not keep:
            self.release(_DIFFERENTIATED)
        return found, remaining, running.statistics

    def release(self, reason: str) -> None:
        """Let go of cuts and graph; another pass is refused for that reason."""
        self._released = reason
        self._look = None
        self._cuts = []
        self.tape.index.clear()


def _add_up(
    cuts: Sequence[Tensor], earlier: Sequence[Tensor | None], incoming: Tensor | None
) -> None:
    """Leave in cuts' ``.grad`` what ``retain_grad`` would in those of a plain graph."""
    for leaf, before in zip(cuts, earlier, strict=True):
        if leaf.grad is not None and incoming is not None:
            leaf.grad = leaf.grad * incoming.to(leaf.grad)
        if before is not None:
            leaf.grad = before if leaf.grad is None else before + leaf.grad


def hand_over(closed: ClosedTape, report: Report, value: Tensor) -> Tensor:
    """Return a scalar [] with a value, whose gradient is what a tape's propagators make of it.

    Args:
        closed: the tape.
        report: called after each pass with what propagators noted, and whether it was the first.
        value: [], without a graph.
    """
    handed = HandOver.apply(closed, report, value, *closed.parameters)  # type: ignore[no-untyped-call]  # PyTorch's
    loss: Tensor = handed
    return loss


class HandOver(torch.autograd.Function):
    """A scalar whose gradient is what the propagators make of it."""

    @staticmethod
    def forward(
        ctx: Any, closed: ClosedTape, report: Report, value: Tensor, *parameters: Tensor
    ) -> Tensor:
        """Return the value [] and remember the tape."""
        ctx.closed = closed
        ctx.report = report
        del parameters
        return value.clone()

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        """Run the pass and scale its gradients by the incoming one."""
        twice = torch.is_grad_enabled()  # backward was given create_graph=True
        first = not ctx.closed.differentiated
        incoming = incoming.detach()
        with torch.enable_grad():
            found, _, statistics = ctx.closed.gradients(_graph_is_kept(), incoming=incoming)
        ctx.report(statistics, first)
        scaled = [
            None if gradient is None else gradient * incoming.to(gradient) for gradient in found
        ]
        if twice:
            scaled = [
                None if gradient is None else _final(gradient.requires_grad_())
                for gradient in scaled
            ]
        return None, None, None, *scaled


class _Final(torch.autograd.Function):
    """Refuses to be differentiated: a constant would lose a second derivative without a word."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient, as a tensor with a graph."""
        del ctx
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> Tensor:
        """Refuse."""
        del ctx, incoming
        raise PropagationError(
            "the gradient of a rollout's loss cannot be differentiated again (create_graph=True "
            "was given, and its result used); the propagators compute first derivatives only."
        )


def _final(gradient: Tensor) -> Tensor:
    made = _Final.apply(gradient)  # type: ignore[no-untyped-call]  # PyTorch's
    final: Tensor = made
    return final


def _graph_is_kept() -> bool:
    """Return whether the running backward call was given ``retain_graph=True``."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    # Without a way to ask, keeping is right and merely holds memory until the loss is dropped.
    return True if asked is None else bool(asked())
