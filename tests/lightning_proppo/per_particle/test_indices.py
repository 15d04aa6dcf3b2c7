"""Particles that are looked up by an index: apart where it counts them, exact in any case."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_proppo.per_particle import find_parameter_uses, indices, per_particle_variance

from .one_by_one import gradients_one_by_one, summed_squares

P, E, T = 7, 3, 2  # particles, members, neighbours
EVERY = torch.arange(P)
MEMBER = torch.tensor([2, 0, 1, 1, 2, 0, 2])
SHUFFLED = torch.tensor([3, 0, 6, 1, 5, 4, 2])


class Ensemble(nn.Module):
    """Members [E, ...] of a network, whose predictions are [E, P, 4]."""

    def __init__(self, members: int = E) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(members, 3, 5))
        self.bias = nn.Parameter(torch.randn(members, 1, 5))
        self.last = nn.Parameter(torch.randn(members, 5, 4))
        self.shared = nn.Linear(3, 3)
        self.to(torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.shared(x) @ self.first + self.bias)
        return hidden @ self.last


def agrees(output: Tensor, parameters: list[nn.Parameter]) -> None:
    cotangent = torch.randn_like(output)
    rows = gradients_one_by_one([output], [cotangent], parameters)
    found = per_particle_variance([output], [cotangent], parameters)
    torch.testing.assert_close(found, summed_squares(rows), rtol=1e-10, atol=0.0)


# From predictions [E, P, 4] to [P, ...].
COUNTING: dict[str, Callable[[Tensor], Tensor]] = {
    "members": lambda y: y[MEMBER, EVERY],
    "members, as lists": lambda y: y[MEMBER.tolist(), range(P)],
    "members, particles first": lambda y: y.transpose(0, 1)[EVERY, MEMBER],
    "members, from the end": lambda y: y[MEMBER - E, EVERY],
    "members, int32": lambda y: y[MEMBER.int(), EVERY.int()],
    "coordinates too": lambda y: y[MEMBER, EVERY, MEMBER],
    "one coordinate": lambda y: y[MEMBER, EVERY, 1],
    "axes that are apart": lambda y: y.movedim(2, 1)[MEMBER, :, EVERY],
    "axes that are apart, others between": lambda y: y.transpose(0, 2)[:, EVERY][MEMBER, EVERY],
    "several members": lambda y: y[torch.stack([MEMBER, 2 - MEMBER], 1), EVERY[:, None]],
    "several members, members first": lambda y: y[
        torch.stack([MEMBER, 2 - MEMBER]), EVERY
    ].transpose(0, 1),
    "one index": lambda y: y[:, EVERY].transpose(0, 1),
    "one index, first": lambda y: y.transpose(0, 1)[EVERY],
    "neighbours": lambda y: (
        y.unflatten(2, (T, 2))
        .permute(1, 2, 0, 3)
        .flatten(0, 1)[torch.arange(P * T), MEMBER.repeat_interleave(T)]
        .unflatten(0, (P, T))
    ),
    "negative log-likelihood": lambda y: y.sum(0).log_softmax(1)[EVERY, MEMBER],
}
OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "shuffled": lambda y: y[MEMBER, SHUFFLED],
    "backward": lambda y: y[MEMBER, EVERY.flip(0)],
    "from the end": lambda y: y[MEMBER, EVERY - P],
    "one for all": lambda y: y[MEMBER, torch.full((P,), 3)],
    "some twice": lambda y: y[MEMBER, EVERY.clamp_max(4)],
    "a mask": lambda y: y[torch.arange(E)[:, None] == MEMBER],
}
AMBIGUOUS: dict[str, Callable[[Tensor], Tensor]] = {
    "members counted, particles shuffled": lambda y: y[EVERY, SHUFFLED],
    "members counted, particles backward": lambda y: y[EVERY, EVERY.flip(0)],
    "a diagonal": lambda y: y[EVERY, EVERY],
    "particles chosen": lambda y: y[SHUFFLED, EVERY],
}


@pytest.mark.parametrize("look_up", COUNTING.values(), ids=COUNTING)
def test_an_index_that_counts_the_particles_keeps_them_apart(
    look_up: Callable[[Tensor], Tensor],
) -> None:
    network = Ensemble()
    x = torch.randn(P, 3, dtype=torch.float64)
    output, parameters = look_up(network(x)), list(network.parameters())
    assert output.shape[0] == P
    uses = find_parameter_uses([output], parameters, P)
    assert uses.unsupported is None
    assert uses.plan.assumed is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agrees(output, parameters)


@pytest.mark.filterwarnings("ignore:there is no rule")
@pytest.mark.parametrize("look_up", OTHER.values(), ids=OTHER)
def test_any_other_index_is_exact_too(look_up: Callable[[Tensor], Tensor]) -> None:
    network = Ensemble()
    x = torch.randn(P, 3, dtype=torch.float64)
    agrees(look_up(network(x)), list(network.parameters()))


@pytest.mark.filterwarnings("ignore:there is no rule")
@pytest.mark.parametrize("look_up", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_never_wrong_with_as_many_members_as_particles(
    look_up: Callable[[Tensor], Tensor],
) -> None:
    network = Ensemble(P)
    x = torch.randn(P, 3, dtype=torch.float64)
    agrees(look_up(network(x)), list(network.parameters()))


@pytest.mark.filterwarnings("ignore:there is no rule")
def test_one_index_after_another_is_not_taken_for_it() -> None:
    """Plans are remembered, and these graphs differ in the numbers of an index only."""
    for index in (EVERY, SHUFFLED, EVERY):
        network = Ensemble()
        x = torch.randn(P, 3, dtype=torch.float64)
        agrees(network(x)[MEMBER, index], list(network.parameters()))


def test_a_table_with_a_row_for_each_particle_is_apart() -> None:
    table = nn.Parameter(torch.randn(P, 4, dtype=torch.float64))
    uses = find_parameter_uses([table[EVERY]], [table], P)
    assert [number for number, _ in uses.plan.apart] == [0]
    agrees(table[EVERY].exp(), [table])
    agrees(table[SHUFFLED].exp(), [table])


def test_numbers_of_an_index_on_a_device_are_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: list[torch.Size] = []

    def is_range(index: Tensor) -> bool:
        looked_at.append(index.shape)
        return True

    monkeypatch.setattr(indices, "_is_range", is_range)
    before = len(indices._known)
    index = torch.arange(P, device="meta")
    assert all(indices._counts(index) for _ in range(3))
    assert len(looked_at) == 1
    index.add_(1)
    assert all(indices._counts(index) for _ in range(3))
    assert len(looked_at) == 2
    assert indices._counts(torch.arange(P, device="meta"))
    assert len(looked_at) == 3
    del index
    gc.collect()
    assert len(indices._known) == before


@pytest.mark.parametrize(
    "look_up",
    [
        lambda y: y[:, torch.tensor([1, 0, 2])],  # coordinates
        lambda y: y[:, [0, 1, 1]],
        lambda y: y[MEMBER],
    ],
)
def test_indices_that_cannot_hold_the_particles_are_not_looked_at(
    look_up: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indices, "_counts", lambda index: pytest.fail("looked at"))
    w = torch.randn(3, 4, requires_grad=True)
    y = w if look_up(w).shape[0] == P else torch.ones(P, 3) @ w
    find_parameter_uses([look_up(y)], [w], P)
