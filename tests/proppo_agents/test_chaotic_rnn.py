"""The chaotic recurrent network as a LightningModule."""

from __future__ import annotations

import pytest
import torch

from lightning_proppo import PropagationCallback
from lightning_proppo.installed_lightning import pl
from proppo_agents import ChaoticRNNModule


@pytest.mark.parametrize("estimator", ["RP", "TP", "LR"])
def test_it_trains_beta(estimator: str) -> None:
    torch.manual_seed(0)
    module = ChaoticRNNModule(beta=1.5, particles=50, horizon=10, steps=5)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[PropagationCallback(estimator)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    assert float(module.beta.detach()) != 1.5
    assert bool(torch.isfinite(module.beta))


@pytest.mark.parametrize("name", ["particles", "horizon", "steps", "learning_rate"])
def test_what_must_be_positive_is_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be (positive|at least 1); got 0"):
        ChaoticRNNModule(**{name: 0})
