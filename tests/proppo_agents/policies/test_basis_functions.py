"""Radial basis functions by products, against their formula and PyTorch's own derivatives."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import lightning_proppo
from lightning_proppo import PropagationManager
from lightning_proppo.engine.graph import vector_jacobian_product
from lightning_proppo.per_particle import find_parameter_uses
from proppo_agents.encodings import encode_angles
from proppo_agents.parts import Spaces
from proppo_agents.policies import RBFPolicy
from proppo_agents.policies.basis_functions import radial_basis

from ...largest_tensor import LargestTensor

P, C, D = 6, 5, 3


def arguments(particles: int = P, centres: int = C) -> tuple[Tensor, Tensor, Tensor]:
    sizes = [(particles, D), (centres, D), (D,)]
    x, c, log = (torch.randn(*size, dtype=torch.float64) for size in sizes)
    return x.requires_grad_(), c.requires_grad_(), (0.3 * log).requires_grad_()


def by_formula(x: Tensor, centres: Tensor, log_lengthscales: Tensor) -> Tensor:
    scaled = (x.unsqueeze(1) - centres) / log_lengthscales.exp()
    return torch.exp(-0.5 * scaled.square().sum(-1))


def test_it_is_its_formula() -> None:
    operands = arguments()
    found, expected = radial_basis(*operands), by_formula(*operands)
    torch.testing.assert_close(found, expected)
    b = torch.randn_like(found)
    for _ in range(2):  # the graph can be pulled through again
        torch.testing.assert_close(
            torch.autograd.grad(found, operands, b, retain_graph=True),
            torch.autograd.grad(expected, operands, b, retain_graph=True),
        )


def test_derivatives_of_any_order() -> None:
    operands = arguments()
    assert torch.autograd.gradcheck(radial_basis, operands, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(radial_basis, operands)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_some_operands_need_a_gradient(wanted: tuple[int, ...]) -> None:
    operands = [v.detach().requires_grad_(k in wanted) for k, v in enumerate(arguments())]
    chosen = [operands[k] for k in wanted]
    found = torch.autograd.grad(radial_basis(*operands).sum(), chosen)
    torch.testing.assert_close(found, torch.autograd.grad(by_formula(*operands).sum(), chosen))


def test_far_from_its_centre_a_function_is_0_and_at_it_1_in_float32() -> None:
    centres = torch.tensor([[30.0, -20.0], [0.0, 0.0]])
    found = radial_basis(centres.clone(), centres, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(found, torch.eye(2), rtol=0.0, atol=1e-3)


def test_nothing_of_particles_times_centres_times_coordinates_is_formed() -> None:
    operands = arguments(particles=40, centres=30)
    with LargestTensor() as watch:
        torch.autograd.grad(radial_basis(*operands).sum(), operands)
    assert watch.elements <= 40 * 30


def test_variances_over_particles_are_those_of_each_particles_gradient() -> None:
    operands = arguments()
    parameters = list(operands[1:])
    output, b = radial_basis(*operands), torch.randn(P, C, dtype=torch.float64)
    uses = find_parameter_uses([output], parameters, P)
    assert uses.unsupported is None
    answers = vector_jacobian_product([output], [b], [*parameters, *uses.edges])
    found = uses.variance(answers[2:], answers[:2], [output], [b])
    expected = torch.zeros((), dtype=torch.float64)
    for k in range(2):
        rows = [
            torch.autograd.grad(output[i], parameters[k], b[i], retain_graph=True)[0]
            for i in range(P)
        ]
        each = torch.stack(rows)
        expected += (each - each.mean(0)).square().sum()
    torch.testing.assert_close(found, expected)


def test_total_propagation_follows_particles_through_the_policy() -> None:
    particles = 16

    def statistics(expand: bool) -> list[Tensor]:
        torch.manual_seed(0)
        policy = RBFPolicy(basis_functions=C).build(Spaces(D, 1, angles=(1,))).double()
        parameters = list(policy.parameters())
        expanded = [lightning_proppo.expand(p, particles) for p in parameters]
        manager = PropagationManager("TP")
        state = torch.randn(particles, D, dtype=torch.float64)
        for _ in range(3):
            if expand:
                centres, lengthscales, weights = expanded
                x = encode_angles(state, (1,)).unsqueeze(1)
                scaled = (x - centres) / lengthscales.exp().unsqueeze(1)
                z = (torch.exp(-0.5 * scaled.square().sum(-1)).unsqueeze(1) @ weights).squeeze(1)
                action = (9 * torch.sin(z) + torch.sin(3 * z)) / 8
            else:
                action = policy(state)
            target = expanded if expand else parameters
            state = manager.sample(Normal(0.9 * state + action, 0.3), ivw_target=target)
        manager.loss(state.square().sum(1)).backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        return [torch.stack(manager.statistics["lr_weight"]), *gradients]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = statistics(expand=False)
    torch.testing.assert_close(found, statistics(expand=True), rtol=1e-5, atol=1e-8)
