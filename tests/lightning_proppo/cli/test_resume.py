"""``resume``: goes on with a run in its folder, or says why it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_proppo.cli import CommandError, main
from lightning_proppo.cli.resume import fit_arguments, last_checkpoint
from lightning_proppo.installed_lightning import pl

CALLBACK = {"class_path": "lightning_proppo.PropagationCallback"}
TENSORBOARD = f"{pl.__name__}.loggers.TensorBoardLogger"
CSV = f"{pl.__name__}.loggers.CSVLogger"


def logger(kind: str = CSV, **init: Any) -> dict[str, Any]:
    return {"class_path": kind, "init_args": {"save_dir": "runs", "name": "toy"} | init}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(epochs: int = 1, **changes: Any) -> None:
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "proppo_agents.ChaoticRNNModule",
            "init_args": {"particles": 10, "horizon": 5, "steps": 4},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": epochs,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "callbacks": [CALLBACK],
            "logger": logger(),
        }
        | changes,
    }
    Path("a.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "a.yaml"]) == 0


def beta(run: Path) -> Any:
    last = last_checkpoint(run)
    assert last is not None
    return torch.load(last, weights_only=True)["state_dict"]["beta"]


def test_a_run_goes_on_in_its_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(2)
    begin(1)
    begin(1)
    runs = [Path("runs", "toy", f"version_{number}") for number in range(3)]
    assert main(["resume", str(runs[1]), "--trainer.max_epochs=2"]) == 0
    assert "runs/toy/version_1/checkpoints/epoch=0-step=4.ckpt" in capsys.readouterr().err
    # From elsewhere, and after it has been moved.
    moved = folder / "moved"
    shutil.move(runs[2], moved)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert main(["resume", "../moved", "--trainer.max_epochs", "2"]) == 0
    assert not list((folder / "elsewhere").iterdir())
    monkeypatch.chdir(folder)
    log = (runs[0] / "metrics.csv").read_text()
    for run in (runs[1], moved):
        assert torch.equal(beta(run), beta(runs[0]))
        assert (run / "metrics.csv").read_text() == log
        # The configuration is still the one that it began with.
        assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"] == 1
    assert sorted(path.name for path in Path("runs", "toy").iterdir()) == ["version_0", "version_1"]


def test_options_are_changed_as_for_fit() -> None:
    begin()
    run = Path("runs", "toy", "version_0")
    changed = ["--trainer.max_epochs=2", "--model.particles=20"]
    assert main(["resume", str(run), *changed]) == 0
    last = last_checkpoint(run)
    assert last is not None
    assert torch.load(last, weights_only=True)["hyper_parameters"]["particles"] == 20


@pytest.mark.parametrize(
    "loggers",
    [
        None,
        True,
        logger(TENSORBOARD, version="mine"),
        logger(TENSORBOARD, version=3),
        logger(CSV, name="", version=""),
        [logger(TENSORBOARD), logger(CSV)],
    ],
    ids=["none", "true", "named", "numbered", "plain", "two"],
)
def test_every_logger_leads_back_to_the_folder(loggers: Any) -> None:
    begin(logger=loggers, default_root_dir="runs")
    [config] = Path("runs").rglob("config.yaml")
    before = {path for path in Path("runs").rglob("*") if path.is_dir()}
    assert main(["resume", str(config.parent), "--trainer.max_epochs=2"]) == 0
    assert {path for path in Path("runs").rglob("*") if path.is_dir()} == before
    assert len(list(config.parent.rglob("*.ckpt"))) == 2


def test_without_a_checkpoint_it_begins_anew(capsys: pytest.CaptureFixture[str]) -> None:
    begin()
    run = Path("runs", "toy", "version_0")
    expected = beta(run)
    shutil.rmtree(run / "checkpoints")
    assert main(["resume", str(run)]) == 0
    assert "has no checkpoint yet and begins anew" in capsys.readouterr().err
    assert torch.equal(beta(run), expected)


def test_the_farthest_checkpoint_is_taken_and_a_damaged_one_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert last_checkpoint(folder) is None
    for name, step in (("b", 7), ("a", 9), ("weights-alone", 11)):
        content: dict[str, Any] = {"global_step": step, "optimizer_states": []}
        if step == 11:
            del content["optimizer_states"]
        torch.save(content, folder / f"{name}.ckpt")
    assert last_checkpoint(folder) == folder / "a.ckpt"
    assert capsys.readouterr().err == ""
    (folder / "a.ckpt").write_bytes((folder / "a.ckpt").read_bytes()[:100])
    assert last_checkpoint(folder) == folder / "b.ckpt"
    assert f"{folder}/a.ckpt is left out" in capsys.readouterr().err


def test_a_checkpoint_that_is_given_is_taken(folder: Path) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"logger": False}}))
    torch.save({"global_step": 1, "optimizer_states": []}, folder / "a.ckpt")
    arguments = fit_arguments([str(folder), "--ckpt_path", "other.ckpt", "--model.x=1"])
    assert arguments[:2] == ["fit", "--config"]
    assert yaml.safe_load(arguments[2])["trainer"]["logger"] is False
    assert arguments[3:] == ["--ckpt_path", "other.ckpt", "--model.x=1"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "is not the folder of a run: it has no config.yaml"),
        ("a: [", "config.yaml cannot be read"),
        ("a", "config.yaml does not hold a configuration"),
        ("trainer: a", "config.yaml does not hold a configuration"),
    ],
)
def test_what_is_no_run_is_told_in_one_line(
    content: str | None, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (folder / "config.yaml").write_text(content)
    with pytest.raises(CommandError, match=told):
        fit_arguments([str(folder)])
    assert main(["resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lightning-proppo resume: error: ")
    assert error.count("\n") == 1


def test_it_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Go on with a run that was broken off" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["resume"])
    assert stopped.value.code == 2
