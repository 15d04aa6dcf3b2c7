"""Cuts: where a sampling node ends one segment of PyTorch's graph and begins the next.

The propagator hands out a detached leaf (a *cut*) and keeps the tensor before it. The cut collects
its cotangent in ``.grad`` until its own node is reached.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_proppo.errors import PropagationError, add_note

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


def explain_change_in_place(error: BaseException) -> None:
    """Add to PyTorch's refusal to change a leaf in place that samples are such leaves.

    A sample of a class of its own could say so itself, but no compiled function takes one.
    """
    if isinstance(error, RuntimeError) and "leaf Variable that requires grad" in str(error):
        add_note(
            error,
            "A sample of a rollout (what manager.sample returns) is such a leaf: its gradient is "
            "that of the values which were drawn. Write x = x + 1 in the place of x += 1, "
            "x = x.clamp(...) in that of x.clamp_(...), and x = x.clone() before x[...] = ...",
        )


def is_cut(leaf: Tensor) -> bool:
    """Return whether ``leaf`` was made by a node (and is not a parameter)."""
    return hasattr(leaf, _CUT_MARK)


def has_hooks(leaf: Tensor) -> bool:
    """Return whether a user has registered hooks on a cut."""
    after = leaf._post_accumulate_grad_hooks  # our own among them
    return bool(leaf._backward_hooks) or (after is not None and len(after) > 1)


def tape_of(leaf: Tensor) -> Any:
    """Return the tape of a cut."""
    return getattr(leaf, _CUT_MARK, None)
