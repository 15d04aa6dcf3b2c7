"""The command ``lightning-proppo``: its subcommands, and what they say when they cannot."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lightning_proppo
from lightning_proppo.cli import CommandError, Evaluation, commands, load_module, main

from ...launching import launch_successfully

# In a file of its own, as a user's would be: it is found by its dotted path.
MODULE = '''
from pathlib import Path

from lightning_proppo.installed_lightning import pl
import torch
from torch import nn
from torch.distributions import Normal
from torch.utils.data import DataLoader


class Agent(pl.LightningModule):
    """Learns the mean of a Gaussian; an episode returns the mean plus the episode's number."""

    def __init__(self, start: float = 1.0, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.mean = nn.Linear(1, 2)
        nn.init.constant_(self.mean.weight, start)
        nn.init.zeros_(self.mean.bias)
        self.learning_rate = learning_rate

    def training_step(self, batch, batch_idx):
        sample = self.manager.sample(Normal(self.mean(torch.ones(16, 1)), 1.0))
        loss = self.manager.loss(sample.square().sum(1))
        self.log("cost", loss.detach())
        return loss

    def train_dataloader(self):
        return DataLoader(range(4))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def on_train_end(self):
        if self.trainer.loggers and not self.trainer.fast_dev_run:
            (Path(self.trainer.log_dir) / "curve.png").write_bytes(b"")

    def on_save_checkpoint(self, checkpoint):
        checkpoint["module_class"] = f"{type(self).__module__}.{type(self).__qualname__}"

    def evaluate_policy(self, episodes, seed):
        print("a library's greeting")
        if self.training:
            raise RuntimeError("not in evaluation mode")
        first = float(self.mean(torch.ones(1, 1)).detach()[0, 0])
        returns = [first + seed + episode for episode in range(episodes)]
        return {"returns": returns, "success": [value > 2 for value in returns]}


class Told(Agent):
    def evaluate_policy(self, episodes, seed, progress):
        for _ in range(episodes):
            progress(1)
        return {"returns": [float("nan")] * episodes, "success": [False] * episodes}


class Telling(Agent):
    def evaluate_policy(self, episodes, seed):
        ends = ["terminated at step 3 of 9"] + [None] * (episodes - 1)
        success = [None, True, False][:episodes]
        return {
            "returns": [94.5] * episodes,
            "success": success if episodes > 1 else [None],
            "costs": [float(i) for i in range(episodes)],
            "early_ends": ends,
            "note": "left out",
        }


class Silent(Agent):
    evaluate_policy = None


class Short(Agent):
    def evaluate_policy(self, episodes, seed):
        return {"returns": [1.0], "success": [True]}


class Wrong(Agent):
    def evaluate_policy(self, episodes, seed):
        return [1.0] * episodes


class Demanding(Agent):
    def __init__(self, something) -> None:
        super().__init__()


class NoModule:
    pass
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with the user's modules in it."""
    (tmp_path / "my_agents.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["lightning-proppo"])
    yield tmp_path
    sys.modules.pop("my_agents", None)


def save(path: Path, module_class: str | None, **hyper_parameters: Any) -> Path:
    """Write a checkpoint as Lightning writes it."""
    checkpoint: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {
            "mean.weight": torch.tensor([[1.5], [2.5]]),
            "mean.bias": torch.zeros(2),
        },
        "hyper_parameters": hyper_parameters,
    }
    if module_class is not None:
        checkpoint["module_class"] = module_class
    torch.save(checkpoint, path)
    return path


def write_config(path: Path, **changes: Any) -> Path:
    config: dict[str, Any] = {
        "seed_everything": 0,
        "model": {"class_path": "my_agents.Agent", "init_args": {"start": 3.0}},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "callbacks": [
                {
                    "class_path": "lightning_proppo.PropagationCallback",
                    "init_args": {"propagator": "TP"},
                }
            ],
            "logger": {
                "class_path": "TensorBoardLogger",
                "init_args": {"save_dir": "runs", "name": "toy"},
            },
        },
    }
    for key, value in changes.items():
        config["trainer"][key] = value
    path.write_text(yaml.safe_dump(config))
    return path


# evaluate


def test_json_is_exactly_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(folder / "a.ckpt", "my_agents.Agent")
    assert main(["evaluate", "--ckpt", str(path), "--episodes", "3", "--seed", "0", "--json"]) == 0
    told = capsys.readouterr()
    assert told.out == '{"returns": [1.5, 2.5, 3.5], "success": [false, true, true]}\n'
    assert "a library's greeting" in told.err


def test_the_seed_is_handed_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(folder / "a.ckpt", "my_agents.Agent")
    assert main(["evaluate", "--ckpt", str(path), "--episodes", "1", "--seed", "7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["returns"] == [8.5]


def test_ten_episodes_unless_told_otherwise(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(folder / "a.ckpt", "my_agents.Agent")
    assert main(["evaluate", "--ckpt", str(path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["returns"]) == 10


def test_without_json_there_is_a_table_with_a_summary(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(folder / "a.ckpt", "my_agents.Agent")
    assert main(["evaluate", "--ckpt", str(path), "--episodes", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["episode", "return", "success"],
        ["1", "1.5", "no"],
        ["2", "2.5", "yes"],
        ["3", "3.5", "yes"],
    ]
    assert lines[-2].split()[:4] == ["return", "2.5", "(mean),", "1"]
    assert lines[-1].split() == ["success", "2", "of", "3", "(67%)"]


def test_a_module_that_asks_is_told_of_progress_and_nan_becomes_null(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(folder / "a.ckpt", "my_agents.Told")
    assert main(["evaluate", "--ckpt", str(path), "--episodes", "2", "--json"]) == 0
    assert capsys.readouterr().out == '{"returns": [null, null], "success": [false, false]}\n'


def test_costs_and_early_ends_are_named_and_what_is_not_reported_is_not_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(folder / "a.ckpt", "my_agents.Telling")
    assert main(["evaluate", "--ckpt", str(path), "--episodes", "3"]) == 0
    assert capsys.readouterr().out == (
        "episode      return        cost  success  early end\n"
        "      1        94.5           0  -        terminated at step 3 of 9\n"
        "      2        94.5           1  yes\n"
        "      3        94.5           2  no\n"
        "\n"
        "return   94.5 (mean), 0 (standard deviation)\n"
        "cost     1 (mean), 1 (standard deviation)\n"
        "success  1 of 2 (50%); 1 not reported\n"
    )
    assert main(["evaluate", "--ckpt", str(path), "--episodes", "1"]) == 0
    assert capsys.readouterr().out.endswith("success  not reported\n")
    assert main(["evaluate", "--ckpt", str(path), "--episodes", "2", "--json"]) == 0
    assert capsys.readouterr().out == (
        '{"returns": [94.5, 94.5], "success": [null, true], "costs": [0.0, 1.0], '
        '"early_ends": ["terminated at step 3 of 9", null]}\n'
    )


def test_hyper_parameters_reach_the_module(folder: Path) -> None:
    sys.path.append(str(folder))
    module = load_module(save(folder / "a.ckpt", "my_agents.Agent", learning_rate=0.25))
    assert module.learning_rate == 0.25
    assert not module.training


def test_one_episode_has_no_standard_deviation() -> None:
    assert "nan (standard deviation)" in Evaluation([1.0], [True]).as_text()


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-run",)


def test_a_checkpoint_runs_no_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "x": Dangerous()}, folder / "bad.ckpt")
    assert main(["evaluate", "--ckpt", "bad.ckpt"]) == 2
    assert "could run code" in capsys.readouterr().err
    assert not (folder / "was-run").exists()


@pytest.mark.parametrize(
    ("module_class", "expected"),
    [
        (None, "no key 'module_class'. Let the module's on_save_checkpoint put its class there"),
        ("my_agents.Absent", "cannot be imported"),
        ("no_such_package.Agent", "cannot be imported"),
        ("my_agents.<locals>.Agent", "cannot be imported"),
        ("my_agents.NoModule", "not a LightningModule"),
        ("my_agents", "not a LightningModule"),
        ("my_agents.Silent", "Silent cannot be evaluated: it has no method evaluate_policy"),
        ("my_agents.Short", "gave 1 returns"),
        ("my_agents.Wrong", "must return a dict"),
        ("my_agents.Demanding", "cannot be rebuilt"),
    ],
)
def test_a_module_that_cannot_be_evaluated_is_told_in_one_line(
    module_class: str | None, expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(folder / "a.ckpt", module_class)
    assert main(["evaluate", "--ckpt", str(path), "--episodes", "2"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("lightning-proppo evaluate: error: ")
    assert expected in told.err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("absent.ckpt", "does not exist"),
        (".", "is a folder"),
        ("my_agents.py", "not a checkpoint"),
        ("empty.ckpt", "not a checkpoint"),
        ("tensor.ckpt", "no state_dict"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_told_in_one_line(
    name: str, expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.ckpt").touch()
    torch.save(torch.ones(2), folder / "tensor.ckpt")
    assert main(["evaluate", "--ckpt", name]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert expected in told.err


@pytest.mark.parametrize(
    "arguments",
    [[], ["--ckpt", "a", "--episodes", "0"], ["--ckpt", "a", "--seed", "x"], ["--cktp", "a"]],
)
def test_wrong_options_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().err


def test_the_help_mentions_evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert "evaluate" in told
    assert "fit" in told


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-proppo {lightning_proppo.__version__}\n"


# fit


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (None, "Give a configuration, fit --config FILE, or a class, --model CLASS."),
        (("max_epochs", "max_epoch"), "Did you mean 'trainer.max_epochs'?"),
        (("trainer", "trainr"), "Did you mean 'trainer'?"),
    ],
)
def test_fit_says_what_is_missing_or_misspelt_in_a_configuration(
    wrong: tuple[str, str] | None, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit"]
    if wrong is not None:
        path = write_config(folder / "a.yaml")
        path.write_text(path.read_text().replace(*wrong))
        arguments += ["--config", str(path)]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith(told)


def test_fit_learns_says_where_things_are_and_evaluate_takes_its_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(write_config(folder / "a.yaml"))]) == 0
    told = capsys.readouterr().out
    run = folder / "runs" / "toy" / "version_0"
    rows = dict(line.strip().split("  ", 1) for line in told.splitlines() if line.startswith("  "))
    rows = {label: text.strip() for label, text in rows.items()}
    assert (folder / rows["log directory"]).resolve() == run
    assert rows["to look at it"].endswith(f"tensorboard --logdir {rows['log directory']}")
    assert (folder / rows["last checkpoint"]).is_file()
    assert (folder / rows["plot"]).resolve() == run / "curve.png"
    assert (run / "config.yaml").is_file()
    assert f"evaluate --ckpt {rows['last checkpoint']}" in rows["to evaluate"]

    arguments = ["--ckpt", rows["last checkpoint"], "--episodes", "1", "--json"]
    assert main(["evaluate", *arguments]) == 0
    [learned] = json.loads(capsys.readouterr().out)["returns"]
    # It starts at 3, and the cost is least at 0.
    assert abs(learned) < 1.0


def test_a_module_that_does_not_name_itself_is_found_by_what_the_command_noted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (folder / "my_agents.py").read_text()
    (folder / "my_agents.py").write_text(source.replace("on_save_checkpoint", "unused"))
    write_config(folder / "a.yaml")
    assert main(["fit", "--config", "a.yaml"]) == 0
    [path] = folder.rglob("*.ckpt")
    assert "module_class" not in torch.load(path, weights_only=True)
    capsys.readouterr()
    assert main(["evaluate", "--ckpt", str(path), "--episodes", "1", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"returns", "success"}


def test_the_best_checkpoint_is_told_with_its_score(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = {
        "class_path": "ModelCheckpoint",
        "init_args": {"monitor": "cost", "save_last": True, "dirpath": "kept"},
    }
    propagation = {"class_path": "lightning_proppo.PropagationCallback"}
    write_config(folder / "a.yaml", callbacks=[propagation, checkpoint])
    assert main(["fit", "--config", "a.yaml"]) == 0
    told = capsys.readouterr().out
    assert "best checkpoint" in told
    assert "(cost = " in told
    assert f"last checkpoint  kept{os.sep}last.ckpt" in told


def test_a_run_that_leaves_nothing_says_so_and_can_be_repeated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(folder / "a.yaml", logger=False, enable_checkpointing=False)
    for _ in range(2):
        assert main(["fit", "--config", "a.yaml"]) == 0
        told = capsys.readouterr().out
        assert "none was saved" in told
        assert "log directory" not in told
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == {"a.yaml", "my_agents.py"}


REFUSED = """
class Refused(Agent):
    def __init__(self, hook: str = "setup") -> None:
        super().__init__()
        setattr(self, hook, self.refuse)

    def refuse(self, *args, **options):
        raise ValueError("refused")
"""


@pytest.mark.parametrize("logger", ["TensorBoardLogger", "CSVLogger"])
@pytest.mark.parametrize(
    "hook", ["setup", "configure_optimizers", "on_fit_start", "train_dataloader", "training_step"]
)
def test_a_run_that_is_refused_before_it_begins_leaves_no_folder(
    hook: str, logger: str, folder: Path
) -> None:
    (folder / "my_agents.py").write_text(MODULE + REFUSED)
    options = {"class_path": logger, "init_args": {"save_dir": "runs", "name": "toy"}}
    config = str(write_config(folder / "a.yaml", logger=options))
    assert main(["fit", "--config", config]) == 0
    before = sorted(folder.rglob("*"))
    arguments = ["--model", "my_agents.Refused", "--model.hook", hook]
    with pytest.raises(ValueError, match="refused"):
        main(["fit", "--config", config, *arguments])
    # What a run leaves that has begun may be of use, and so may the files of an earlier one.
    began = hook == "training_step"
    assert (folder / "runs" / "toy" / "version_1").exists() is began
    if not began:
        assert sorted(folder.rglob("*")) == before
    with pytest.raises((RuntimeError, ValueError), match=r"NOT exist|refused"):
        main(["fit", "--config", config, *arguments, "--trainer.logger.version=0"])
    assert (folder / "runs" / "toy" / "version_0" / "curve.png").exists()


def test_plots_of_an_earlier_run_are_not_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = folder / "runs" / "toy" / "version_0" / "old.png"
    old.parent.mkdir(parents=True)
    old.touch()
    os.utime(old, (0, 0))
    config = write_config(folder / "a.yaml")
    assert main(["fit", "--config", str(config), "--trainer.logger.version", "0"]) == 0
    told = capsys.readouterr().out
    assert "curve.png" in told
    assert "old.png" not in told


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--trainer.callbacks.propagator", "TQ"], "TQ"),
        (["--trainer.max_epocs", "1"], "max_epocs"),
        (["--model.learnin_rate", "1"], "learnin_rate"),
        (["--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_misspelt_options_are_refused(
    arguments: list[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(folder / "a.yaml")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "a.yaml", *arguments])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("place", ["trainer", "model", "callback", "top"])
def test_an_unknown_key_in_the_file_is_refused(
    place: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(write_config(folder / "a.yaml").read_text())
    places = {
        "trainer": config["trainer"],
        "model": config["model"]["init_args"],
        "callback": config["trainer"]["callbacks"][0]["init_args"],
        "top": config,
    }
    places[place]["unheard_of"] = 1
    (folder / "a.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "a.yaml"])
    assert stopped.value.code == 2
    assert "unheard_of" in capsys.readouterr().err


# what other packages bring

received: list[list[str]] = []


def greet(args: Sequence[str]) -> int | None:
    """Greet whoever is named.

    Not in the summary.
    """
    received.append(list(args))
    if args == ["nobody"]:
        raise CommandError("there is nobody to greet.")
    return 3 if args == ["three"] else None


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that bring a subcommand, one that cannot be imported, and one of a taken name."""
    points = [
        EntryPoint("greet", f"{__name__}:greet", commands.GROUP),
        EntryPoint("broken", "no_such_package.command:main", commands.GROUP),
        EntryPoint("evaluate", "no_such_package.command:main", commands.GROUP),
    ]
    monkeypatch.setattr(
        commands.importlib.metadata,
        "entry_points",
        lambda group: [point for point in points if point.group == group],
    )
    received.clear()


@pytest.mark.usefixtures("brought")
def test_a_subcommand_is_given_what_follows_its_name() -> None:
    assert main(["greet", "--name", "x"]) == 0
    assert main(["greet", "three"]) == 3
    assert received == [["--name", "x"], ["three"]]


@pytest.mark.usefixtures("brought")
def test_its_error_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["greet", "nobody"]) == 2
    told = capsys.readouterr()
    assert told.err == "lightning-proppo greet: error: there is nobody to greet.\n"
    assert told.out == ""


@pytest.mark.usefixtures("brought")
def test_the_help_lists_subcommands_and_says_which_cannot_be_imported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert re.search(r"^  greet +Greet whoever is named\.$", told, flags=re.MULTILINE)
    assert re.search(r"^  broken +no_such_package.command:main cannot be imported", told, re.M)
    assert re.search(r"^  evaluate +Play real episodes", told, flags=re.MULTILINE)


@pytest.mark.usefixtures("brought")
def test_one_that_cannot_be_imported_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["broken"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("lightning-proppo broken: error: no_such_package.command:main cannot")
    assert told.count("\n") == 1


@pytest.mark.usefixtures("brought")
def test_a_name_that_is_taken_stays_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--ckpt", "absent.ckpt"]) == 2
    assert "the checkpoint absent.ckpt does not exist" in capsys.readouterr().err


@pytest.mark.usefixtures("brought")
@pytest.mark.parametrize(
    ("given", "meant"), [("gret", "greet"), ("evalute", "evaluate"), ("fti", "fit")]
)
def test_a_near_miss_is_told_what_was_meant(
    given: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([given, "--name", "x"]) == 2
    told = capsys.readouterr().err
    assert f"no subcommand {given!r}" in told
    assert "fit, validate, test, predict, resume, evaluate, greet, broken" in told
    assert told.rstrip().endswith(f"Did you mean {meant!r}?")
    assert received == []


# as a process


def test_it_runs_as_a_module_of_python(folder: Path) -> None:
    save(folder / "a.ckpt", "my_agents.Agent")
    command = ["-m", "lightning_proppo", "evaluate", "--ckpt", "a.ckpt", "--json"]
    told = launch_successfully(folder, *command, "--episodes", "1")
    assert told == '{"returns": [1.5], "success": [false]}\n'
