"""The monitor with two ranks: the variance is that of the gradient of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ...launching import launch_successfully

pytestmark = pytest.mark.slow

Z = 4.0  # two-sided; one in 15,000 by chance

SCRIPT = """
import sys

import torch
from torch import nn
from torch.distributions import Normal
from torch.utils.data import DataLoader

from lightning_proppo import PropagationCallback, VarianceMonitor
from lightning_proppo.installed_lightning import pl

torch.set_num_threads(1)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 2))

    def training_step(self, batch, batch_idx):
        x = torch.zeros(200, 2)
        for _ in range(3):
            x = self.manager.sample(Normal(x + self.net(x), 0.1))
        return self.manager.loss((x - 1.0).square().sum(1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self):
        return DataLoader(range(40), batch_size=1)


class Keep(pl.Callback):
    def __init__(self, monitor):
        self.monitor, self.rows = monitor, []

    def on_train_batch_end(self, *args):
        self.rows.append(dict(self.monitor.last))


def train(devices):
    monitor = VarianceMonitor(every_n_steps=1)
    keep = Keep(monitor)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PropagationCallback("LR"), monitor, keep],
    )
    pl.seed_everything(3)
    trainer.fit(Module())
    return trainer.global_rank, keep.rows


if __name__ == "__main__":
    for devices in (1, 2):
        rank, rows = train(devices)
        torch.save(rows, f"{sys.argv[1]}/of{devices}rank{rank}.pt")
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """What one process, and each of two ranks, logged."""
    folder = tmp_path_factory.mktemp("monitor")
    (folder / "ranks.py").write_text(SCRIPT)
    launch_successfully(folder, str(folder / "ranks.py"), str(folder))
    return {path.stem: torch.load(path) for path in Path(folder).glob("*.pt")}


def values(rows: Any, name: str) -> Tensor:
    return torch.tensor([row[name] for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("name", ["RP", "LR", "TP"])
def test_twice_the_particles_have_half_the_variance(rows: Any, name: str) -> None:
    one = values(rows["of1rank0"], f"variance/{name}") / 2
    two = values(rows["of2rank0"], f"variance/{name}")
    error = (one.var() / len(one) + two.var() / len(two)).sqrt()
    assert abs(one.mean() - two.mean()) < Z * error
    # They are the numbers of all ranks, and the same on each.
    assert torch.equal(two, values(rows["of2rank1"], f"variance/{name}"))
    needed = values(rows["of2rank0"], "particles_needed/LR")
    torch.testing.assert_close(needed, torch.full_like(needed, 400.0))


@pytest.mark.parametrize("ranks", [1, 2])
def test_disagreement_is_in_standard_errors_of_all_ranks(rows: Any, ranks: int) -> None:
    """RP has no bias here, so that z^2 is one on average. Looks are independent."""
    squares = values(rows[f"of{ranks}rank0"], "disagreement/RP").square()
    assert abs(squares.mean() - 1) < Z * squares.std() / len(squares) ** 0.5
    first = values(rows[f"of{ranks}rank0"], "bias/RP")
    assert torch.equal(first, values(rows[f"of{ranks}rank{ranks - 1}"], "bias/RP"))
