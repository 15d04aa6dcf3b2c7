"""Fig. 7: every rollout is timed, and growth is told from what is linear."""

from __future__ import annotations

import pytest

from proppo_agents.figures import bookkeeping, memory
from proppo_agents.figures.bookkeeping import Settings, exponent, fit
from proppo_agents.figures.experiment import Row, silent_bar


def test_rollouts_are_timed_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookkeeping, "TRACED", 10)  # tracing takes a second for each rollout
    settings = Settings(counts=(10, 1000, 5000), repetitions=2)
    rows = list(bookkeeping.compute(settings, silent_bar()))
    assert [row["nodes"] for row in rows] == [10, 10, 1000, 1000, 5000, 5000]
    for row in rows:
        assert set(row) == set(bookkeeping.FIELDS)
        for way in ("forward", "backward", "both"):
            assert 0 < row[f"{way}_low"] <= row[f"{way}_us"] <= row[f"{way}_high"]
        assert row["both_low"] >= row["forward_low"] + row["backward_low"] - 1e-9
        assert row["bytes"] is None if row["nodes"] > 10 else 10 < row["bytes"] < 10_000
    assert len(bookkeeping.claims(rows)) == 2
    assert bookkeeping.draw(rows, "").axes


@pytest.mark.parametrize(("power", "linear"), [(1.0, True), (1.5, False), (2.0, False)])
def test_the_exponent_of_known_times(power: float, linear: bool) -> None:
    rows: list[Row] = [
        {
            "nodes": nodes,
            "system": "no computation",
            "both_low": nodes ** (power - 1),
            "both_us": 2 * nodes ** (power - 1),
        }
        for nodes in (1000, 10_000, 100_000)
    ]
    assert exponent(rows) == pytest.approx(power)
    assert bookkeeping.claims(rows)[0].holds is linear


def test_what_the_memory_does_not_hold_is_left_out_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: int(1e9))
    settings, told = fit(Settings())
    assert settings.counts[-1] == 1_000_000
    assert told[0].startswith("a rollout of 10,000,000 is left out")
