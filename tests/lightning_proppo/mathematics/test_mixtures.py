"""Shared samples against their definitions, written as loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from lightning_proppo.mathematics.mixtures import neighbours, principal_order, share_samples

from ...largest_tensor import LargestTensor

P, D = 7, 3


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Locations, scales, samples and losses."""
    loc = torch.randn(P, D, dtype=torch.float64)
    scale = 0.5 + torch.rand(P, D, dtype=torch.float64)
    losses = torch.randn(P, 1, dtype=torch.float64)
    return loc, scale, loc + scale * torch.randn_like(loc), losses


def shares(loc: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """c[i, j] of particles that all share."""
    density = torch.stack(
        [
            torch.stack([Normal(m, s).log_prob(y).sum().exp() for y in x])
            for m, s in zip(loc, scale, strict=True)
        ]
    )
    return density / density.sum(0)


@pytest.mark.parametrize("group_size", [None, 2, 3, 4, 7, 100])
def test_every_particle_is_in_one_group(group_size: int | None) -> None:
    index = neighbours(torch.randn(P, D), group_size)
    assert sorted(index[index < P].tolist()) == list(range(P))
    sizes = (index < P).sum(1)
    assert int(sizes.max()) <= (group_size or P)
    assert int(sizes.max() - sizes.min()) <= 1


def test_groups_are_of_neighbours() -> None:
    loc = torch.tensor([[0.0], [5.0], [0.1], [5.1], [9.0], [9.2]])
    assert [sorted(row) for row in neighbours(loc, 2).tolist()] in (
        [[0, 2], [1, 3], [4, 5]],
        [[4, 5], [1, 3], [0, 2]],
    )


def test_order_follows_the_largest_spread() -> None:
    along = torch.randperm(50).double()
    x = torch.outer(along, torch.tensor([3.0, -4.0]).double()) + 0.01 * torch.randn(50, 2)
    order = principal_order(x)
    assert order.tolist() in (along.argsort().tolist(), along.argsort(descending=True).tolist())


def test_order_of_particles_that_are_alike_is_some_order() -> None:
    assert sorted(principal_order(torch.zeros(5, 2)).tolist()) == [0, 1, 2, 3, 4]
    assert sorted(principal_order(torch.full((5, 2), math.nan)).tolist()) == [0, 1, 2, 3, 4]


def test_the_whole_batch_shares(batch: tuple[Tensor, ...]) -> None:
    loc, scale, x, losses = batch
    shared = share_samples(x, loc, scale)
    c = shares(loc, scale, x)
    torch.testing.assert_close(shared.weights[0].T, c)
    deviations, baseline = shared.deviations(losses)
    others = (losses.sum() - losses[:, 0]) / (P - 1)
    torch.testing.assert_close(baseline[0], others)
    delta = losses[:, 0] - others
    torch.testing.assert_close(deviations[0], delta)
    torch.testing.assert_close(shared.expected(deviations, baseline)[:, 0], others + c @ delta)
    check_gradients(shared, deviations, c, delta, loc, scale, x)


def check_gradients(shared, deviations, c, delta, loc, scale, x) -> None:
    """Compare with the sum over pairs of c_ij (L_j - b_j) grad log p_i(x_j)."""
    by_distribution = [torch.zeros_like(loc), torch.zeros_like(loc)]
    by_sample = [torch.zeros_like(loc), torch.zeros_like(loc)]
    for i in range(P):
        for j in range(P):
            m, s = loc[i].clone().requires_grad_(), scale[i].clone().requires_grad_()
            score = torch.autograd.grad(Normal(m, s).log_prob(x[j]).sum(), (m, s))
            for k in (0, 1):
                share = c[i, j] * delta[j] * score[k] / P
                by_distribution[k][i] += share
                by_sample[k][j] += share
    for found, expected in (
        (shared.lr_cotangents(deviations), by_distribution),
        (shared.lr_contributions(deviations), by_sample),
    ):
        assert len(found) == 2
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    for alone in (shared.lr_cotangents, shared.lr_contributions):
        (found,) = alone(deviations, with_scale=False)
        torch.testing.assert_close(found, alone(deviations)[0])


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_groups_share_among_themselves(batch: tuple[Tensor, ...], group_size: int) -> None:
    loc, scale, x, losses = batch
    shared = share_samples(x, loc, scale, group_size)
    c, base = torch.zeros(P, P).double(), torch.zeros(P).double()
    for row in shared.index.tolist():
        group = [i for i in row if i < P]
        c[torch.tensor(group)[:, None], torch.tensor(group)] = shares(
            loc[group], scale[group], x[group]
        )
        outside = [i for i in range(P) if i not in group]
        base[group] = losses[outside].mean()
    delta = losses[:, 0] - base
    deviations, baseline = shared.deviations(losses)
    torch.testing.assert_close(shared.expected(deviations, baseline)[:, 0], base + c @ delta)
    check_gradients(shared, deviations, c, delta, loc, scale, x)


def test_small_noise_around_large_locations_keeps_its_digits() -> None:
    """In 32 bits the squares would cancel to nothing."""
    loc = 1.0 + 1e-3 * torch.randn(P, D)
    scale = torch.full((P, D), 1e-3)
    x = loc + scale * torch.randn(P, D)
    exact = shares(loc.double(), scale.double(), x.double())
    torch.testing.assert_close(share_samples(x, loc, scale).weights[0].T, exact, rtol=1e-9, atol=0)


def test_particles_far_apart_keep_to_themselves(batch: tuple[Tensor, ...]) -> None:
    loc, scale, _, losses = batch
    loc = loc + 1e4 * torch.arange(P).double().unsqueeze(1)
    noise = torch.randn_like(loc)
    shared = share_samples(loc + scale * noise, loc, scale)
    deviations, _ = shared.deviations(losses)
    plain = deviations[0].unsqueeze(1) * noise / scale / P
    for found in (shared.lr_cotangents(deviations), shared.lr_contributions(deviations)):
        torch.testing.assert_close(found[0], plain, rtol=1e-6, atol=1e-9)


def test_no_tensor_is_as_large_as_pairs_times_coordinates() -> None:
    particles, dimension = 40, 30
    loc, losses = torch.randn(particles, dimension), torch.randn(particles, 1)
    with LargestTensor() as largest:
        shared = share_samples(loc + torch.randn_like(loc), loc, torch.ones_like(loc))
        deviations, baseline = shared.deviations(losses)
        shared.lr_cotangents(deviations)
        shared.lr_contributions(deviations)
        shared.expected(deviations, baseline)
    assert largest.elements <= 6 * particles * dimension
    assert 6 * particles * dimension < particles**2 * dimension / 4


def test_too_few_to_share_is_named() -> None:
    one = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="at least 2 particles; got 1"):
        share_samples(one, one, one + 1)
    two = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="group_size must be at least 2, or None; got 1"):
        share_samples(two, two, two + 1, 1)
