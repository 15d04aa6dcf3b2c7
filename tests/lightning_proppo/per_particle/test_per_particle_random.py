"""Random programs: variances and covariances equal those from particles pulled back one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lightning_proppo.engine.graph import vector_jacobian_product
from lightning_proppo.per_particle import Answers, find_parameter_uses

from .one_by_one import gradients_one_by_one, summed_squares


class Program:
    """Carries a tensor [P, T, D] through operations; layers of one size are used again."""

    def __init__(self, particles: int) -> None:
        self.parameters: dict[str, Tensor] = {}
        self.particles = particles

    def parameter(self, *shape: int) -> Tensor:
        name = str(shape)
        if name not in self.parameters:
            self.parameters[name] = torch.randn(shape, dtype=torch.float64).requires_grad_()
        return self.parameters[name]

    def linear(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.parameter(2, x.shape[2]), self.parameter(2)).tanh()

    def linear_without_bias(self, x: Tensor) -> Tensor:
        return x @ self.parameter(x.shape[2], 3)

    def linear_on_rows(self, x: Tensor) -> Tensor:
        return functional.linear(x.flatten(1), self.parameter(4, x[0].numel())).unsqueeze(1)

    def layer_norm(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        return functional.layer_norm(x, size, self.parameter(*size), self.parameter(*size))

    def convolution(self, x: Tensor) -> Tensor:
        weight = self.parameter(3, x.shape[1], 2)
        return functional.conv1d(x, weight, self.parameter(3), padding=1, stride=2)

    def embedding(self, x: Tensor) -> Tensor:
        index = (x.detach()[:, :, 0] * 10).long().remainder(3)
        return torch.cat([x, functional.embedding(index, self.parameter(3, 2))], dim=2)

    def scale(self, x: Tensor) -> Tensor:
        return x * self.parameter(x.shape[2]) + self.parameter(x.shape[1], 1)

    def scale_by_transformed(self, x: Tensor) -> Tensor:
        return x * functional.softplus(self.parameter(x.shape[2])) / 2

    def by_particle(self, x: Tensor) -> Tensor:
        return x * torch.linspace(0.5, 2.0, self.particles, dtype=x.dtype)[:, None, None]

    def attend(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(2) @ x

    def recur(self, x: Tensor) -> Tensor:
        shapes = (6, x.shape[2]), (6, 2), (6,), (6,)
        weights = [self.parameter(*shape) for shape in shapes]
        cell = nn.GRUCell(x.shape[2], 2).double()
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        state = None
        for part in x.unbind(1)[:2]:
            arguments = dict(zip(names, weights, strict=True))
            state = torch.func.functional_call(cell, arguments, (part, state))
        return state.unsqueeze(1)

    def swap(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    def sequence_first(self, x: Tensor) -> Tensor:
        hidden = functional.linear(x.transpose(0, 1).contiguous(), self.parameter(2, x.shape[2]))
        return hidden.transpose(0, 1).sin()

    def columns(self, x: Tensor) -> Tensor:
        return (self.parameter(3, x[0].numel()) @ x.flatten(1).T).tanh().T.unsqueeze(2)

    def fold(self, x: Tensor) -> Tensor:
        return x.reshape(self.particles, 1, -1) if x.shape[1] > 1 else x.swapaxes(1, 2)

    def centre(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)

    def couple(self, x: Tensor) -> Tensor:
        return x + 0.5 * x.mean(0)

    def couple_constants(self, x: Tensor) -> Tensor:
        return x.detach() + x.detach().mean(0) * self.parameter(x.shape[2])

    def permute_particles(self, x: Tensor) -> Tensor:
        return x[torch.arange(self.particles - 1, -1, -1)]

    def exchange(self, x: Tensor) -> Tensor:
        return x * x.roll(1, 0)

    def through_particles(self, x: Tensor) -> Tensor:
        """A matrix [P, P] of a constant, which is no row of anything."""
        return torch.eye(self.particles, dtype=x.dtype).add(0.1) @ x.flatten(1)[:, None].sum(1)

    def safe_through_particles(self, x: Tensor) -> Tensor:
        return self.through_particles(x).unsqueeze(1)


OPERATIONS: list[Callable[[Program, Tensor], Tensor]] = [
    Program.linear,
    Program.linear,
    Program.linear_without_bias,
    Program.linear_on_rows,
    Program.layer_norm,
    Program.convolution,
    Program.embedding,
    Program.scale,
    Program.scale_by_transformed,
    Program.by_particle,
    Program.attend,
    Program.recur,
    Program.swap,
    Program.sequence_first,
    Program.columns,
    Program.fold,
    Program.centre,
]
COUPLING = [
    Program.couple,
    Program.couple_constants,
    Program.permute_particles,
    Program.exchange,
    Program.safe_through_particles,
]


def run(particles: int, steps: list[Callable[[Program, Tensor], Tensor]], join: bool) -> None:
    torch.manual_seed(0)
    program = Program(particles)
    x = torch.randn(particles, 2, 3, dtype=torch.float64)
    start = x
    for step in steps:
        x = step(program, x)
    output = x.flatten(1)
    if join:  # a layer's result used beside what was made of it
        output = torch.cat([output, program.linear(start).flatten(1)], 1)
    parameters = list(program.parameters.values())
    if not parameters:
        return
    size = len(parameters)
    uses = find_parameter_uses([output], parameters, particles)
    sets, each = [], []
    for _ in range(2):
        b = torch.randn_like(output)
        answers = vector_jacobian_product([output], [b], [*parameters, *uses.edges])
        sets.append(Answers(answers[size:], answers[:size], [output], [b]))
        each.append(gradients_one_by_one([output], [b], parameters))
    found = uses.moments(*sets, with_covariance=True)
    first, second = (summed_squares(gradients) for gradients in each)
    torch.testing.assert_close(found.first, first, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.second, second, rtol=1e-9, atol=1e-12)
    scale = (first * second).sqrt().item() + 1e-3
    torch.testing.assert_close(found.covariance, summed_squares(*each), rtol=0, atol=1e-9 * scale)
    coupled = any(step in COUPLING for step in steps)
    assert coupled or uses.unsupported is None


# Sizes of 2 and 3 are everywhere, so particles cannot be told by their number.
@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    particles=st.sampled_from([2, 3, 4, 7]),
    steps=st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=5),
    join=st.booleans(),
)
def test_rules_are_exact(particles: int, steps: list, join: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(particles, steps, join)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    particles=st.sampled_from([2, 3, 4, 6]),
    steps=st.lists(st.sampled_from([*OPERATIONS, *COUPLING, *COUPLING]), min_size=1, max_size=5),
    join=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:there is no rule")
def test_never_wrong_where_particles_are_coupled(particles: int, steps: list, join: bool) -> None:
    run(particles, steps, join)
