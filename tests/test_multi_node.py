"""The example of two nodes runs: two torchrun agents on this machine."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import pytest
import torch

from .launching import Ended, free_ports, launch_together

EXAMPLE = Path(__file__).parent.parent / "examples" / "two_nodes.sh"
SMALL = (
    "--model.particles=8",
    "--model.steps=3",
    "--model.dynamics=GPDynamics",
    "--model.dynamics.steps=5",
    "--model.candidates=2",
    "--model.policy=RBFPolicy",
    "--model.policy.basis_functions=10",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.logger=CSVLogger",
    "--trainer.logger.save_dir=runs",
)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    folder = tmp_path_factory.mktemp("nodes")
    # The packages as the tests import them, wherever this is run from.
    found = launch_together(
        folder,
        [(str(EXAMPLE), *SMALL)],
        program="bash",
        environment={
            "PYTHON": sys.executable,
            "PORT": str(free_ports(1)[0]),
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        },
    )
    return found[0], folder


@pytest.mark.slow
def test_two_nodes_train_together(ended: tuple[Ended, Path]) -> None:
    run, folder = ended
    assert run.status == 0, run.stderr
    assert "Starting with 2 processes" in run.stderr
    # One of the two reports, and has written what there is.
    assert run.stdout.count("Trained for 2 epochs, 6 steps.") == 1
    (metrics,) = folder.rglob("metrics.csv")
    with metrics.open() as file:
        predicted = [row["predicted/cost"] for row in csv.DictReader(file)]
    assert sum(bool(value) for value in predicted) == 6
    (checkpoint,) = folder.rglob("checkpoints/*.ckpt")
    assert len(torch.load(checkpoint, weights_only=True)["episodes"]) == 2
