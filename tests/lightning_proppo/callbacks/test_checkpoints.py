"""Checkpoints in real Trainers: whole, safe to load, and with all that a run goes on with."""

from __future__ import annotations

import csv
import os
import pickle
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Normal
from torch.utils.data import DataLoader

from lightning_proppo import PropagationCallback
from lightning_proppo.callbacks.checkpoints import CheckpointError, WholeCheckpointIO


def make_module(pl: ModuleType) -> Any:
    """Return a module that draws from all generators, and shuffles its data."""

    class Module(pl.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 2)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            x = batch.to(self.net.weight) + random.random() + np.random.random()
            for _ in range(2):
                x = self.manager.sample(Normal(x + 0.1 * self.net(x), 0.1))
            self.log("first", x[0, 0].detach(), on_step=True, on_epoch=True)
            return self.manager.loss(x.square().sum(1))

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(torch.arange(24.0).reshape(12, 2) / 24, batch_size=4, shuffle=True)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-2)

    return Module()


def fit(
    pl: ModuleType, folder: Path, epochs: int, ckpt_path: Path | None = None, **options: Any
) -> Any:
    pl.seed_everything(1, verbose=False)
    module = make_module(pl)
    callbacks = [
        PropagationCallback("TP"),
        pl.callbacks.ModelCheckpoint(save_top_k=-1, filename="{epoch}"),
        pl.callbacks.ModelCheckpoint(save_top_k=-1, filename="{step}", every_n_train_steps=1),
    ]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        log_every_n_steps=2,
        logger=pl.loggers.CSVLogger(folder, name="", version=""),
        callbacks=options.pop("callbacks", callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    return module


def weights(module: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# -- the run goes on -----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(
    pl: ModuleType, tmp_path: Path, precision: str
) -> None:
    # Rounded to 32 bits, weights in 64 bits would be others.
    whole = fit(pl, tmp_path, 3, precision=precision)
    text = (tmp_path / "metrics.csv").read_text()
    resumed = fit(pl, tmp_path, 3, tmp_path / "checkpoints" / "epoch=1.ckpt", precision=precision)
    assert torch.equal(weights(resumed), weights(whole))
    assert weights(resumed).dtype == (torch.float64 if "64" in precision else torch.float32)
    # Also what Lightning logs of the epoch after its checkpoint.
    assert (tmp_path / "metrics.csv").read_text() == text
    assert "first_epoch" in text


def test_a_resumed_run_remembers_where_rp_and_lr_disagreed(
    one_pl: ModuleType, tmp_path: Path
) -> None:
    """Three gradients an epoch. A checkpoint of an earlier version has no such memory."""
    whole = fit(one_pl, tmp_path / "whole", 2).manager.disagreement
    fit(one_pl, tmp_path / "resumed", 1)
    (kept,) = (tmp_path / "resumed").rglob("epoch=0.ckpt")
    resumed = fit(one_pl, tmp_path / "resumed", 2, kept).manager.disagreement
    assert whole.gradients == resumed.gradients == 6
    for mine, theirs in zip(
        whole.state_dict()["averages"], resumed.state_dict()["averages"], strict=True
    ):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)

    checkpoint = torch.load(kept, weights_only=True)
    del checkpoint["proppo_disagreement"]
    torch.save(checkpoint, kept)
    assert fit(one_pl, tmp_path / "resumed", 2, kept).manager.disagreement.gradients == 3


def test_what_is_logged_after_a_checkpoint_is_in_it(one_pl: ModuleType, tmp_path: Path) -> None:
    fit(one_pl, tmp_path, 1)
    expected = rows(tmp_path)
    assert [row["step"] for row in expected] == ["1", "2"]  # a step and an epoch
    for name, count in (("step=1", 0), ("step=2", 1), ("epoch=0", 2)):
        checkpoint = tmp_path / "checkpoints" / f"{name}.ckpt"
        kept = torch.load(checkpoint, weights_only=True)["proppo_logs"]
        logged_before = max(count - 1, 0)
        assert kept["rows"] == [logged_before], name
        assert (kept["due"] is None) == (count == 0), name
        if count:
            row = expected[count - 1]
            due = {"step": kept["due"]["step"], **kept["due"]["metrics"]}
            assert {k: str(v) for k, v in due.items()} == {k: v for k, v in row.items() if v}


def test_another_folders_log_begins_anew(one_pl: ModuleType, tmp_path: Path) -> None:
    fit(one_pl, tmp_path / "a", 1)
    fit(one_pl, tmp_path / "b", 1)
    of_b = rows(tmp_path / "b")
    # A run of another kind has its copies here.
    fit(one_pl, tmp_path / "b", 2, tmp_path / "a" / "checkpoints" / "epoch=0.ckpt")
    assert [row["step"] for row in rows(tmp_path / "b")] == ["2", "3", "5", "5"]
    assert rows(tmp_path / "b")[0] == rows(tmp_path / "a")[1] == of_b[1]


def test_an_evaluation_leaves_generators_and_logs_alone(one_pl: ModuleType, tmp_path: Path) -> None:
    module = fit(one_pl, tmp_path, 1)
    module.validation_step = lambda batch, batch_idx: None
    torch.manual_seed(5)
    trainer = one_pl.Trainer(
        accelerator="cpu",
        callbacks=[PropagationCallback("TP")],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.validate(
        module, DataLoader(range(2)), ckpt_path=tmp_path / "checkpoints" / "epoch=0.ckpt"
    )
    assert torch.initial_seed() == 5


# -- files ---------------------------------------------------------------------------------------


def test_the_trainers_checkpoints_are_on_the_disk_before_their_names(
    pl: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def noted(*args: Any, name: str = name, real: Any = real) -> Any:
            if name == "replace":
                done.append(Path(args[1]).name)
            else:
                done.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, noted)
    fit(pl, tmp_path, 1)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        place = done.index(checkpoint.name)
        assert done[place - 1] == done[place + 1] == "fsync"


def test_a_way_of_ones_own_is_kept(one_pl: ModuleType, tmp_path: Path) -> None:
    class Own(one_pl.plugins.io.TorchCheckpointIO):  # type: ignore[name-defined]
        pass

    own = Own()
    trainer = one_pl.Trainer(
        accelerator="cpu",
        plugins=[own],
        callbacks=[PropagationCallback("TP")],
        max_epochs=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(make_module(one_pl))
    assert trainer.strategy.checkpoint_io is own


class Trap:
    def __reduce__(self) -> Any:
        return os.mkdir, ("sprung",)


def test_what_would_run_code_is_not_loaded(
    one_pl: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "trap": Trap()}, "trap.ckpt")
    with pytest.raises(CheckpointError, match=r"trap\.ckpt .* more than tensors and plain values"):
        fit(one_pl, tmp_path, 1, tmp_path / "trap.ckpt")
    Path("pickled.ckpt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match=r"pickled\.ckpt is not a whole checkpoint"):
        WholeCheckpointIO().load_checkpoint("pickled.ckpt")
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*none\.ckpt"):
        WholeCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")
    assert not Path("sprung").exists()
    # Who says so gets it.
    WholeCheckpointIO().load_checkpoint("trap.ckpt", weights_only=False)
    assert Path("sprung").exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_checkpoint_that_is_cut_off_is_named(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "cut.ckpt"
    WholeCheckpointIO().save_checkpoint({"state_dict": {"a": torch.zeros(1000)}}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt is not a whole checkpoint"):
        WholeCheckpointIO().load_checkpoint(path)


def test_a_write_that_fails_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "last.ckpt"
    plugin = WholeCheckpointIO()
    plugin.save_checkpoint({"step": 1}, path)
    (path.parent / ".last.ckpt.77.tmp").write_bytes(b"what a kill left")

    def full(value: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            plugin.save_checkpoint({"step": 2}, path)
    assert plugin.load_checkpoint(path) == {"step": 1}
    plugin.save_checkpoint({"step": 2}, path)
    assert plugin.load_checkpoint(path) == {"step": 2}
    assert list(path.parent.iterdir()) == [path]


def test_files_elsewhere_are_lightnings_to_write() -> None:
    plugin = WholeCheckpointIO()
    plugin.save_checkpoint({"step": 1}, "memory://folder/a.ckpt")
    assert plugin.load_checkpoint("memory://folder/a.ckpt") == {"step": 1}
    with pytest.raises(TypeError, match="storage_options"):
        plugin.save_checkpoint({}, "memory://folder/a.ckpt", storage_options={})
