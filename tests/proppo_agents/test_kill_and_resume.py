"""A training that is killed and goes on ends as one that was left alone, to the bit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

from lightning_proppo import PropagationCallback, VarianceMonitor
from lightning_proppo.cli import main
from lightning_proppo.cli.resume import last_checkpoint
from lightning_proppo.installed_lightning import pl
from proppo_agents import PILCO, ChaoticRNNModule, EnsembleDynamics, GPDynamics, RBFPolicy
from proppo_agents.experience.episodes import Episode, collect_episode
from proppo_agents.experience.files import EpisodeFolder, digest_of, read_episodes
from proppo_agents.experience.resuming import LeftOver
from proppo_agents.experience.trials import Trial

from ..launching import launch_successfully

SCRIPT = Path(__file__).parent / "training_to_kill.py"
# What Lightning counts otherwise, and paths, names of copies and the order of batches are left out.
COMPARED = (
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "episodes",
    "trials",
    "progress",
    "proppo_noise",
)


def same(first: Any, second: Any) -> bool:
    """Whether nested values are equal to the bit; NaN equals NaN."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and (
            first.numpy().tobytes() == second.numpy().tobytes() and first.shape == second.shape
        )
    return bool(first == second) or (first != first and second != second)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def compare(folder: Path, whole: Path) -> None:
    """Fail unless two runs' ends, episodes and logs are the same."""
    found, expected = load(folder / "end.pt"), load(whole / "end.pt")
    assert [name for name in COMPARED if not same(found.get(name), expected.get(name))] == []
    monitor = "VarianceMonitor"
    assert same(found["callbacks"].get(monitor), expected["callbacks"].get(monitor))
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    if (whole / "episodes").exists():
        assert [each.path.name for each in read_episodes(folder / "episodes")] == [
            each.path.name for each in read_episodes(whole / "episodes")
        ]


@pytest.mark.slow
def test_a_training_outlives_kills_at_all_moments(tmp_path: Path) -> None:
    launch_successfully(tmp_path, str(SCRIPT), str(tmp_path), "0", "6")
    died = json.loads((tmp_path / "kills.json").read_text())
    assert all(died[phase] >= 6 for phase in ("collect", "fit", "optimize", "write"))
    chains = sorted(tmp_path.glob("chain-*"))
    assert chains
    assert died["end"] == len(chains)
    for chain in chains:
        compare(chain, tmp_path / "whole")
        # What was acted and written is not acted again: two random episodes, three policies.
        acted = (chain / "acted").read_text().split()
        assert len(acted) == len(set(acted)) == 5
        assert not list(chain.rglob("*.ckpt.*.tmp"))


# -- without kills -------------------------------------------------------------------------------


def agent(**changes: Any) -> PILCO:
    given = {
        "particles": 8,
        "steps": 3,
        "candidates": 2,
        "dynamics": GPDynamics(steps=3),
        "policy": RBFPolicy(basis_functions=5),
    }
    return PILCO(**(given | changes))


def fit(
    module: pl.LightningModule,
    folder: Path,
    epochs: int,
    callbacks: tuple[pl.Callback, ...] = (),
    checkpoint: Path | None = None,
    estimator: str = "TP",
) -> pl.Trainer:
    """Train as a new process would; all checkpoints are kept."""
    pl.seed_everything(3, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        log_every_n_steps=1,
        logger=pl.loggers.CSVLogger(folder, name="", version=""),
        callbacks=[
            PropagationCallback(estimator),
            *callbacks,
            pl.callbacks.ModelCheckpoint(every_n_train_steps=1, save_top_k=-1),
            pl.callbacks.ModelCheckpoint(
                filename="end-of-{epoch}", save_top_k=-1, every_n_epochs=1
            ),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / "end.pt")
    return trainer


def broken_off(whole: Path, folder: Path, name: str) -> Path:
    """Leave in a folder what a run has there when it is killed right after a checkpoint."""
    checkpoint = Path(folder / "checkpoints" / name)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes((whole / "checkpoints" / name).read_bytes())
    for copy in whole.glob(".metrics-*.csv"):
        (folder / copy.name).write_bytes(copy.read_bytes())
    known = load(checkpoint).get("episodes", [])
    for each in (read_episodes(whole / "episodes") if known else [])[: len(known)]:
        EpisodeFolder(folder / "episodes").add(each.episode, each.about)
    return checkpoint


@pytest.mark.parametrize(
    "changes",
    [{}, {"dynamics": EnsembleDynamics(members=2, hidden=[8], steps=3)}],
    ids=["gp", "ensemble"],
)
def test_it_can_go_on_from_every_checkpoint(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = tmp_path / "whole"
    fit(agent(**changes), whole, 2)
    # Amid an epoch; after its last step; at its end; and so for the last epoch.
    for name in (
        "epoch=0-step=2.ckpt",
        "epoch=0-step=3.ckpt",
        "end-of-epoch=0.ckpt",
        "epoch=1-step=6.ckpt",
        "end-of-epoch=1.ckpt",
    ):
        folder = tmp_path / name
        checkpoint = broken_off(whole, folder, name)
        fit(agent(**changes), folder, 2, checkpoint=checkpoint)
        compare(folder, whole)


def test_a_run_that_came_to_its_end_has_no_further_episode(tmp_path: Path) -> None:
    trained = agent()
    fit(trained, tmp_path, 1)
    for checkpoint in (tmp_path / "end.pt", tmp_path / "checkpoints" / "end-of-epoch=0.ckpt"):
        again = agent()
        fit(again, tmp_path, 1, checkpoint=checkpoint)
        assert again.trials == trained.trials
        assert len(read_episodes(tmp_path / "episodes")) == 2


def test_more_epochs_take_the_final_policys_episode(tmp_path: Path) -> None:
    fit(agent(), tmp_path / "whole", 3)
    fit(agent(), tmp_path / "longer", 2)
    last = tmp_path / "longer" / "checkpoints" / "end-of-epoch=1.ckpt"
    fit(agent(), tmp_path / "longer", 3, checkpoint=last)
    compare(tmp_path / "longer", tmp_path / "whole")


class Failing(pl.Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            pl_module.refit = lambda: 1 / 0


def test_a_checkpoint_of_an_exception_doubles_no_episode(tmp_path: Path) -> None:
    fit(agent(), tmp_path / "whole", 2)
    folder = tmp_path / "failed"
    with pytest.raises(ZeroDivisionError):
        fit(
            agent(), folder, 2, (Failing(), pl.callbacks.OnExceptionCheckpoint(folder, "exception"))
        )
    # The second epoch's has been acted; the checkpoint is of before.
    assert len(read_episodes(folder / "episodes")) == 2
    assert len(load(folder / "exception.ckpt")["episodes"]) == 1
    resumed = agent()
    fit(resumed, folder, 2, checkpoint=folder / "exception.ckpt")
    assert len(resumed.episodes) == len(read_episodes(folder / "episodes")) == 3
    # Lightning gives an epoch that it begins again fewer steps, so the last episode is another.
    found, expected = load(folder / "end.pt"), load(tmp_path / "whole" / "end.pt")
    assert same(found["episodes"][:2], expected["episodes"][:2])
    assert same(found["trials"][:2], expected["trials"][:2])


def test_without_a_checkpoint_it_begins_anew_with_the_episodes_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PILCO, "refit", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(agent(random_episodes=2), tmp_path, 1)
    first = [digest_of(each.episode) for each in read_episodes(tmp_path / "episodes")]
    assert len(first) == 2
    acted = []

    def act(env: Any, policy: Any, seed: int, **options: Any) -> Episode:
        acted.append(policy is not None)
        return collect_episode(env, policy, seed, **options)

    monkeypatch.setattr("proppo_agents.experience.keeping.collect_episode", act)
    module = agent(random_episodes=2)
    fit(module, tmp_path, 1)
    assert acted == [True]
    assert [digest_of(each) for each in module.episodes][:2] == first
    fit(agent(random_episodes=2), tmp_path / "whole", 1)
    compare(tmp_path, tmp_path / "whole")


def test_episodes_of_data_in_the_runs_own_folder_are_taken_once(tmp_path: Path) -> None:
    fit(agent(), tmp_path, 1)
    data = str(tmp_path / "episodes")
    whole = agent(data=data)
    fit(whole, tmp_path, 2)
    resumed = agent(data=data)
    last = tmp_path / "checkpoints" / "end-of-epoch=0-v1.ckpt"
    fit(resumed, tmp_path, 2, checkpoint=last)
    assert resumed.trials == whole.trials
    assert len(read_episodes(tmp_path / "episodes")) == len(whole.episodes)


def test_an_episode_of_another_policy_is_left_where_it_is(tmp_path: Path) -> None:
    fit(agent(), tmp_path, 2)
    # Another training goes on from the first epoch's end.
    other = agent(particles=10)
    last = tmp_path / "checkpoints" / "epoch=0-step=2.ckpt"
    with pytest.warns(UserWarning, match="does not come to the same point .* a new one is acted"):
        fit(other, tmp_path, 2, checkpoint=last)
    assert len(other.episodes) == 3
    assert len(read_episodes(tmp_path / "episodes")) == 5


def test_what_is_left_over_is_taken_where_it_belongs(tmp_path: Path) -> None:
    def episode(number: float) -> Episode:
        value = torch.full((2, 1), number, dtype=torch.float64)
        return Episode(value, value[:1], value[0], success=False)

    about = {"environment": "E-v0", "steps": 6, "seed": 4, "actions": "policy", "policy": "ab"}
    folder = EpisodeFolder(tmp_path / "episodes")
    folder.add(episode(0.0), {**about, "complete": True})
    folder.add(episode(1.0), {**about, "seed": 5, "complete": False})
    folder.add(episode(2.0), {**about, "seed": 6, "complete": True, "predicted_cost": 3.0})
    env = gymnasium.make("proppo_envs:CartPoleSwingUp-v0")
    left = LeftOver(folder.path, [episode(0.0)])
    with pytest.warns(UserWarning, match=r"episode-00002-\w+.npz and 1 more in .*the episode was"):
        assert left.take({**about, "seed": 5}, env) is None
    assert left.take({**about, "seed": 4}, env) is None  # it is known
    assert left.take({**about, "seed": 6, "policy": "cd"}, env) is None
    taken = left.take({**about, "seed": 6, "predicted_cost": None}, env)
    assert taken is not None
    assert digest_of(taken) == digest_of(episode(2.0))
    assert left.take({**about, "seed": 6}, env) is None
    assert LeftOver(None, []).take(about, env) is None
    assert LeftOver(tmp_path / "nowhere", []).take(about, env) is None


def test_a_checkpoint_of_an_earlier_version_is_taken(tmp_path: Path) -> None:
    fit(agent(), tmp_path, 1)
    old = load(tmp_path / "end.pt")
    for name in ("progress", "proppo_noise", "proppo_outside", "proppo_logs"):
        del old[name]
    torch.save(old, tmp_path / "old.ckpt")
    module = agent()
    fit(module, tmp_path / "new", 2, checkpoint=tmp_path / "old.ckpt")
    assert [trial.steps for trial in module.trials] == [0, 3, 3, 6]


# -- any module ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "done"), [("epoch=0-step=7.ckpt", 7), ("end-of-epoch=0.ckpt", 10)]
)
# With the latter, the monitor looks at three gradients in succession.
@pytest.mark.parametrize("estimator", ["TP", "GR"])
def test_the_chaotic_network_goes_on_amid_an_epoch(
    tmp_path: Path, name: str, done: int, estimator: str
) -> None:
    def train(folder: Path, checkpoint: Path | None = None) -> list[str]:
        module = ChaoticRNNModule(beta=3.0, particles=20, horizon=20, steps=10)
        # Its third look is at step 8, and says something.
        monitor = VarianceMonitor(every_n_steps=4, alarm="warn", min_snr=10.0, patience=3)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            fit(module, folder, 2, (monitor,), checkpoint, estimator)
        said = [str(each.message) for each in found]
        assert not any("your dataloader is not resumable" in words for words in said)
        return [words for words in said if words.startswith("VarianceMonitor warns")]

    [said] = train(tmp_path / "whole")
    step = int(said.split("at step ")[1].split(":")[0])
    checkpoint = broken_off(tmp_path / "whole", tmp_path / "resumed", name)
    # It says the same at the same step, and not a second time.
    assert train(tmp_path / "resumed", checkpoint) == ([said] if step >= done else [])
    compare(tmp_path / "resumed", tmp_path / "whole")


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_goes_on_in_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path(__file__).resolve().parents[2] / "configs" / "pilco_cartpole.yaml"
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> None:
        assert main([*args, "--trainer.enable_progress_bar=false"]) == 0

    def begin(name: str, epochs: int) -> Path:
        small = ["--model.particles=8", "--model.steps=2", "--model.candidates=2"]
        logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs"]
        logger += [f"--trainer.logger.name={name}"]
        settings = [f"--trainer.max_epochs={epochs}", *small, *logger]
        run("fit", "--config", str(config), *settings)
        return tmp_path / "runs" / name / "version_0"

    whole, resumed = begin("whole", 2), begin("resumed", 1)
    run("resume", str(resumed), "--trainer.max_epochs=2")
    assert (resumed / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert [path.name for path in resumed.parent.iterdir()] == ["version_0"]
    ends = [last_checkpoint(folder) for folder in (resumed, whole)]
    found, expected = (load(path) for path in ends if path is not None)
    assert [name for name in COMPARED if not same(found[name], expected[name])] == []
    assert Trial(**found["trials"][0]).predicted_cost is None
