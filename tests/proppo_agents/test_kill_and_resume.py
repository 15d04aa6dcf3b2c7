"""A training that is killed and goes on ends as one that was left alone, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from pytorch_lightning.loggers import CSVLogger

from lightning_proppo import PropagationCallback, VarianceMonitor
from lightning_proppo.cli import main
from lightning_proppo.cli.resume import last_checkpoint
from proppo_agents import PILCO, ChaoticRNNModule, EnsembleDynamics, GPDynamics, RBFPolicy
from proppo_agents.episode_files import EpisodeFolder, digest_of, read_episodes
from proppo_agents.episodes import Episode
from proppo_agents.resuming import LeftOver
from proppo_agents.trials import Trial

from ..launching import launch_successfully

SCRIPT = Path(__file__).parent / "training_to_kill.py"
# What Lightning counts otherwise, and paths, names of copies and the order of batches are left out.
COMPARED = (
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "episodes",
    "trials",
    "progress",
    "proppo_noise",
)


def same(first: Any, second: Any) -> bool:
    """Whether nested values are equal to the bit; NaN equals NaN."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and (
            first.numpy().tobytes() == second.numpy().tobytes() and first.shape == second.shape
        )
    return bool(first == second) or (first != first and second != second)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def compare(folder: Path, whole: Path) -> None:
    """Fail unless two runs' ends, episodes and logs are the same."""
    found, expected = load(folder / "end.pt"), load(whole / "end.pt")
    assert [name for name in COMPARED if not same(found[name], expected[name])] == []
    monitor = "VarianceMonitor"
    assert same(found["callbacks"].get(monitor), expected["callbacks"].get(monitor))
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    if (whole / "episodes").exists():
        assert [each.path.name for each in read_episodes(folder / "episodes")] == [
            each.path.name for each in read_episodes(whole / "episodes")
        ]


@pytest.mark.slow
def test_a_training_outlives_kills_at_all_moments(tmp_path: Path) -> None:
    launch_successfully(tmp_path, str(SCRIPT), str(tmp_path), "0", "6")
    died = json.loads((tmp_path / "kills.json").read_text())
    assert all(died[phase] >= 6 for phase in ("collect", "fit", "optimize", "write"))
    chains = sorted(tmp_path.glob("chain-*"))
    assert chains
    assert died["end"] == len(chains)
    for chain in chains:
        compare(chain, tmp_path / "whole")
        # What was acted and written is not acted again: two random episodes, three policies.
        acted = (chain / "acted").read_text().split()
        assert len(acted) == len(set(acted)) == 5
        assert not list(chain.rglob(".*.tmp"))
