"""The main text's figure: what is said of RP, LR and TP holds on a small version of it."""

from __future__ import annotations

import pytest
import torch

from proppo_agents.figures import variance
from proppo_agents.figures.experiment import Row, silent_bar
from proppo_agents.figures.repetitions import bootstrap_interval, moments
from proppo_agents.figures.variance import ESTIMATORS, PAPERS, Settings

SETTINGS = Settings(betas=(2.0, 2.5, 3.0), estimators=PAPERS, repetitions=40, particles=60)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    torch.manual_seed(0)
    return list(variance.compute(SETTINGS, silent_bar()))


def test_the_claims_of_the_paper(rows: list[Row]) -> None:
    explodes, robust, total, hundredfold = variance.claims(rows)
    for claim in (explodes, robust, total):
        assert claim.holds, claim
    # The gain that Sec. B.3 speaks of is not reached here: docs/figures.md says so.
    assert not hundredfold.holds


def test_tp_is_at_or_under_the_best_of_the_others(rows: list[Row]) -> None:
    """By a bound on the ratio too: weights that suit badly cost an eighth (docs/estimators.md).

    With 40 normal values each, a ratio of 1.125 appears above 3 with a chance of 2e-3; where TP is
    far better than both, it must be so by a factor.
    """
    found = {(row["beta"], row["estimator"]): row["variance"] for row in rows}
    for beta in SETTINGS.betas:
        best = min(found[beta, "RP"], found[beta, "LR"])
        assert found[beta, "TP"] < 3 * best
    assert found[2.5, "TP"] < 0.3 * min(found[2.5, "RP"], found[2.5, "LR"])


def test_exchanged_estimators_fail_the_claims(rows: list[Row]) -> None:
    exchanged = {"RP": "LR", "LR": "TP", "TP": "RP"}
    wrong = [{**row, "estimator": exchanged[row["estimator"]]} for row in rows]
    explodes, robust, total, _ = variance.claims(wrong)
    assert not explodes.holds  # what is called RP now is TP
    assert not robust.holds
    assert not total.holds


def test_every_estimator_computes_a_gradient() -> None:
    for name in ESTIMATORS:
        gradient = variance.our_gradient(name, 1.5, 40)
        assert torch.isfinite(torch.tensor(gradient())), name


def test_moments_of_known_values() -> None:
    found = moments([1.0, 2.0, 3.0, 6.0])
    assert found["mean"] == 3.0
    assert found["variance"] == pytest.approx(14 / 3)
    assert found["standard_error"] == pytest.approx((14 / 3 / 4) ** 0.5)
    assert found["low"] < found["variance"] < found["high"]


def test_the_interval_covers_the_variance() -> None:
    """Of 200 intervals of 95 % (bootstrap ones are a little short) at least 170."""
    values = 2.0 * torch.randn(200, 100, dtype=torch.float64)
    intervals = [bootstrap_interval(row, draws=300) for row in values]
    assert sum(low < 4.0 < high for low, high in intervals) >= 170
