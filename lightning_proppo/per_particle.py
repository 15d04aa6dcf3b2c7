r"""Variances of per-particle gradients at parameters, without a copy of them for each particle.

A parameter's gradient is a sum over particles, and autograd returns only the sum. What each
particle contributes can be read off where the parameter, which has no particle axis, meets tensors
that have one (an *entry*): with the cotangent b of the entry's result,

- ``a @ W`` (a matrix): the contribution is the outer product :math:`a_i b_i^T`, so that the sum of
  squares is :math:`\sum_i |a_i|^2 |b_i|^2` and no contribution is ever formed;
- ``a @ w`` (a vector), ``x + w``, ``x - w``, ``x * w``, ``x / w`` and ``w.expand(P, ...)``: it has
  the shape of the result for one particle.

Before its entry a parameter may pass through operations without particles (transposes, ``exp``,
``softplus``, products of parameters); contributions are pulled through those exactly. Where a graph
has an entry of another kind, each particle's cotangent is pulled back on its own: exact too, at
the price of one pull-back for each particle.

Shapes alone do not tell particles from something else of the same number (features, inducing
points). So the operations between entries and outputs are looked at: all must keep row i a
function of row i. Where one of another kind is found, a pull-back of half of the particles tests
whether it does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from lightning_proppo.graph import _AccumulateGrad, hooks_muted, vector_jacobian_product

_SHAPE_ONLY = {
    "TBackward0",
    "TransposeBackward0",
    "PermuteBackward0",
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "UnsqueezeBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "AliasBackward0",
    "CloneBackward0",
}
_ELEMENTWISE = {
    "ExpBackward0",
    "LogBackward0",
    "SoftplusBackward0",
    "SigmoidBackward0",
    "TanhBackward0",
    "NegBackward0",
    "PowBackward0",
    "SqrtBackward0",
    "RsqrtBackward0",
    "ReciprocalBackward0",
    "ClampBackward0",
    "ClampMinBackward0",
    "AbsBackward0",
    "SinBackward0",
    "CosBackward0",
    "ToCopyBackward0",
    "RsubBackward1",
}
_REDUCTIONS = {"SumBackward0", "SumBackward1", "MeanBackward0", "MeanBackward1"}
_BINARY = {"AddBackward0", "SubBackward0", "MulBackward0", "DivBackward0"}
# Keep rows where operand and result have as many axes.
_ROW_BY_ROW = {
    *_ELEMENTWISE,
    *_BINARY,
    "ReluBackward0",
    "GeluBackward0",
    "SiluBackward0",
    "EluBackward0",
    "LeakyReluBackward0",
    "HardtanhBackward0",
    "MishBackward0",
    "LogSigmoidBackward0",
    "ErfBackward0",
    "Log1PBackward0",
    "Expm1Backward0",
    "WhereBackward0",
    "MaximumBackward0",
    "MinimumBackward0",
    "PowBackward1",
    "AddcmulBackward0",
    "MaskedFillBackward0",
    "ExpandBackward0",
}
# Keep rows unless the axes named by these attributes are the first.
_ROWS_UNLESS_FIRST = {
    "SumBackward1": ("_saved_dim",),
    "MeanBackward1": ("_saved_dim",),
    "LogsumexpBackward0": ("_saved_dim",),
    "SoftmaxBackward0": ("_saved_dim",),
    "LogSoftmaxBackward0": ("_saved_dim",),
    "SelectBackward0": ("_saved_dim",),
    "SliceBackward0": ("_saved_dim",),
    "CatBackward0": ("_saved_dim",),
    "StackBackward0": ("_saved_dim",),
    "SplitBackward0": ("_saved_dim",),
    "UnbindBackward0": ("_saved_dim",),
    "TransposeBackward0": ("_saved_dim0", "_saved_dim1"),
}
# Keep rows wherever the first axis is as long before as after.
_ROWS_BY_SHAPE = {
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "UnsqueezeBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "AliasBackward0",
    "CloneBackward0",
    "BmmBackward0",
}
# The operand whose rows a product keeps.
_ROWS_OF_SLOT = {"MmBackward0": 0, "AddmmBackward0": 1, "MvBackward0": 0}
# Above this many elements the fallback works through the particles in portions.
_PORTION = 1 << 24


@dataclass(eq=False)
class _Entry:
    """Where batch-free ``operand`` enters ``function``, whose result has a particle axis."""

    function: Any
    slot: int
    operand: Any
    path: tuple[Any, ...] = ()

    @property
    def edge(self) -> GradientEdge:
        return GradientEdge(self.function, 0)


@dataclass(eq=False)
class _Outer:
    """Contributions a_i b_i^T; left [P, m], right [P, n]."""

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        return self.left.unsqueeze(2) * self.right.unsqueeze(1)


@dataclass
class ParameterUses:
    """How one segment's parameters enter it.

    Attributes:
        edges: where cotangents are wanted, to be given to autograd beside the segment's leaves.
        unsupported: the operation that has no rule, or None.
    """

    particles: int
    parameters: list[Tensor]
    entries: list[_Entry] = field(default_factory=list)
    plain: dict[int, list[_Entry]] = field(default_factory=dict)
    composite: list[Tensor] = field(default_factory=list)
    composite_entries: list[_Entry] = field(default_factory=list)
    unsupported: str | None = None

    @property
    def edges(self) -> list[GradientEdge]:
        """Where cotangents are wanted."""
        return [] if self.unsupported else [entry.edge for entry in self.entries]

    def variance(
        self,
        edge_cotangents: Sequence[Tensor | None],
        totals: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
    ) -> Tensor:
        r"""Return :math:`\sum_i |g_i - \bar g|^2` over all parameters, in float64.

        Args:
            edge_cotangents: autograd's answer for :attr:`edges`.
            totals: autograd's answer for the parameters.
            outputs: the segment's tensors that were pulled from, [P, ...] each.
            cotangents: what they were pulled with.
        """
        known = [total for total in totals if total is not None]
        if not known:
            return torch.zeros((), dtype=torch.float64, device=self._device())
        if self.unsupported:
            return self._one_by_one(outputs, cotangents)
        by_entry = {
            id(entry): None if b is None else _contribution(entry, b, self.particles)
            for entry, b in zip(self.entries, edge_cotangents, strict=True)
        }
        result = torch.zeros((), dtype=torch.float64, device=self._device())
        for parameter, total in zip(self.parameters, totals, strict=True):
            every = [by_entry[id(entry)] for entry in self.plain.get(id(parameter), [])]
            parts = [part for part in every if part is not None]
            if parts and total is not None:
                result = result + _summed_variance(parts, total)
        if self.composite:
            result = result + self._pulled_variance(by_entry)
        return result

    def _device(self) -> torch.device:
        return self.parameters[0].device if self.parameters else torch.device("cpu")

    def _pulled_variance(self, by_entry: dict[int, Any]) -> Tensor:
        """Pull contributions through the batch-free operations before their entries."""
        operands: dict[Any, Tensor] = {}
        for entry in self.composite_entries:
            part = by_entry[id(entry)]
            if part is None:
                continue
            dense = part.dense() if isinstance(part, _Outer) else part
            have = operands.get(entry.operand)
            operands[entry.operand] = dense if have is None else have + dense
        result = torch.zeros((), dtype=torch.float64, device=self._device())
        inner = {f: g for f, g in operands.items() if type(f) is not _AccumulateGrad}
        totals: dict[int, Tensor] = {
            id(f.variable): g for f, g in operands.items() if type(f) is _AccumulateGrad
        }
        if inner:
            pulled = _batched_products(
                [GradientEdge(f, 0) for f in inner], list(inner.values()), self.composite
            )
            for parameter, gradient in zip(self.composite, pulled, strict=True):
                if gradient is not None:
                    have = totals.get(id(parameter))
                    totals[id(parameter)] = gradient if have is None else have + gradient
        for gradient in totals.values():
            centred = gradient.double() - gradient.double().mean(0, keepdim=True)
            result = result + centred.square().sum()
        return result

    def _one_by_one(self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Tensor:
        """Pull each particle's cotangent back on its own."""
        _warn_one_by_one(self.unsupported or "")
        pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
        size = sum(c[0].numel() for _, c in pairs) * self.particles
        size += sum(p.numel() for p in self.parameters)
        portion = max(1, _PORTION // max(size, 1))
        squares = torch.zeros((), dtype=torch.float64, device=self._device())
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in self.parameters]
        for start in range(0, self.particles, portion):
            stop = min(start + portion, self.particles)
            rows = torch.arange(start, stop, device=self._device())
            one_hot = []
            for _, cotangent in pairs:
                batched = cotangent.new_zeros((stop - start, *cotangent.shape))
                batched[torch.arange(stop - start), rows] = cotangent[rows]
                one_hot.append(batched)
            gradients = _batched_products([o for o, _ in pairs], one_hot, self.parameters)
            for k, gradient in enumerate(gradients):
                if gradient is not None:
                    squares = squares + gradient.double().square().sum()
                    sums[k] = sums[k] + gradient.double().sum(0)
        mean_part = torch.stack([s.square().sum() for s in sums]).sum() / self.particles
        return (squares - mean_part).clamp_min(0.0)


def _batched_products(
    outputs: Sequence[Any], cotangents: Sequence[Tensor], parameters: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return vector-Jacobian products for several cotangents, [N, ...] each, at once."""
    with hooks_muted(parameters):
        try:
            return list(
                torch.autograd.grad(
                    outputs,
                    parameters,
                    cotangents,
                    retain_graph=True,
                    allow_unused=True,
                    is_grads_batched=True,
                )
            )
        except RuntimeError:  # an operation (a custom autograd.Function, say) cannot be batched
            each = [
                torch.autograd.grad(outputs, parameters, rows, retain_graph=True, allow_unused=True)
                for rows in zip(*cotangents, strict=True)
            ]
    return [None if found[0] is None else torch.stack(found) for found in zip(*each, strict=True)]


_warned: set[str] = set()


def _warn_one_by_one(operation: str) -> None:
    if operation not in _warned:
        _warned.add(operation)
        warnings.warn(
            f"there is no rule for per-particle gradients of parameters through {operation}, so "
            "total propagation pulls each particle's gradient back on its own: exact, but slow. "
            "Pass ivw_target='node', or expanded parameters, for a faster target.",
            stacklevel=2,
        )


def find_parameter_uses(
    outputs: Sequence[Tensor], parameters: Sequence[Tensor], particles: int
) -> ParameterUses:
    """Find where parameters enter a segment.

    Args:
        outputs: the segment's tensors, [P, ...] each.
        parameters: leaf tensors without a particle axis.
        particles: P.
    """
    uses = ParameterUses(particles, list(parameters))
    if not parameters:
        return uses
    consumers, order = _consumers([o.grad_fn for o in outputs if o.grad_fn is not None])
    wanted = {id(parameter) for parameter in parameters}
    # `order` puts every function after the ones it is computed from.
    free: set[Any] = set()
    for function in order:
        if type(function) is _AccumulateGrad:
            if id(function.variable) in wanted:
                free.add(function)
            continue
        before = [f for f, _ in function.next_functions if f is not None]
        if not any(f in free for f in before):
            continue
        if all(f in free for f in before) and _stays_free(function, before, particles):
            free.add(function)
            continue
        for slot, (f, _) in enumerate(function.next_functions):
            if f is None or f not in free:
                continue
            entry = _Entry(function, slot, f)
            if not _has_rule(entry, particles):
                uses.unsupported = function.name()
                return uses
            uses.entries.append(entry)
    doubtful = _doubtful_rows(uses.entries, order, particles)
    if doubtful is not None and not _rows_hold(uses.entries, outputs, particles):
        uses.unsupported = doubtful
        return uses
    _sort_entries(uses, consumers)
    return uses


def _consumers(roots: Sequence[Any]) -> tuple[dict[Any, list[Any]], list[Any]]:
    """Return each function's consumers, and the functions in order of computation."""
    consumers: dict[Any, list[Any]] = {}
    order: list[Any] = []
    state: dict[Any, bool] = {}
    stack = list(dict.fromkeys(roots))
    while stack:
        function = stack[-1]
        if function in state:
            stack.pop()
            if not state[function]:
                state[function] = True
                order.append(function)
            continue
        state[function] = False
        for following, _ in function.next_functions:
            if following is not None:
                consumers.setdefault(following, []).append(function)
                if following not in state:
                    stack.append(following)
    return consumers, order


def _shape(function: Any) -> torch.Size:
    if type(function) is _AccumulateGrad:
        return function.variable.shape
    return torch.Size(function._input_metadata[0].shape)


def _stays_free(function: Any, before: Sequence[Any], particles: int) -> bool:
    """Whether a function of batch-free operands has a batch-free result."""
    name = function.name()
    if name in _SHAPE_ONLY or name in _ELEMENTWISE or name in _REDUCTIONS:
        return True
    if name in _BINARY:
        if len(before) == 2:
            return True
        # The other operand is a constant, which may have particles (on whichever axis).
        constant = getattr(function, "_saved_other", None)
        if isinstance(constant, Tensor) and constant.dim() == 0:
            return True
        shape = _shape(function)
        return shape == _shape(before[0]) and particles not in shape
    return False


def _axes(function: Any, attribute: str, rank: int) -> list[int]:
    """Return saved axes as they count from the front (autograd shows negative ones unsigned)."""
    saved = getattr(function, attribute)
    saved = saved if isinstance(saved, (tuple, list)) else [saved]
    return [(axis - (1 << 64) if axis >= 1 << 63 else axis) % max(rank, 1) for axis in saved]


def _keeps_rows(function: Any, slot: int, particles: int) -> bool:
    """Whether row i of an operand is known to reach only row i of the result."""
    before, output = function.next_functions[slot]
    operand = torch.Size(before._input_metadata[output].shape)
    result, name = _shape(function), function.name()
    if not operand or not result or operand[0] != particles or result[0] != particles:
        return False
    if name in _ROWS_OF_SLOT:
        bias = name == "AddmmBackward0" and slot == 0 and len(operand) == 2
        return bias or slot == _ROWS_OF_SLOT[name]
    if name in _ROWS_UNLESS_FIRST:
        rank = len(result if name == "StackBackward0" else operand)
        axes = [_axes(function, attribute, rank) for attribute in _ROWS_UNLESS_FIRST[name]]
        return all(some and 0 not in some for some in axes)
    if name == "PermuteBackward0":
        return _axes(function, "_saved_dims", len(operand))[0] == 0
    if name in _ROWS_BY_SHAPE:
        return True
    return name in _ROW_BY_ROW and len(operand) == len(result)


def _doubtful_rows(entries: Sequence[_Entry], order: Sequence[Any], particles: int) -> str | None:
    """Return an operation after an entry that is not known to keep rows apart, or None."""
    carrying = {entry.function for entry in entries}
    for function in order:
        if type(function) is _AccumulateGrad:
            continue
        for slot, (before, _) in enumerate(function.next_functions):
            if before is not None and before in carrying:
                if not _keeps_rows(function, slot, particles):
                    return str(function.name())
                carrying.add(function)
    return None


def _rows_hold(entries: Sequence[_Entry], outputs: Sequence[Tensor], particles: int) -> bool:
    """Test whether some particles' cotangents arrive at their own rows of the entries alone."""
    with torch.no_grad():
        # Numbers without a pattern that leave the random generators alone.
        chosen = torch.sin(1e3 * torch.arange(particles, dtype=torch.float64)) > 0
        chosen[0], chosen[-1] = True, False
        cotangents = []
        for output in outputs:
            numbers = torch.sin(7e2 * torch.arange(1, output.numel() + 1, dtype=torch.float64))
            numbers = numbers.reshape(output.shape)
            numbers[~chosen] = 0.0
            cotangents.append(numbers.to(output))
    answers = vector_jacobian_product(outputs, cotangents, [entry.edge for entry in entries])
    others = (~chosen).to(outputs[0].device)
    return all(b is None or not bool((b[others] != 0).any()) for b in answers)


def _sort_entries(uses: ParameterUses, consumers: dict[Any, list[Any]]) -> None:
    """Tell parameters that enter as they are from those that are transformed before."""
    plain: dict[int, list[_Entry]] = {}
    composite: dict[int, Tensor] = {}
    for entry in uses.entries:
        function, path = entry.operand, []
        while type(function) is not _AccumulateGrad:
            if function.name() not in _SHAPE_ONLY:
                break
            axes = ("_saved_dim", "_saved_dims", "_saved_dim0", "_saved_dim1")
            path.append((function.name(), *(getattr(function, axis, None) for axis in axes)))
            function = function.next_functions[0][0]
        entry.path = tuple(path)
        if type(function) is _AccumulateGrad:
            plain.setdefault(id(function.variable), []).append(entry)
    for parameter in uses.parameters:
        entries = plain.get(id(parameter), [])
        whole = entries and len({(e.path, _shape(e.operand)) for e in entries}) == 1
        if not whole or _has_other_consumers(parameter, entries, consumers):
            composite[id(parameter)] = parameter
            plain.pop(id(parameter), None)
    uses.plain = plain
    uses.composite = list(composite.values())
    if composite:
        kept = {id(e) for entries in plain.values() for e in entries}
        uses.composite_entries = [e for e in uses.entries if id(e) not in kept]


def _has_other_consumers(
    parameter: Tensor, entries: Sequence[_Entry], consumers: dict[Any, list[Any]]
) -> bool:
    """Whether a parameter reaches entries other than through shape-only paths."""
    accumulate = next(
        (f for f in consumers if type(f) is _AccumulateGrad and f.variable is parameter), None
    )
    if accumulate is None:
        return False
    ends = {(id(e.function), id(e.operand)) for e in entries}
    stack = [accumulate]
    while stack:
        function = stack.pop()
        for consumer in consumers.get(function, []):
            if (id(consumer), id(function)) in ends:
                continue
            if consumer.name() not in _SHAPE_ONLY:
                return True
            stack.append(consumer)
    return False


def _rows(function: Any, attribute: str, particles: int) -> bool:
    tensor = getattr(function, attribute, None)
    return isinstance(tensor, Tensor) and tensor.dim() == 2 and tensor.shape[0] == particles


def _has_rule(entry: _Entry, particles: int) -> bool:
    function, slot = entry.function, entry.slot
    name, result, operand = function.name(), _shape(function), _shape(entry.operand)
    if len(result) == 0 or result[0] != particles:
        return False
    if name == "AddmmBackward0" and slot == 2:
        return _rows(function, "_saved_mat1", particles)
    if name in ("MmBackward0", "MvBackward0"):
        return slot == 1 and _rows(function, "_saved_self", particles)
    if name in _BINARY or name == "ExpandBackward0" or (name == "AddmmBackward0" and slot == 0):
        # An operand as long as the batch belongs to the particles one by one.
        return len(operand) < len(result) or operand[0] == 1
    return False


def _contribution(entry: _Entry, b: Tensor, particles: int) -> Tensor | _Outer:
    """Return the operand's per-particle gradients, [P, *operand] or as outer products."""
    function, slot, name = entry.function, entry.slot, entry.function.name()
    if name == "AddmmBackward0":
        if slot == 2:
            return _Outer(function._saved_mat1, b * function._saved_alpha)
        return _reduce(b * function._saved_beta, entry, particles)
    if name == "MmBackward0":
        return _Outer(function._saved_self, b)
    if name == "MvBackward0":
        return function._saved_self * b.unsqueeze(1)
    return _reduce(_PULL[name](function, slot, b), entry, particles)


def _pull_add(function: Any, slot: int, b: Tensor) -> Tensor:
    return b if slot == 0 else b * function._saved_alpha


def _pull_sub(function: Any, slot: int, b: Tensor) -> Tensor:
    return b if slot == 0 else -b * function._saved_alpha


def _pull_mul(function: Any, slot: int, b: Tensor) -> Tensor:
    return b * (function._saved_other if slot == 0 else function._saved_self)


def _pull_div(function: Any, slot: int, b: Tensor) -> Tensor:
    other = function._saved_other
    return b / other if slot == 0 else -b * function._saved_self / (other * other)


_PULL: dict[str, Callable[[Any, int, Tensor], Tensor]] = {
    "AddBackward0": _pull_add,
    "SubBackward0": _pull_sub,
    "MulBackward0": _pull_mul,
    "DivBackward0": _pull_div,
    "ExpandBackward0": lambda function, slot, b: b,
}


def _reduce(gradient: Tensor, entry: _Entry, particles: int) -> Tensor:
    """Sum over axes along which the operand was broadcast, but for the particles' axis."""
    operand = _shape(entry.operand)
    own = operand[1:] if len(operand) == gradient.dim() else operand
    while gradient.dim() - 1 > len(own):
        gradient = gradient.sum(1)
    axes = [k + 1 for k, size in enumerate(own) if size == 1 and gradient.shape[k + 1] != 1]
    if axes:
        gradient = gradient.sum(axes, keepdim=True)
    return gradient.reshape(particles, *operand)


def _summed_variance(parts: Sequence[Tensor | _Outer], total: Tensor) -> Tensor:
    """Return the summed variance of the sum of contributions whose sum over particles is total."""
    if all(isinstance(part, _Outer) for part in parts):
        squares = torch.zeros((), dtype=torch.float64, device=total.device)
        for j, u in enumerate(parts):
            for k, v in enumerate(parts[: j + 1]):
                lefts = (u.left.double() * v.left.double()).sum(1)  # type: ignore[union-attr]
                rights = (u.right.double() * v.right.double()).sum(1)  # type: ignore[union-attr]
                squares = squares + (1.0 if j == k else 2.0) * (lefts * rights).sum()
        particles = parts[0].left.shape[0]  # type: ignore[union-attr]
        return (squares - total.double().square().sum() / particles).clamp_min(0.0)
    dense = None
    for part in parts:
        gradient = (part.dense() if isinstance(part, _Outer) else part).double()
        dense = gradient if dense is None else dense + gradient
    if dense is None:
        return torch.zeros((), dtype=torch.float64, device=total.device)
    return (dense - dense.mean(0, keepdim=True)).square().sum()


def per_particle_variance(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor], parameters: Sequence[Tensor]
) -> Tensor:
    """Return the summed variance of per-particle gradients at parameters (a convenience).

    Args:
        outputs: [P, ...] each.
        cotangents: of their shapes.
        parameters: leaf tensors that they depend on.
    """
    uses = find_parameter_uses(outputs, parameters, outputs[0].shape[0])
    answers = vector_jacobian_product(outputs, cotangents, [*parameters, *uses.edges])
    count = len(parameters)
    return uses.variance(answers[count:], answers[:count], outputs, cotangents)
