"""Rules for elementwise operations, for reductions and for changes of shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lightning_proppo.per_particle import rows
from lightning_proppo.per_particle.registry import Entry, RowRule, Rule, add_rule

# Operations on one operand, or with rules for the others below.
_ELEMENTWISE = """
    AbsBackward0 AcosBackward0 AcoshBackward0 AddBackward1 AddcdivBackward0 AsinBackward0
    AsinhBackward0 AtanBackward0 Atan2Backward0 AtanhBackward0 CeilBackward0 CeluBackward0
    ClampBackward0 ClampBackward1 ClampMaxBackward0 ClampMinBackward0 ClampMaxBackward1
    ClampMinBackward1 CosBackward0 CoshBackward0 DigammaBackward0 DivBackward1 EluBackward0
    ErfBackward0 ErfcBackward0 ErfinvBackward0 Exp2Backward0 ExpBackward0 Expm1Backward0
    FloorBackward0 FmaxBackward0 FminBackward0 GeluBackward0 HardsigmoidBackward0
    HardswishBackward0 HardtanhBackward0 HuberLossBackward0 HypotBackward0 LeakyReluBackward0
    LerpBackward0 LerpBackward1 LgammaBackward0 LogBackward0 Log10Backward0 Log1PBackward0
    Log2Backward0 LogSigmoidBackward0 LogaddexpBackward0 LogitBackward0 MaskedFillBackward0
    MaskedFillBackward1 MishBackward0 MseLossBackward0 MulBackward1 NanToNumBackward0
    NativeDropoutBackward0 NegBackward0 PowBackward0 ReciprocalBackward0 ReluBackward0
    RemainderBackward0 RoundBackward0 RsqrtBackward0 RsubBackward1 SgnBackward0
    SigmoidBackward0 SignBackward0 SiluBackward0 SinBackward0 SincBackward0 SinhBackward0
    SmoothL1LossBackward0 SoftplusBackward0 SoftshrinkBackward0 HardshrinkBackward0
    SqrtBackward0 SquareBackward0 SubBackward1 TanBackward0 TanhBackward0 ThresholdBackward0
    ToCopyBackward0 CloneBackward0 AliasBackward0 TruncBackward0 XlogyBackward0
"""
_RESHAPED = """
    ViewBackward0 UnsafeViewBackward0 ReshapeAliasBackward0 UnsqueezeBackward0 SqueezeBackward0
    SqueezeBackward1 SqueezeBackward2
"""
# Along the axes of this setting.
_ALONG = {
    "dim": """
        SumBackward1 MeanBackward1 ProdBackward1 LogsumexpBackward0 SoftmaxBackward0
        LogSoftmaxBackward0 SelectBackward0 CatBackward0 SplitBackward0
        UnsafeSplitBackward0 SplitWithSizesBackward0 UnsafeSplitWithSizesBackward0 UnbindBackward0
        VarBackward0 StdBackward0 VarMeanBackward0 StdMeanBackward0 NormBackward1
        LinalgVectorNormBackward0 AmaxBackward0 AminBackward0 MaxBackward0 MinBackward0
        MedianBackward1 SortBackward0 TopkBackward0 CumsumBackward0 CumprodBackward0
        LogcumsumexpBackward0 LinalgCrossBackward0 GatherBackward0 IndexSelectBackward0
        GluBackward0 NansumBackward0
    """,
    "dims": "FlipBackward0 RollBackward0",
}
# All but so many of the last axes are independent problems.
_INDEPENDENT = {
    "CholeskyBackward0": 2,
    "LinalgCholeskyExBackward0": 2,
    "LinalgInvExBackward0": 2,
    "TrilBackward0": 2,
    "TriuBackward0": 2,
    "AvgPool2DBackward0": 2,
    "MaxPool2DWithIndicesBackward0": 2,
    "AdaptiveAvgPool2DBackward0": 2,
    "MkldnnAdaptiveAvgPool2DBackward0": 2,
    "ReflectionPad1DBackward0": 1,
    "ReflectionPad2DBackward0": 2,
    "ReplicationPad1DBackward0": 1,
    "ReplicationPad2DBackward0": 2,
    "UpsampleNearest1DBackward0": 1,
    "UpsampleNearest2DBackward0": 2,
    "UpsampleBilinear2DBackward0": 2,
    "ScaledDotProductFlashAttentionForCpuBackward0": 2,
    "ScaledDotProductFlashAttentionBackward0": 2,
    "ScaledDotProductEfficientAttentionBackward0": 2,
    "ScaledDotProductCudnnAttentionBackward0": 2,
}
# The same numbers in the same order, in another shape or precision.
SAME_ORDER = frozenset([*_RESHAPED.split(), "AliasBackward0", "CloneBackward0", "ToCopyBackward0"])
# The same numbers: norms of contributions do not change.
TRANSPARENT = SAME_ORDER | {
    "TBackward0",
    "TransposeBackward0",
    "TransposeBackward1",
    "PermuteBackward0",
}


def times(b: Tensor, factor: float) -> Tensor:
    """Multiply, sparing a copy where there is nothing to do."""
    return b if factor == 1 else b * factor


def _add(entry: Entry, b: Tensor) -> Tensor:
    return b if entry.slot == 0 else times(b, entry.function._saved_alpha)


def _sub(entry: Entry, b: Tensor) -> Tensor:
    return b if entry.slot == 0 else b * -entry.function._saved_alpha


def _rsub(entry: Entry, b: Tensor) -> Tensor:
    alpha: float = entry.function._saved_alpha
    return b * -alpha if entry.slot == 0 else b


def _mul(entry: Entry, b: Tensor) -> Tensor:
    function = entry.function
    factor: Tensor = function._saved_other if entry.slot == 0 else function._saved_self
    return b * factor


def _div(entry: Entry, b: Tensor) -> Tensor:
    other: Tensor = entry.function._saved_other
    if entry.slot == 0:
        return b / other
    operand: Tensor = entry.function._saved_self
    return -b * operand / (other * other)


def _addcmul(entry: Entry, b: Tensor) -> Tensor:
    function = entry.function
    if entry.slot == 0:
        return b
    other: Tensor = function._saved_tensor2 if entry.slot == 1 else function._saved_tensor1
    value: float = function._saved_value
    return b * other * value


def _where(entry: Entry, b: Tensor) -> Tensor:
    chosen = entry.function._saved_condition
    zero = b.new_zeros(())
    return torch.where(chosen, b, zero) if entry.slot == 0 else torch.where(chosen, zero, b)


def _maximum(entry: Entry, b: Tensor) -> Tensor:
    return _chosen(b, *_ordered(entry))


def _minimum(entry: Entry, b: Tensor) -> Tensor:
    operand, other = _ordered(entry)
    return _chosen(b, other, operand)


def _ordered(entry: Entry) -> tuple[Tensor, Tensor]:
    pair = entry.function._saved_self, entry.function._saved_other
    return pair if entry.slot == 0 else (pair[1], pair[0])


def _chosen(b: Tensor, larger: Tensor, smaller: Tensor) -> Tensor:
    # Equal ones share, as in autograd.
    return torch.where(larger > smaller, b, torch.where(larger == smaller, b / 2, 0.0))


def _prelu(entry: Entry, b: Tensor) -> Tensor:
    x: Tensor = entry.function._saved_self
    return b * x.clamp_max(0.0)


def _repeated(entry: Entry, b: Tensor) -> Tensor:
    gradient = entry.rows(b)
    sizes = (1,) * (b.dim() - len(entry.operand)) + entry.operand
    for axis, size in enumerate(sizes, 1):
        gradient = gradient.unflatten(axis, (-1, size)).sum(axis)
    return gradient.reshape(entry.particles, *entry.operand)


def _copied(entry: Entry, b: Tensor) -> Tensor:
    return b


_SUMMED: dict[str, Callable[[Entry, Tensor], Tensor]] = {
    "AddBackward0": _add,
    "SubBackward0": _sub,
    "RsubBackward0": _rsub,
    "MulBackward0": _mul,
    "DivBackward0": _div,
    "AddcmulBackward0": _addcmul,
    "WhereBackward0": _where,
    "MaximumBackward0": _maximum,
    "MinimumBackward0": _minimum,
    "PreluKernelBackward0": _prelu,
    "ExpandBackward0": _copied,
}
# What takes a few passes over its elements: all but products, convolutions, decompositions, and
# functions that are not known.
LIGHT = frozenset([*_ELEMENTWISE.split(), *TRANSPARENT, *_ALONG["dim"].split(), *_SUMMED])


def summed(gradient: Callable[[Entry, Tensor], Tensor]) -> Callable[[Entry, Tensor], Tensor]:
    """Return contributions to an operand that was broadcast, from the gradient before the sum."""

    def contribution(entry: Entry, b: Tensor) -> Tensor:
        return entry.sum_to_operand(gradient(entry, b))

    return contribution


def _add_rules(names: Iterable[str], rule: RowRule, *settings: str) -> None:
    for name in names:
        add_rule(name, Rule(rule, settings=settings))


_add_rules(_ELEMENTWISE.split(), rows.elementwise)
_add_rules(["PowBackward1", "PowBackward2"], rows.elementwise)
_add_rules(_RESHAPED.split(), rows.reshaped)
for _setting, _names in _ALONG.items():
    _add_rules(_names.split(), rows.along, _setting)
_add_rules(["SliceBackward0"], rows.sliced, "dim")
_add_rules(["TBackward0"], rows.transposed)
_add_rules(["TransposeBackward0", "TransposeBackward1"], rows.transposed, "dim0", "dim1")
_add_rules(["PermuteBackward0"], rows.permuted, "dims")
_add_rules(["StackBackward0"], rows.stacked, "dim")
_add_rules(["ConstantPadNdBackward0"], rows.padded, "pad")
add_rule("RepeatBackward0", Rule(rows.repeated, _repeated))
for _name, _trailing in _INDEPENDENT.items():
    _add_rules([_name], rows.independent_but(_trailing))
for _name, _gradient in _SUMMED.items():
    add_rule(_name, Rule(rows.elementwise, summed(_gradient)))
