"""The plugin appears where its users look, and nowhere else."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import yaml

from lightning_proppo.cli import main
from lightning_proppo.installed_lightning import pl

from .launching import launch_successfully

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "pilco_cartpole.yaml"
# A user's own command line, which imports nothing of this plugin.
OWN_COMMAND = f"""
import {pl.__name__} as pl
import torch
from {pl.__name__}.cli import LightningCLI
from torch.distributions import Normal


class Walker(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.drift = torch.nn.Linear(2, 2)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(40, 2), batch_size=10)

    def training_step(self, x, batch_idx):
        for _ in range(2):
            x = self.manager.sample(Normal(self.drift(x), 0.1))
        return self.manager.loss(x.square().sum(1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


cli = LightningCLI(Walker)
print("seen", sorted(cli.trainer.callback_metrics))
"""


def test_gymnasium_finds_an_environment_by_itself(tmp_path: Path) -> None:
    made = "gymnasium.make('proppo_envs:CartPoleSwingUp-v0')"
    code = f"import gymnasium; print({made}.reset(seed=0)[0].shape)"
    found = launch_successfully(tmp_path, "-c", code)
    assert found.strip() == "(4,)"


@pytest.mark.slow
def test_plain_lightning_cli_finds_the_callbacks_by_name(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_COMMAND)
    found = launch_successfully(
        tmp_path,
        "own.py",
        "fit",
        "--trainer.callbacks+=lightning_proppo.PropagationCallback",
        "--trainer.callbacks.propagator=TP",
        "--trainer.callbacks+=lightning_proppo.VarianceMonitor",
        "--trainer.callbacks.every_n_steps=2",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
    )
    assert "propagation/lr_weight" in found


def test_nothing_is_injected_into_trainers_that_did_not_ask() -> None:
    groups = {
        point.group
        for each in importlib.metadata.distributions(name="lightning-proppo")
        for point in each.entry_points
    }
    assert groups == {"console_scripts", "lightning_proppo.commands"}


def test_a_printed_configuration_documents_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(CONFIG), "--print_config=comments"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    # Comments aside it is the configuration.
    assert yaml.safe_load(printed)["model"]["init_args"]["particles"] == 200
    installed = importlib.metadata.version("jsonargparse").split(".")
    if tuple(map(int, installed[:2])) < (4, 53):
        pytest.skip("jsonargparse 4.49 has no comments on the options of classes")
    told = [line.strip() for line in printed.splitlines()]
    assert "# Learns to act from few episodes, as PILCO does, with Monte Carlo gradients" in told
    # What an option means stands above it.
    for name in ("particles", "patience", "width", "propagator", "every_n_trials"):
        above = [told[i - 1] for i in range(len(told)) if told[i].startswith(f"{name}:")]
        assert above, name
        assert all(line.startswith("# ") for line in above), name
