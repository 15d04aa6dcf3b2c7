r"""The rules of autograd's functions, and the decorator that adds one.

A rule says two things about the operation behind an autograd function:

- which of its operands it *keeps apart*: row i of the operand reaches only row i of the result;
- what each particle contributes to the gradient of any other operand, which all particles share:
  :math:`g_i = J^T b_i`, with b the cotangent of the result, so that :math:`\sum_i g_i` is what
  autograd itself gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_proppo.per_particle.contributions import Contribution
from lightning_proppo.per_particle.layouts import (
    LEADING,
    Layout,
    Shape,
    particles_first,
    sum_to_operand,
)

Key = str | type


class Verdict(Enum):
    """What an operation does with an operand, where it does not keep its rows apart.

    Attributes:
        SHARED: every particle uses the whole operand; the rule knows each one's contribution.
        MIXED: particles meet in it.
        UNKNOWN: it cannot be told from the graph's structure.
    """

    SHARED = "shared"
    MIXED = "mixed"
    UNKNOWN = "unknown"


class Operation(NamedTuple):
    """One autograd function as far as structure goes: what plans are made of.

    Attributes:
        key: what its rule is found by: its name (a custom function's class).
        shapes: of its results.
        operands: for each, the position of the function that it comes from and which result of
            that it is; None where it needs no gradient.
        settings: what the rule looks at beside shapes.
    """

    key: Key
    shapes: tuple[Shape, ...]
    operands: tuple[tuple[int, int] | None, ...]
    settings: tuple[Any, ...]


class Step(NamedTuple):
    """One operand's way through one operation.

    Attributes:
        settings: of the operation.
        slot: which operand.
        operand: its shape.
        result: the result's shape.
        layout: where the result holds its particles.
        particles: P.
    """

    settings: tuple[Any, ...]
    slot: int
    operand: Shape
    result: Shape
    layout: Layout
    particles: int


class Entry(NamedTuple):
    """Where an operand that all particles share enters a function of the graph.

    Attributes:
        function: the autograd function with its saved values, as :class:`~.saved.ReadOnce`.
        slot: which operand.
        operand: its shape.
        layout: where the result holds its particles.
        particles: P.
    """

    function: Any
    slot: int
    operand: Shape
    layout: Layout
    particles: int

    def rows(self, x: Tensor) -> Tensor:
        """Return ``x``, laid out as the result is, with the particles first."""
        return particles_first(x, self.layout, self.particles)

    def sum_to_operand(self, gradient: Tensor) -> Tensor:
        """Sum over axes along which the operand was broadcast, particle by particle."""
        return sum_to_operand(gradient, self.layout, self.operand, self.particles)


RowRule = Callable[[Step], Layout | Verdict]
ContributionRule = Callable[[Entry, Tensor], Tensor | Contribution]
Setting = str | Callable[[Any, int], Any]


@dataclass(frozen=True)
class Rule:
    """What is known of one autograd function.

    Attributes:
        rows: where an operand holds the particles, or a verdict.
        contribution: the contributions to a shared operand: a tensor [P, *operand] or another
            kind; None where there is no rule for shared operands.
        settings: what ``rows`` looks at: saved values (without ``_saved_``), or functions of the
            autograd function and P.
    """

    rows: RowRule
    contribution: ContributionRule | None = None
    settings: tuple[Setting, ...] = ()


RULES: dict[Key, Rule] = {}
_listeners: list[Callable[[], None]] = []


def on_change(forget: Callable[[], None]) -> None:
    """Have ``forget`` called whenever a rule is added."""
    _listeners.append(forget)


def add_rule(key: Key, rule: Rule) -> None:
    """Add a rule, in place of one of the same key."""
    RULES[key] = rule
    for forget in _listeners:
        forget()


def key_of(function: Any) -> Key:
    """Return what an autograd function's rule is found by."""
    kind = type(function)
    return kind if kind in RULES else str(function.name())


def settings_of(function: Any, settings: Sequence[Setting], particles: int) -> tuple[Any, ...]:
    """Read what row rules look at, in a form that compares equal for equal structure."""
    return tuple(
        [
            _plain(getattr(function, f"_saved_{setting}", None))
            if isinstance(setting, str)
            else setting(function, particles)
            for setting in settings
        ]
    )


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):  # autograd shows negative ones unsigned
        return value - (1 << 64) if value >= 1 << 63 else value
    if isinstance(value, (tuple, list)):
        return tuple(_plain(item) for item in value)
    return value


def _rows_as_told(slots: frozenset[int]) -> RowRule:
    """Return a user's row rule: these operands are [P, ...] and kept apart, as is the result."""

    def rule(step: Step) -> Layout | Verdict:
        if step.layout != LEADING or step.result[0] != step.particles:
            return Verdict.UNKNOWN
        if step.slot not in slots:
            return Verdict.SHARED
        return LEADING if step.operand[:1] == (step.particles,) else Verdict.UNKNOWN

    return rule


UserRule = TypeVar("UserRule", bound=Callable[[Any, int, Tensor, int], Any])


def per_particle_rule(
    function: str | type[torch.autograd.Function], rows: Sequence[int] = ()
) -> Callable[[UserRule], UserRule]:
    r"""Say what each particle contributes to an operation's operands: :math:`g_i = J^T b_i`.

    ``ivw_target="parameters"``, or a module, needs the variance over particles of gradients at
    parameters. With a rule, it is computed without pulling each particle's gradient back on its
    own. The decorated function is called as ``rule(function, slot, b, particles)``:

    - ``function``: the autograd function, with what it saved: ``function.saved_tensors`` for your
      own ``torch.autograd.Function``, ``function._saved_...`` for PyTorch's;
    - ``slot``: which operand. Operands count from 0 as in ``function.next_functions``: for your
      own functions, the tensors among the arguments of ``forward``;
    - ``b``: [P, ...], the cotangent of the result (of the first where there are several; the rule
      is not asked where another one is used);
    - ``particles``: P.

    and returns what each particle contributes to the operand's gradient (their sum over particles
    is the gradient): a tensor [P, \*operand], or, where those would be large,
    :class:`~lightning_proppo.per_particle.OuterProducts` or
    :class:`~lightning_proppo.per_particle.EmbeddingRows`.

    Example::

        class Scale(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, w):  # x [P, D], w [D]
                ctx.save_for_backward(x, w)
                return x * w

            @staticmethod
            def backward(ctx, b):
                x, w = ctx.saved_tensors
                return b * w, (b * x).sum(0)

        @per_particle_rule(Scale, rows=[0])
        def scale(function, slot, b, particles):
            x, w = function.saved_tensors
            return b * x

    Args:
        function: your ``torch.autograd.Function``; or the name of an autograd function, as
            ``result.grad_fn.name()`` gives it ("AddmmBackward0"; "ScaleBackward" would be every
            custom function called Scale). An earlier rule of the same one is replaced.
        rows: the operands [P, ...] that the operation keeps apart: particle i of the operand
            reaches only particle i of the result. Every other operand is taken to be shared by
            all particles, and the rule is asked for it. This is not checked.

    Raises:
        TypeError: for anything else.
    """
    key: Key
    if isinstance(function, str):
        key = function
    elif isinstance(function, type) and issubclass(function, torch.autograd.Function):
        key = function._backward_cls
    else:
        raise TypeError(
            "function must be a torch.autograd.Function or the name of an autograd function, such "
            f"as 'AddmmBackward0'; got {function!r}."
        )
    slots = list(rows) if isinstance(rows, (tuple, list, set, frozenset)) else None
    if slots is None or any(not isinstance(slot, int) or slot < 0 for slot in slots):
        raise TypeError(f"rows must be a list of operands, counted from 0; got {rows!r}.")

    def add(rule: UserRule) -> UserRule:
        if not callable(rule):
            raise TypeError(f"a rule must be a function; got {rule!r}.")

        def contribution(entry: Entry, b: Tensor) -> Tensor | Contribution:
            found: Tensor | Contribution = rule(entry.function, entry.slot, b, entry.particles)
            return found

        add_rule(key, Rule(_rows_as_told(frozenset(slots)), contribution))
        return rule

    return add
