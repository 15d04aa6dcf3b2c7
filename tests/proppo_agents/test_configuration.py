"""The agent's parts on the command line and in configurations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_proppo.cli import load_module, main
from proppo_agents import PILCO, EnsembleDynamics, MLPPolicy, SaturatingCost
from proppo_agents.costs import Cost
from proppo_agents.parts import make_part

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "pilco_cartpole.yaml")
SMALL = ["--model.particles=4", "--model.steps=1", "--model.candidates=1", "--trainer.max_epochs=1"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", CONFIG, *arguments, "--print_config"])
    assert ended.value.code == 0
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    return found


def test_the_printed_configuration_tells_all_parts(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(
        capsys,
        "--model.dynamics=SparseGPDynamics",
        "--model.dynamics.inducing=33",
        "--model.policy=proppo_agents.MLPPolicy",
        "--model.policy.hidden=[8]",
        "--model.initial=InitialState",
    )
    assert found["dynamics"] == {
        "class_path": "proppo_agents.SparseGPDynamics",
        "init_args": {"inducing": 33, "steps": 200, "learning_rate": 0.02},
    }
    assert found["policy"]["init_args"] == {"hidden": [8], "activation": "tanh", "squash": "tanh"}
    assert found["initial"]["init_args"]["prior_weight"] == 1.0
    assert found["cost"]["init_args"]["width"] == [0.7, float("inf"), 0.5, float("inf")]


@pytest.mark.parametrize("width", ["[0.7,.inf,0.5,.inf]", "[0.7,inf,0.5,inf]", "inf", ".inf"])
def test_an_infinite_width_can_be_given_on_the_command_line(
    capsys: pytest.CaptureFixture[str], width: str
) -> None:
    cost = ("--model.cost=SaturatingCost", "--model.cost.target=[0,0,0,0]")
    found = printed(capsys, *cost, f"--model.cost.width={width}")["cost"]
    # As a file with what was printed would have it.
    made = make_part("cost", found, Cost)
    assert isinstance(made, SaturatingCost)
    assert made.width == (math.inf if "[" not in width else (0.7, math.inf, 0.5, math.inf))


def test_parts_of_a_file_are_trained_and_come_back(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {
        "dynamics": {
            "class_path": "proppo_agents.EnsembleDynamics",
            "init_args": {"members": 2, "hidden": [4], "steps": 2},
        },
        "policy": {"class_path": "proppo_agents.MLPPolicy", "init_args": {"hidden": [5]}},
        "cost": {
            "class_path": "proppo_agents.SaturatingCost",
            "init_args": {"target": [0, 0, 0, 0], "width": [0.5, float("inf"), 0.5, 9.0]},
        },
    }
    (folder / "parts.yaml").write_text(yaml.safe_dump({"model": {"init_args": parts}}))
    assert main(["fit", "--config", CONFIG, "--config", "parts.yaml", *SMALL, *QUIET]) == 0
    said = capsys.readouterr().out
    [path] = folder.rglob("best.ckpt")
    assert f"evaluate --ckpt {path.relative_to(folder)}\n" in said
    module = load_module(path)
    assert isinstance(module, PILCO)
    assert isinstance(module.dynamics, EnsembleDynamics)
    assert module.dynamics.members == 2
    assert module.dynamics.fitted
    assert isinstance(module.policy, MLPPolicy)
    assert isinstance(module.cost, SaturatingCost)
    assert module.cost.width == (0.5, float("inf"), 0.5, 9.0)
    assert "Namespace" not in str(torch.load(path, weights_only=True)["hyper_parameters"])
    assert main(["evaluate", "--ckpt", str(path), "--episodes", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["returns", "success", "costs", "early_ends"]
    assert [len(values) for values in found.values()] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("argument", "suggestion"),
    [
        ("--model.dynamics=EnsembelDynamics", "Did you mean 'EnsembleDynamics'?"),
        ("--model.policy=proppo_agents.MLPolicy", "Did you mean 'MLPPolicy'?"),
        ("--model.partcles=3", "Did you mean 'particles'?"),
        ("--trainer.max_epocs=3", "Did you mean '--trainer.max_epochs'?"),
        ("--model.dynamics={class_path: GPDynamics, init_args: {stesp: 3}}", "'steps'?"),
    ],
)
def test_misspelt_names_are_refused_with_a_suggestion(
    argument: str, suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", CONFIG, argument])
    assert ended.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(suggestion)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("name", "wrong", "suggestion"),
    [
        ("init_args", "init_arg", "Did you mean 'init_args'?"),
        ("init_args", "options", "Options of a class stand under init_args; got 'options'."),
        ("class_path", "clas_path", "Did you mean 'class_path'?"),
    ],
)
def test_a_misspelt_key_of_a_part_is_refused_with_a_suggestion(
    number: int,
    name: str,
    wrong: str,
    suggestion: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The model's, the cost's, a callback's and the logger's.
    parts = Path(CONFIG).read_text().split(f"{name}:")
    number += number > 2 and name == "class_path"  # PredictionFigure is given no options
    before, after = (f"{name}:".join(half) for half in (parts[:number], parts[number:]))
    (folder / "a.yaml").write_text(f"{before}{wrong}:{after}")
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "a.yaml"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(suggestion)
