"""torchrl's PILCO beside ours: what is done about its model, and without torchrl."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import pilco_torchrl
from proppo_agents.experience.episodes import Episode

MISSING = any(importlib.util.find_spec(name) is None for name in ("torchrl", "botorch"))


@pytest.mark.skipif(not MISSING, reason="torchrl is installed")
def test_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pilco.csv"
    monkeypatch.setattr(sys, "argv", ["pilco_torchrl", "--csv", str(path)])
    pilco_torchrl.main()
    assert "left out" in capsys.readouterr().out
    assert not path.exists()


def prediction(model: Any, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance [D, P] of what torchrl's moment matching is of."""
    difference = (at[:, None] - model.X_tilde_train) / model.ell[:, None, None]
    kernel = model.alpha_sq[..., None] * torch.exp(-0.5 * difference.square().sum(-1))
    mean = (kernel @ model._cached_beta[..., None])[..., 0]
    explained = (kernel @ model._cached_inv_K_noisy * kernel).sum(-1)
    return mean, model.alpha_sq - explained


@pytest.mark.skipif(MISSING, reason="torchrl is not installed")
def test_repaired_model_is_as_sure_as_botorch() -> None:
    torch.manual_seed(0)
    actions = torch.rand(41, 1, dtype=torch.float64)
    # Outputs of small and of large deviation, so that units matter.
    step = torch.cat([0.01 * torch.sin(6 * actions), 5 * torch.cos(6 * actions)], -1)
    step = step + torch.tensor([0.001, 0.5]) * torch.randn(41, 2, dtype=torch.float64)
    observations = torch.cat([torch.zeros(1, 2, dtype=torch.float64), step.cumsum(0)])
    episode = Episode(observations, actions, torch.zeros(41, dtype=torch.float64), success=False)
    at = torch.cat([observations[:-1], actions], 1)[::4]
    model = pilco_torchrl.fit_model([episode], repair=False)
    expected = torch.stack([gp.posterior(at).variance[:, 0] for gp in model.model_list.models])
    mean, variance = prediction(model, at)
    assert not torch.allclose(variance, expected, rtol=0.5, atol=0)
    pilco_torchrl.to_units_of(model, step)
    repaired_mean, repaired_variance = prediction(model, at)
    torch.testing.assert_close(repaired_mean, mean)
    # torchrl adds 1e-6 to the noise.
    torch.testing.assert_close(repaired_variance, expected, rtol=1e-2, atol=0)
