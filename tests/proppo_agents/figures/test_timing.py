"""Figs. 5 and 6: what is timed is one and the same gradient, and sizes fit the machine."""

from __future__ import annotations

import statistics

import pytest
import torch

from proppo_agents.figures import memory, timing
from proppo_agents.figures.experiment import silent_bar
from proppo_agents.figures.timing import (
    PLAIN,
    Network,
    Settings,
    all_gradients,
    fit,
    summary,
)
from proppo_agents.figures.turns import times

CPU = torch.device("cpu")


def test_all_estimators_compute_the_same_gradient_on_average() -> None:
    """RP exactly, with the same noise; LR and TP to within 4.5 standard errors (7e-6 each)."""
    network = Network(2000, 3, CPU)
    gradients = all_gradients(network)
    found = {}
    for name in (PLAIN, "RP", "RP, detached"):
        torch.manual_seed(0)
        found[name] = gradients[name]().item()
    assert found["RP"] == pytest.approx(found[PLAIN], rel=1e-5)
    assert found["RP, detached"] == pytest.approx(found[PLAIN], rel=1e-5)
    for name in ("LR", "TP", "TPX"):
        values = [gradients[name]().item() for _ in range(20)]
        error = statistics.stdev(values) / 20**0.5
        assert abs(statistics.fmean(values) - found[PLAIN]) < 4.5 * error + 1e-5, name


@pytest.mark.parametrize("experiment", [timing.BATCH, timing.DIMENSION])
def test_a_sweep_times_every_size_and_estimator(experiment) -> None:
    settings = Settings(experiment.full.sweep, (2, 5), fixed=4, repetitions=3)
    rows = list(experiment.compute(settings, silent_bar()))
    assert len(rows) == 2 * 6
    assert all(set(row) == set(timing.FIELDS) for row in rows)
    assert {(row["batch"], row["dimension"]) for row in rows} == set(settings.sizes())
    assert all(0 < row["low"] <= row["milliseconds"] <= row["high"] for row in rows)
    assert [row["ratio"] for row in rows if row["estimator"] == PLAIN] == [1.0, 1.0]
    assert len(experiment.claims(rows)) == 3
    assert experiment.draw(rows, "").axes


def test_ratios_are_of_the_same_turn() -> None:
    rows = summary("batch", 2, 3, {PLAIN: [1.0, 2.0, 4.0], "RP": [2.0, 6.0, 4.0]})
    assert [row["ratio"] for row in rows] == [1.0, 2.0]
    assert [row["milliseconds"] for row in rows] == [2000.0, 4000.0]


def test_after_the_limit_no_turn_is_begun_but_two_are_made() -> None:
    calls: list[int] = []

    def gradient() -> torch.Tensor:
        calls.append(1)
        return torch.zeros(1)

    found = times({PLAIN: gradient}, 10, CPU, silent_bar(), limit=0.0)
    assert len(found[PLAIN]) == 2
    assert len(calls) == 3  # one to warm up


def test_what_the_memory_does_not_hold_is_left_out_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: int(8e9))
    settings, told = fit(timing.BATCH.full)
    assert settings.values == (2, 10, 100, 1000, 10_000)
    [line] = told
    assert line.startswith("batch 100,000 is left out: it takes about 15.0 GB")
    assert fit(timing.DIMENSION.full) == (timing.DIMENSION.full, [])


def test_there_is_memory() -> None:
    assert 1e8 < memory.available_memory() < 1e14
