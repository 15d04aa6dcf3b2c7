"""Predictions of an ensemble's members: all of them, or each particle's own.

B members, P particles, I inputs, E outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lightning_proppo import per_particle_rule


@dataclass(frozen=True)
class Members:
    """Fitted networks side by side, between standardized inputs and outputs.

    Attributes:
        input_mean: [I]; with ``input_std`` [I], the inputs' standardization.
        input_std: [I].
        output_mean: [E]; with ``output_std`` [E], the outputs' standardization.
        output_std: [E].
        weights: of each layer, [B, from, to].
        biases: of each layer, [B, 1, to].
        lowest: soft bound of the log-variances, [B, 1, E].
        highest: the other one.
    """

    input_mean: Tensor
    input_std: Tensor
    output_mean: Tensor
    output_std: Tensor
    weights: list[Tensor]
    biases: list[Tensor]
    lowest: Tensor
    highest: Tensor

    @property
    def count(self) -> int:
        """The number B of members."""
        return self.lowest.shape[0]


def predict_all(members: Members, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return all members' means and variances [B, P, E] at inputs [P, I]."""
    x = (inputs - members.input_mean) / members.input_std
    mean, log, _ = evaluate(members, x.expand(members.count, -1, -1))
    variance = log.exp() * members.output_std.square()
    return mean * members.output_std + members.output_mean, variance


def predict_own(
    members: Members, inputs: Tensor, order: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [P, E] at inputs [P, I], each by one member.

    Particles are shared out evenly, in their order: the first P / B of them go by the first member.
    A gradient with respect to the inputs can be taken once, not of a gradient.

    Args:
        members: the networks.
        inputs: [P, I].
        order: [P], a permutation: particle ``order[i]`` goes by the i-th one's member. None: as
            they are.
    """
    mean, std = _OwnPrediction.apply(inputs, members, order)  # type: ignore[no-untyped-call]  # PyTorch's
    return mean, std


def evaluate(members: Any, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return standardized means and log-variances [B, Q, E], and what each layer was given.

    The latter before the activation; last is the layer of outputs, before the bounds.

    Args:
        members: whose weights, biases, lowest and highest are as those of :class:`Members`.
        x: standardized inputs [B, Q, I].
    """
    between: list[Tensor] = []
    for k, (weights, biases) in enumerate(zip(members.weights, members.biases, strict=True)):
        x = torch.baddbmm(biases, x if k == 0 else functional.silu(x), weights)
        between.append(x)
    mean, raw = x.chunk(2, -1)
    log = members.highest - functional.softplus(members.highest - raw)
    return mean, members.lowest + functional.softplus(log - members.lowest), between


def _grouped(x: Tensor, count: int, order: Tensor | None) -> Tensor:
    """Deal rows [P, ...] to members, [B, Q, ...]; zeros fill up the last ones."""
    if order is not None:
        x = x[order]
    each = math.ceil(len(x) / count)
    missing = count * each - len(x)
    if missing:
        # The members' shares differ by one row at the most, or a last member might get none.
        shares = _shares(len(x), count)
        rows = [functional.pad(part, (0, 0, 0, each - len(part))) for part in x.split(shares)]
        return torch.stack(rows)
    return x.reshape(count, each, -1)


def _together(x: Tensor, particles: int, order: Tensor | None) -> Tensor:
    """Undo :func:`_grouped`."""
    count, each = x.shape[:2]
    if count * each == particles:
        flat = x.reshape(particles, -1)
    else:
        shares = _shares(particles, count)
        flat = torch.cat([part[:share] for part, share in zip(x, shares, strict=True)])
    return flat if order is None else flat[order.argsort()]


def _shares(particles: int, count: int) -> list[int]:
    return [particles // count + (k < particles % count) for k in range(count)]


class _OwnPrediction(torch.autograd.Function):
    """Mean and standard deviation of each particle by its own member.

    One node of the graph: what happens inside, where particles are dealt out and put together
    again, does not concern those who follow particles through it.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, members: Members, order: Tensor | None) -> Any:
        x = (inputs - members.input_mean) / members.input_std
        mean, log, between = evaluate(members, _grouped(x, members.count, order))
        mean = _together(mean, len(inputs), order) * members.output_std + members.output_mean
        std = _together((0.5 * log).exp(), len(inputs), order) * members.output_std
        ctx.members, ctx.order = members, order
        ctx.save_for_backward(std, *between)
        return mean, std

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mean: Tensor, of_std: Tensor) -> tuple[Tensor, None, None]:
        members, order = ctx.members, ctx.order
        std, *between = ctx.saved_tensors
        particles = len(std)
        # std = exp(log / 2), and log through both soft bounds of what the network gave.
        of_log = _grouped(0.5 * of_std * std, members.count, order)
        raw = between[-1].chunk(2, -1)[1]
        log = members.highest - functional.softplus(members.highest - raw)
        of_log = of_log * torch.sigmoid(members.highest - raw)
        of_log = of_log * torch.sigmoid(log - members.lowest)
        b = torch.cat([_grouped(of_mean * members.output_std, members.count, order), of_log], -1)
        for z, weights in zip(reversed(between[:-1]), reversed(members.weights[1:]), strict=True):
            sigmoid = torch.sigmoid(z)
            b = (b @ weights.mT) * (sigmoid * (1 + z * (1 - sigmoid)))
        b = _together(b @ members.weights[0].mT, particles, order)
        return b / members.input_std, None, None


# Each particle's prediction is its own, and nothing else has a gradient.
@per_particle_rule(_OwnPrediction, rows=[0])
def _no_shared_operand(function: Any, slot: int, b: Tensor, particles: int) -> Tensor:
    raise NotImplementedError
