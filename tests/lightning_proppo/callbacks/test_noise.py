"""The noise of training steps: each rank's own, and resumed where it was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_proppo.callbacks.noise import NoiseStream
from lightning_proppo.generators import packed, seeded

from ...launching import launch_successfully, run_on_ranks

CPU = torch.device("cpu")


def begun(rank: int = 0, size: int = 1, kept: Any = None) -> NoiseStream:
    """Return a stream that has begun, where another one was kept."""
    stream = NoiseStream()
    if kept is not None:
        stream.load(kept)
    stream.begin(CPU, rank, size)
    return stream


def step_of(stream: NoiseStream, count: int) -> torch.Tensor:
    """Return what a training step draws."""
    stream.enter()
    drawn = torch.rand(count)
    stream.leave()
    return drawn


def test_the_noise_depends_on_seed_and_rank_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(seed: int, rank: int, size: int) -> torch.Tensor:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        return step_of(begun(rank, size), 100)

    first = of(5, rank=1, size=2)
    torch.rand(17)
    assert torch.equal(of(5, rank=1, size=2), first)
    assert torch.equal(of(5, rank=1, size=8), first)
    for seed, rank in ((5, 0), (6, 1), (1, 5)):
        assert not (of(seed, rank, size=8) == first).any()


def test_a_step_does_not_draw_what_the_last_one_drew() -> None:
    stream = begun()
    assert not torch.equal(step_of(stream, 2), step_of(stream, 2))


def test_what_draws_outside_does_not_move_it_and_is_not_moved() -> None:
    torch.manual_seed(3)
    expected_outside = [torch.rand(2), torch.rand(2)]
    found: list[list[torch.Tensor]] = []
    for between in (0, 5):
        torch.manual_seed(3)
        stream = begun()
        inside = []
        for _ in range(2):
            inside.append(step_of(stream, 2))
            torch.rand(between)
        found.append(inside)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(3)
    step_of(stream, 50)
    assert all(torch.equal(torch.rand(2), outside) for outside in expected_outside)


def test_it_goes_on_where_it_was_kept_also_amid_a_step() -> None:
    stream = begun()
    stream.enter()
    torch.rand(3)
    kept = stream.state_of_ranks()
    expected = torch.rand(5)
    stream.leave()
    assert torch.equal(step_of(begun(kept=kept), 5), expected)


def test_each_rank_goes_on_with_its_own_row() -> None:
    rows = [packed(seeded(seed, CPU)) for seed in (1, 2)]
    kept = {name: torch.stack([states[name] for states in rows]) for name in rows[0]}
    drawn = step_of(begun(1, 2, kept), 3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(2)))


def test_another_number_of_ranks_begins_anew_with_a_warning() -> None:
    kept = begun().state_of_ranks()
    with pytest.warns(UserWarning, match="holds the noise of 1 ranks on cpu; 2 on cpu cannot"):
        stream = begun(0, 2, kept)
    assert stream.states is not None


_VARIANCE = """
from lightning_proppo import PropagationManager
from lightning_proppo.callbacks.noise import NoiseStream
from torch.distributions import Normal

os.environ["PL_GLOBAL_SEED"] = "4"
torch.manual_seed(4)  # what a single rank's seed is drawn from
stream = NoiseStream()
stream.begin(torch.device("cpu"), RANK, SIZE)
stream.enter()
theta = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
found = []
for _ in range(250):
    manager = PropagationManager("TP")
    x = torch.zeros(8, 1, dtype=torch.float64)
    x = manager.sample(Normal(x + theta, torch.ones_like(x)))
    manager.loss((x - 1).square().sum(1) + 0.1 * (5 * x).sin().sum(1)).backward()
    found.append(theta.grad.clone())
    theta.grad = None
result = torch.cat(found)
dist.all_reduce(result)
result /= SIZE
"""


@pytest.mark.slow
def test_the_variance_falls_as_one_over_the_number_of_ranks(tmp_path: Path) -> None:
    variances = {}
    for size in (1, 2, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        gradients = run_on_ranks(_VARIANCE, size, folder)[0]
        deviations = (gradients - gradients.mean()).square()
        # The variance, and the standard error of its logarithm.
        variances[size] = (
            deviations.mean().item(),
            (deviations.std() / deviations.mean() / math.sqrt(len(deviations))).item(),
        )
    for size in (2, 4):
        (one, error), (many, other) = variances[1], variances[size]
        # 5 standard errors: a false alarm in 1.7 million runs.
        assert abs(math.log(one / many) - math.log(size)) < 5 * math.hypot(error, other)
    assert math.log(one / many) > 5 * math.hypot(error, other)  # from 1 to 4 it does fall


_RESUME = """
import sys

import torch
from torch.distributions import Normal
from torch.utils.data import DataLoader

from lightning_proppo import PropagationCallback
from lightning_proppo.installed_lightning import pl

torch.set_num_threads(1)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 2)
        self.weights = []

    def training_step(self, batch, batch_idx):
        x = batch
        for _ in range(2):
            x = self.manager.sample(Normal(x + 0.1 * self.net(x), 0.1))
        return self.manager.loss(x.square().sum(1))

    def on_train_batch_end(self, *_):
        self.weights.append(self.manager.statistics["lr_weight"][0])

    def validation_step(self, batch, batch_idx):
        torch.randn(5)

    def train_dataloader(self):
        return DataLoader(torch.arange(64.0).reshape(32, 2) / 64, batch_size=4)

    def val_dataloader(self):
        return DataLoader(torch.zeros(4, 2), batch_size=2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def fit(devices, epochs, resume=None, keep=None):
    pl.seed_everything(1)
    module = Module()
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[PropagationCallback("TP")],
    )
    trainer.fit(module, ckpt_path=resume)
    if keep:
        trainer.save_checkpoint(keep)
    return trainer.global_rank, torch.cat([p.detach().flatten() for p in module.parameters()]), (
        torch.stack(module.weights)
    )


if __name__ == "__main__":
    devices, folder = int(sys.argv[1]), sys.argv[2]
    rank, whole, weights = fit(devices, 3)
    fit(devices, 2, keep=f"{folder}/kept.ckpt")
    _, resumed, _ = fit(devices, 3, resume=f"{folder}/kept.ckpt")
    torch.save((whole, resumed, weights), f"{folder}/rank{rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_resumed_run_draws_what_the_uninterrupted_one_does(tmp_path: Path, devices: int) -> None:
    script = tmp_path / "resume.py"
    script.write_text(_RESUME)
    launch_successfully(tmp_path, str(script), str(devices), str(tmp_path))
    found: list[Any] = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(devices)]
    for whole, resumed, weights in found:
        assert torch.equal(whole, resumed)
        assert torch.equal(whole, found[0][0])
        # One estimate: the weights are those of all ranks' particles.
        assert torch.equal(weights, found[0][2])
    checkpoint = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    assert checkpoint["proppo_noise"]["cpu"].shape[0] == devices
