"""The benchmark's rows: one configuration each, alike but for what they compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_proppo.cli import main
from lightning_proppo.propagators import estimator_names

ROOT = Path(__file__).resolve().parents[2]
ROWS = sorted((ROOT / "configs" / "benchmark").glob("*.yaml"))
TASKS = ["balance", "swing_up", "swing_up_long", "swing_up_noise16"]
# What a task may change of the others' settings.
OWN = {
    "swing_up": {},
    "swing_up_long": {"environment_options": {"max_episode_steps": 50}},
    "swing_up_noise16": {
        "environment_options": {"observation_noise_std": "pipps", "noise_multiplier": 16}
    },
    "balance": {"environment": "proppo_envs:CartPoleBalance-v0"},
}


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def test_there_is_one_for_each_estimator() -> None:
    for task in ("swing_up", "balance"):
        names = {path.stem.removeprefix(f"{task}_").upper() for path in ROWS}
        assert {"RP", "LR", "TP", "BIW", "GR", "GS"} <= names


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_rows_differ_by_task_and_estimator_alone(path: Path) -> None:
    task, _, name = path.stem.rpartition("_")
    assert task in TASKS
    found, reference = load(path), load(ROOT / "configs" / "pilco_cartpole.yaml")
    estimator = found["trainer"]["callbacks"][-1]["init_args"]
    assert estimator == {"propagator": name.upper()}
    assert name.upper() in estimator_names()
    expected = {**reference["model"]["init_args"], **OWN[task]}
    assert found["model"]["init_args"] == expected
    for settings in (found["trainer"], reference["trainer"]):
        for key in ("callbacks", "logger", "max_epochs"):
            settings.pop(key)
    assert found["trainer"] == reference["trainer"]


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_the_command_takes_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(path), "--model.particles=8", "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["particles"] == 8
