"""The memory of the guard: averages over gradients and time steps, and what makes it begin anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_proppo.disagreement import (
    GRADIENTS,
    AtParameters,
    AtSamples,
    DisagreementMemory,
    Look,
)
from lightning_proppo.ranks import ALONE

F = torch.float64
PARTICLES = 10**9  # so that |D|^2 / P counts for nothing


def at_parameters(difference: Tensor, weight: float = 0.0) -> AtParameters:
    """Return evidence whose noise is one."""
    return AtParameters(
        difference, torch.ones((), dtype=F), torch.tensor(weight, dtype=F), PARTICLES, ALONE
    )


def passes(memory: DisagreementMemory, rows: Tensor, weight: float = 0.0) -> list[Tensor | None]:
    """Run a pass over samples with these differences [T, n], and return the doubts."""
    look = memory.begin(len(rows))
    doubts = [look.doubt(at_parameters(row, weight)) for row in rows]
    memory.keep(look)
    return doubts


def total(doubts: list[Tensor | None]) -> float:
    return float(sum(d for d in doubts if d is not None))


def test_a_large_difference_is_doubted_at_once_and_a_small_one_is_not() -> None:
    rows = torch.tensor([[5.1], [0.0], [4.9], [0.0], [0.0]], dtype=F)
    doubts = [float(d) for d in passes(DisagreementMemory(), rows)]  # type: ignore[arg-type]
    assert doubts[0] > 0.99
    assert doubts[1:] == [0.0] * 4


def test_where_lr_is_cheap_less_is_enough() -> None:
    rows = torch.tensor([[3.6]], dtype=F)
    assert total(passes(DisagreementMemory(), rows, weight=0.5)) > 0.9
    assert total(passes(DisagreementMemory(), rows, weight=1e-4)) == 0.0


def test_a_difference_that_comes_again_is_doubted_in_the_end() -> None:
    """2 errors at every gradient; an average of n is significant at 2 sqrt(n) >= 5, for n = 7."""
    memory = DisagreementMemory()
    rows = torch.zeros(12, 1, dtype=F)
    rows[6] = 2.0
    doubted = [total(passes(memory, rows)) > 0 for _ in range(9)]
    assert doubted == [False] * 7 + [True] * 2  # a pass asks what was known before it


def test_neighbours_prove_together_what_none_proves_alone() -> None:
    """1.2 errors at each of 5 neighbours are 2.7 together: 5 after 4 gradients, alone after 18."""
    memory = DisagreementMemory()
    rows = torch.zeros(15, 1, dtype=F)
    rows[5:10] = 1.2
    for _ in range(5):
        found = passes(memory, rows)
    assert float(found[7]) > 0.9  # type: ignore[arg-type]
    assert float(found[0]) == 0.0  # type: ignore[arg-type]


def test_differences_that_change_sign_are_noise() -> None:
    memory = DisagreementMemory()
    rows = torch.zeros(10, 1, dtype=F)
    rows[4] = 2.0
    signs = [1, -1, -1, 1] * 8
    assert sum(total(passes(memory, sign * rows)) for sign in signs[1:]) == 0.0


def test_neighbours_that_scatter_together_count_as_what_they_scatter_by() -> None:
    """Equal noise at all samples: the sum of five is five times as large, and proves nothing."""
    torch.manual_seed(0)
    memory = DisagreementMemory()
    found = 0.0
    for _ in range(200):
        noise = torch.randn((), dtype=F).expand(12, 1)
        found += total(passes(memory, noise)) > 0
    # Twelve samples are one test here; the first few gradients do not know the scatter yet.
    assert found <= 2


def test_evidence_fades() -> None:
    memory = DisagreementMemory()
    rows = torch.zeros(3, 1, dtype=F)
    rows[1] = 6.0
    for _ in range(GRADIENTS):
        passes(memory, rows)
    assert total(passes(memory, rows)) > 0.9
    for _ in range(2 * GRADIENTS):
        found = passes(memory, 0 * rows)
    assert total(found) == 0.0


def test_an_average_without_a_bias_has_the_variance_that_it_is_tested_by() -> None:
    """1000 samples: the variance's standard error is 4.5 %; 5 of them, by chance once in 1e6."""
    torch.manual_seed(0)
    memory = DisagreementMemory()
    for _ in range(2 * GRADIENTS):
        passes(memory, torch.randn(1000, 1, dtype=F))
    (average,) = memory._averages.values()
    assert float(average.units.var()) == pytest.approx(memory._noise, rel=0.22)


@pytest.mark.parametrize("change", ["samples", "parameters"])
def test_another_structure_begins_with_an_empty_memory(change: str) -> None:
    memory = DisagreementMemory()
    for _ in range(5):
        passes(memory, torch.full((4, 2), 3.0, dtype=F))
    shape = (5, 2) if change == "samples" else (4, 3)
    passes(memory, torch.zeros(shape, dtype=F))
    assert memory.gradients == 1
    assert total(passes(memory, torch.zeros(shape, dtype=F))) == 0.0


def test_rollouts_that_take_turns_are_judged_by_themselves() -> None:
    """What one of them has shown is no evidence against the other; a large difference is."""
    memory = DisagreementMemory()
    one, other = torch.full((4, 1), 6.0, dtype=F), torch.zeros(5, 1, dtype=F)
    for _ in range(3):
        assert total(passes(memory, one)) > 3.9
        assert total(passes(memory, other)) == 0.0


def test_a_pass_without_evidence_leaves_the_memory_alone() -> None:
    memory = DisagreementMemory()
    passes(memory, torch.full((4, 2), 3.0, dtype=F))
    memory.keep(memory.begin(4))
    assert memory.gradients == 1


def test_a_state_goes_on_where_it_was() -> None:
    memory, other = DisagreementMemory(), DisagreementMemory()
    torch.manual_seed(0)
    for _ in range(4):
        passes(memory, torch.randn(6, 70, dtype=F) + 1)
    other.load_state_dict(memory.state_dict())
    rows = torch.randn(6, 70, dtype=F) + 1
    for _ in range(3):
        for a, b in zip(passes(memory, rows), passes(other, rows), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_many_numbers_are_remembered_by_few() -> None:
    torch.manual_seed(0)
    memory = DisagreementMemory()
    bias = torch.randn(10_000, dtype=F)
    bias *= 3 / bias.norm()
    for _ in range(12):
        noise = torch.randn(5, 10_000, dtype=F) / 100
        rows = noise.clone()
        rows[2] += bias
        found = passes(memory, rows)
    assert [float(d) > 0 for d in found] == [False, False, True, False, False]  # type: ignore[arg-type]
    assert all(a.units.shape[-1] <= 64 for a in memory._averages.values())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e200])
def test_what_is_not_finite_proves_nothing_and_spoils_nothing(wrong: float) -> None:
    memory = DisagreementMemory()
    rows = torch.zeros(5, 1, dtype=F)
    rows[1], rows[3] = 6.0, wrong
    for _ in range(3):
        found = passes(memory, rows)
    assert float(found[1]) > 0.99  # type: ignore[arg-type]
    if wrong != 1e200:
        assert float(found[3]) == 0.0  # type: ignore[arg-type]


def test_a_bias_that_depends_on_the_past_is_seen_at_samples() -> None:
    """Its mean over the particles is zero; that times the past is not."""
    torch.manual_seed(0)
    past = torch.randn(500, 2, dtype=F)
    rows = torch.randn(500, 2, dtype=F)
    rows[:, 1] += past[:, 0]
    look = Look()
    found = look.doubt(AtSamples(rows, past, torch.zeros(2, dtype=F), ALONE))
    assert found is not None
    assert [float(d) > 0.9 for d in found] == [False, True]


def test_a_batch_of_another_size_goes_on_with_the_memory() -> None:
    torch.manual_seed(0)
    memory = DisagreementMemory()
    for particles in (50, 50, 20):
        look = memory.begin(3)
        for _ in range(3):
            rows = torch.randn(particles, 2, dtype=F)
            look.doubt(AtSamples(rows, rows[:, :1], torch.zeros(2, dtype=F), ALONE))
        memory.keep(look)
    assert memory.gradients == 3


def test_samples_are_reduced_in_portions_without_a_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    evidence = [
        AtSamples(
            torch.randn(50, 2, dtype=F) + 1,
            torch.randn(50, 3, dtype=F),
            torch.full((2,), 0.1, dtype=F),
            ALONE,
        )
        for _ in range(7)
    ]

    def averages() -> Tensor:
        memory = DisagreementMemory()
        for _ in range(2):
            look = memory.begin(7)
            for each in evidence:
                look.doubt(each)
            memory.keep(look)
        (found,) = memory._averages.values()
        return found.units

    whole = averages()
    monkeypatch.setattr("lightning_proppo.disagreement.WAITING", 300)
    torch.testing.assert_close(averages(), whole, rtol=0, atol=0)


def test_it_says_by_how_many_standard_errors_samples_differ_the_first_one_first() -> None:
    memory = DisagreementMemory()
    assert memory.standard_errors().tolist() == []
    rows = torch.tensor([[0.0], [5.0], [-3.0]], dtype=F)  # the last sample comes first
    passes(memory, rows)
    torch.testing.assert_close(memory.standard_errors(), rows.flatten().flip(0).abs())
    for _ in range(3):
        passes(memory, rows)
    torch.testing.assert_close(memory.standard_errors(), 2 * rows.flatten().flip(0).abs())


def test_of_a_samples_coordinates_the_one_that_differs_most_counts() -> None:
    """Samples of several kinds: one of parameters between two of incoming samples."""
    torch.manual_seed(0)
    memory = DisagreementMemory()
    look = memory.begin(3)
    past, weight = torch.zeros(100, 0, dtype=F), torch.full((2,), 0.1, dtype=F)
    rows = torch.randn(2, 100, 2, dtype=F) + torch.tensor([0.0, 1.0], dtype=F)
    look.doubt(AtSamples(rows[0], past, weight, ALONE))
    look.doubt(at_parameters(torch.tensor([3.0, 4.0], dtype=F)))
    look.doubt(AtSamples(rows[1], past, weight, ALONE))
    memory.keep(look)
    units = rows.sum(1) / rows.square().sum(1).sqrt()
    first, second = units.abs().amax(1)
    expected = torch.stack([second, torch.tensor(5.0, dtype=F), first])
    torch.testing.assert_close(memory.standard_errors(), expected)
