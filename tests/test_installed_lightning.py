"""All works where Lightning is installed under one of its two names alone."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from .launching import launch

# As if the other one, and what belongs to it, were not installed.
HIDE = """
import sys

for name in {hidden}:
    sys.modules[name] = None
"""

SCRIPT = """
import importlib, json, pkgutil, sys
from pathlib import Path

import lightning_proppo, proppo_agents, proppo_envs
from lightning_proppo.cli import main
from lightning_proppo.installed_lightning import pl

for package in (lightning_proppo, proppo_agents, proppo_envs):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)

folder = Path(sys.argv[1])
main([
    "fit", "--config", sys.argv[2], f"--trainer.logger.save_dir={folder}", "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false", "--model.particles=8", "--model.steps=2",
    "--model.candidates=1", "--model.dynamics=GPDynamics", "--model.dynamics.steps=2",
])
[checkpoint] = folder.rglob("best.ckpt")
main(["evaluate", "--ckpt", str(checkpoint), "--episodes", "1"])
bases = [c.__module__.partition(".")[0] for c in proppo_agents.PILCO.__mro__]
print(json.dumps({"name": pl.__name__, "bases": bases, "monitor": [
    c.__module__.partition(".")[0] for c in lightning_proppo.VarianceMonitor.__mro__
]}))
"""
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "pilco_cartpole.yaml"
NAMES = {
    "pytorch_lightning": ("lightning",),
    "lightning": ("pytorch_lightning", "lightning_fabric"),
}


@pytest.mark.parametrize("name", NAMES)
def test_one_of_the_two_names_is_enough(name: str, tmp_path: Path) -> None:
    pytest.importorskip(name)
    script = tmp_path / "script.py"
    script.write_text(HIDE.format(hidden=NAMES[name]) + SCRIPT)
    ended = launch(tmp_path, str(script), str(tmp_path / "runs"), str(CONFIG))
    assert ended.status == 0, ended.stdout + ended.stderr
    assert "Trained for 1 epoch" in ended.stdout
    said = ended.stdout.splitlines()[-1]
    called = "pytorch_lightning" if name == "pytorch_lightning" else "lightning.pytorch"
    assert f'"name": "{called}"' in said
    assert said.count(f'"{name}"') >= 2
    assert not any(f'"{other}"' in said for other in NAMES[name])


def test_without_either_it_is_said_what_to_install(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    hidden = ("pytorch_lightning", "lightning")
    script.write_text(HIDE.format(hidden=hidden) + "import lightning_proppo.installed_lightning")
    ended = launch(tmp_path, str(script))
    assert ended.status == 1
    assert "Lightning is not installed; install pytorch-lightning" in ended.stderr


def test_the_command_line_is_of_the_same_package() -> None:
    chosen = importlib.import_module("lightning_proppo.installed_lightning").pl
    cli = importlib.import_module("lightning_proppo.cli.installed")
    assert cli.LightningCLI.__module__ == f"{chosen.__name__}.cli"
