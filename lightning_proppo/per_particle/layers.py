"""Rules for matrix products and for the layers of ``torch.nn`` that are one operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_proppo.per_particle import rows
from lightning_proppo.per_particle.arithmetic import times
from lightning_proppo.per_particle.contributions import (
    Contribution,
    EmbeddingRows,
    OuterProducts,
    Windows,
)
from lightning_proppo.per_particle.indices import look_ups
from lightning_proppo.per_particle.registry import Entry, Rule, add_rule


def _product(entry: Entry, b: Tensor, left: Any, right: Any) -> Contribution:
    """Contributions to ``left`` or ``right``, whichever has no particles, of ``left @ right``.

    With batches: [G, R, m] @ [G, m, n]; a matrix product is a batch of one.
    """
    batched = b.dim() == 3
    if entry.layout.axis == batched:  # the result's rows are the particles': right^T's gradient
        first, second = _side_by_side(entry, left, False), _side_by_side(entry, b, False)
    else:
        first, second = _side_by_side(entry, b, True), _side_by_side(entry, right, True)
    return OuterProducts(first, second)


def _side_by_side(entry: Entry, x: Tensor, columns: bool) -> Tensor:
    """Return [P, G, T, m] of x [(G,) P * T, m], or of [(G,) m, P * T] with ``columns``."""
    split = entry.rows(x)  # [P, (G,) T, m]
    split = split if x.dim() == 3 else split.unsqueeze(1)
    return split.mT if columns else split


def _mm(entry: Entry, b: Tensor) -> Contribution:
    return _product(entry, b, entry.function._saved_self, entry.function._saved_mat2)


def _addmm(entry: Entry, b: Tensor) -> Tensor | Contribution:
    function = entry.function
    if entry.slot == 0:
        return entry.sum_to_operand(times(b, function._saved_beta))
    b = times(b, function._saved_alpha)
    return _product(entry, b, function._saved_mat1, function._saved_mat2)


def _baddbmm(entry: Entry, b: Tensor) -> Tensor | Contribution:
    function = entry.function
    if entry.slot == 0:
        return entry.sum_to_operand(times(b, function._saved_beta))
    b = times(b, function._saved_alpha)
    return _product(entry, b, function._saved_batch1, function._saved_batch2)


def _mv(entry: Entry, b: Tensor) -> Tensor:
    return (entry.rows(entry.function._saved_self) * entry.rows(b).unsqueeze(-1)).sum(1)


def _triangular_solution(entry: Entry, b: Tensor) -> Tensor:
    """Of A X = B, to A: the triangle of -(A^-T b_i) x_i^T, over the columns of particle i."""
    function = entry.function
    matrix, upper = function._saved_self, function._saved_upper
    unit = function._saved_unitriangular
    pulled = torch.linalg.solve_triangular(matrix.mT.conj(), b, upper=not upper, unitriangular=unit)
    first, second = (
        entry.rows(x).reshape(entry.particles, -1, *x.shape[-2:-1], x.shape[-1] // entry.particles)
        for x in (pulled, function._saved_result)
    )
    whole = -(first @ second.mT).sum(1)
    triangle = whole.triu(int(unit)) if upper else whole.tril(-int(unit))
    return triangle.reshape(entry.particles, *entry.operand)


def _layer_norm(entry: Entry, b: Tensor) -> Tensor:
    function = entry.function
    if entry.slot == 2:
        return entry.sum_to_operand(b)
    scaled = (function._saved_input - function._saved_result1) * function._saved_result2
    return entry.sum_to_operand(b * scaled)


def _channels(entry: Entry, gradient: Tensor) -> Tensor:
    """Sum [N, C, ...] to [P, C]."""
    split = entry.rows(gradient)  # [P, N / P, C, ...]
    return split.sum([axis for axis in range(1, split.dim()) if axis != 2])


def _group_norm(entry: Entry, b: Tensor) -> Tensor:
    function = entry.function
    if entry.slot == 2:
        return _channels(entry, b)
    x = function._saved_input
    groups = x.reshape(x.shape[0], function._saved_group, -1)
    centred = groups - function._saved_result1.unsqueeze(-1)
    scaled = (centred * function._saved_result2.unsqueeze(-1)).reshape(x.shape)
    return _channels(entry, b * scaled)


def _batch_norm(entry: Entry, b: Tensor) -> Tensor:
    function = entry.function
    if entry.slot == 2:
        return _channels(entry, b)
    x = function._saved_input
    if function._saved_training:
        mean, scale = function._saved_result1, function._saved_result2
    else:
        mean = function._saved_running_mean
        scale = (function._saved_running_var + function._saved_eps).rsqrt()
    shape = [1, -1] + [1] * (x.dim() - 2)
    return _channels(entry, b * (x - mean.reshape(shape)) * scale.reshape(shape))


def _convolution(entry: Entry, b: Tensor) -> Tensor | Contribution:
    function = entry.function
    if entry.slot == 2:
        return _channels(entry, b)
    x, b = entry.rows(function._saved_input), entry.rows(b)  # [P, N, C, *spatial]
    groups = function._saved_groups
    kernel = entry.operand[2:]
    how = (
        kernel,
        function._saved_stride,
        function._saved_padding,
        function._saved_dilation,
        groups,
    )
    # The weight is [G * m, n, *kernel]: a matrix [m, n * kernel] for each group.
    if function._saved_transposed:
        return OuterProducts(_pixels(x, groups), Windows(b, *how, positions=x.shape[3:]))
    return OuterProducts(_pixels(b, groups), Windows(x, *how, positions=b.shape[3:]))


def _pixels(x: Tensor, groups: int) -> Tensor:
    """Return [P, G, T, C / G] of [P, N, C, *spatial], T over images and positions."""
    split: Tensor = x.flatten(3).unflatten(2, (groups, -1))  # [P, N, G, C / G, positions]
    return split.permute(0, 2, 1, 4, 3).flatten(2, 3)


def _looked_up(entry: Entry, b: Tensor, indices: Tensor, padding: int = -1) -> Contribution:
    values = entry.rows(b).flatten(1, -2)  # [P, T, D]
    # The index lacks the result's last axis only, so the particles are where they are in it.
    found = entry.rows(indices).flatten(1)
    if padding >= 0:
        values = values * (found != padding).unsqueeze(2)
    return EmbeddingRows(found, values, entry.operand[0])


def _embedding(entry: Entry, b: Tensor) -> Contribution:
    function = entry.function
    padding = function._saved_padding_idx
    return _looked_up(entry, b, function._saved_indices, padding if padding < 1 << 63 else -1)


def _index(entry: Entry, b: Tensor) -> Tensor | Contribution:
    indices = entry.function._saved_indices[0]
    indices = indices.remainder(entry.operand[0])  # negative ones count from the end
    flat = b.reshape(*indices.shape, -1)
    return _looked_up(entry, flat, indices)


add_rule("MmBackward0", Rule(rows.matrix_product, _mm))
add_rule("BmmBackward0", Rule(rows.matrix_product, _mm))
add_rule("MvBackward0", Rule(rows.matrix_product, _mv))
add_rule("AddmmBackward0", Rule(rows.added_matrix_product, _addmm))
add_rule("BaddbmmBackward0", Rule(rows.added_matrix_product, _baddbmm))
add_rule(
    "LinalgSolveTriangularBackward0",
    Rule(rows.triangular_solution, _triangular_solution, ("left",)),
)
add_rule("NativeLayerNormBackward0", Rule(rows.layer_norm, _layer_norm, ("normalized_shape",)))
add_rule("NativeGroupNormBackward0", Rule(rows.images, _group_norm))
add_rule("NativeBatchNormBackward0", Rule(rows.batch_norm, _batch_norm, ("training",)))
add_rule("ConvolutionBackward0", Rule(rows.images, _convolution))
add_rule("EmbeddingBackward0", Rule(rows.table, _embedding, ("scale_grad_by_freq",)))
add_rule("IndexBackward0", Rule(rows.indexed, _index, (look_ups,)))
