"""PyTorch's graph, segment by segment: which leaves one reaches, and its vector-Jacobian product.

A segment ends in leaf tensors of two sorts: cuts of earlier nodes, and parameters.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

AccumulateGrad: Any = type(
    torch.zeros((), requires_grad=True).view(()).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
)

_run_engine: Any = getattr(torch.autograd.graph, "_engine_run_backward", None)


def find_leaves(functions: Iterable[Any]) -> list[Tensor]:
    """Return the leaf tensors that autograd functions reach, each once."""
    stack = list(dict.fromkeys(function for function in functions if function is not None))
    seen = set(stack)
    leaves: list[Tensor] = []
    while stack:
        function = stack.pop()
        if type(function) is AccumulateGrad:
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
        """Return the leaves of ``tensors`` that require a gradient, each once.

        A parameter that has been frozen since the graph was made is left out, as PyTorch does.
        """
        found: dict[int, Tensor] = {}
        for tensor in tensors:
            if tensor.grad_fn is None:
                known = [tensor] if tensor.requires_grad else []
            else:
                known = self._leaves.get(tensor.grad_fn) or self.add([tensor])
            for leaf in known:
                if leaf.requires_grad:
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
