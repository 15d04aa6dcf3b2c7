"""``collect`` and ``render``: each stands alone, and tells in a line what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_proppo import PropagationCallback
from lightning_proppo.cli import CommandError
from lightning_proppo.installed_lightning import pl
from proppo_agents import PILCO
from proppo_agents.commands import collect, render
from proppo_agents.commands.collect import main as run_collect
from proppo_agents.commands.render import main as run_render
from proppo_agents.experience.files import EpisodeFolder, digest_of, read_episodes

from ..small_agent import SMALL

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / "configs" / "pilco_cartpole.yaml"


def fit(folder: Path, **changes: Any) -> PILCO:
    torch.manual_seed(0)
    module = PILCO(**(SMALL | changes))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        default_root_dir=folder,
        callbacks=[PropagationCallback("TP")],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module)
    trainer.save_checkpoint(folder / "end.ckpt")
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    fit(folder, environment_options={"cost_width": 0.3})
    return folder / "end.ckpt"


def test_random_episodes_of_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG.parent / "benchmark" / "swing_up_noise16_tp.yaml"
    args = ["--config", str(config), "--out", str(tmp_path / "data")]
    assert run_collect([*args, "--episodes", "2"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("seed 0: 25 steps, return ")
    assert told[2] == f"{tmp_path / 'data'} holds 2 episodes."
    first, second = read_episodes(tmp_path / "data")
    assert digest_of(first.episode) != digest_of(second.episode)
    assert first.about["environment"] == "proppo_envs:CartPoleSwingUp-v0"
    options = {"observation_noise_std": "pipps", "noise_multiplier": 16}
    assert first.about["environment_options"] == options
    assert first.about["actions"] == "random"
    # Once more: others are added.
    run_collect(args)
    assert [each.about["seed"] for each in read_episodes(tmp_path / "data")] == [0, 1, 2]
    # The same once more: the folder has it already, and says so.
    capsys.readouterr()
    run_collect([*args, "--seed", "1"])
    assert "which the folder held already" in capsys.readouterr().out
    assert len(EpisodeFolder(tmp_path / "data")) == 3


def test_what_was_collected_is_what_fit_starts_from(tmp_path: Path) -> None:
    run_collect(["--config", str(CONFIG), "--out", str(tmp_path / "data"), "--episodes", "3"])
    module = fit(tmp_path, data=str(tmp_path / "data"), random_episodes=3)
    assert len(module.episodes) == 4
    expected = [digest_of(each.episode) for each in read_episodes(tmp_path / "data")]
    assert [digest_of(each) for each in module.episodes[:3]] == expected


def test_episodes_of_a_checkpoints_policy(checkpoint: Path, tmp_path: Path) -> None:
    run_collect(["--ckpt", str(checkpoint), "--out", str(tmp_path), "--seed", "5"])
    [found] = read_episodes(tmp_path)
    assert found.about["actions"] == "policy"
    assert found.about["steps"] == 2
    assert found.about["environment_options"] == {"cost_width": 0.3}
    module = PILCO.load_from_checkpoint(checkpoint, weights_only=True)
    assert module.evaluate_policy(1, seed=5)["returns"] == [found.episode.total]


def test_any_environment_can_be_collected_from(tmp_path: Path) -> None:
    run_collect(["--environment", "Pendulum-v1", "--options", '{"g": 1.0}', "--out", str(tmp_path)])
    [found] = read_episodes(tmp_path)
    # From -1 to 1, where the environment's own are from -2 to 2.
    assert 0.8 < float(found.episode.actions.abs().max()) <= 1
    assert found.about["environment_options"] == {"g": 1.0}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_was_collected_before_a_failure_is_there(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = collect.collect_and_keep
    seeds = []

    def fail(env: Any, policy: Any, seed: int, *others: Any) -> Any:
        seeds.append(seed)
        if len(seeds) == 3:
            raise error("injected")
        return real(env, policy, seed, *others)

    monkeypatch.setattr(collect, "collect_and_keep", fail)
    with pytest.raises(error):
        run_collect(["--config", str(CONFIG), "--out", str(tmp_path), "--episodes", "5"])
    assert len(read_episodes(tmp_path)) == 2


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--ckpt", "none.ckpt"], "none.ckpt does not exist"),
        (["--config", "none.yaml"], "none.yaml cannot be read: No such file"),
        (["--config", "list.yaml"], "list.yaml is not a configuration of fit"),
        (["--config", "other.yaml"], "the model of other.yaml cannot be made"),
        (["--config", "part.yaml"], "Did you mean 'init_args'?"),
        (["--config", "rnn.yaml"], "ChaoticRNNModule does not act in an environment"),
        (["--environment", "None-v0"], "None-v0 cannot be made"),
        (["--environment", "CartPole-v1"], "the actions of CartPole-v1 must be a Box"),
        (["--environment", "Pendulum-v1", "--options", "g=1"], "--options must be JSON"),
        (["--environment", "Pendulum-v1", "--options", "[]"], "--options must be a JSON object"),
        (["--environment", "Pendulum-v1", "--options", '{"h": 1}'], "Pendulum-v1 cannot be made"),
    ],
)
def test_what_cannot_be_collected_is_told(
    args: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("- 1\n")
    Path("other.yaml").write_text("model: {class_path: proppo_agents.PILCO, init_args: {x: 1}}\n")
    Path("part.yaml").write_text(
        "model: {class_path: proppo_agents.PILCO, init_args: {cost: "
        "{class_path: proppo_agents.SaturatingCost, init_arg: {target: [0, 0, 0, 0]}}}}\n"
    )
    Path("rnn.yaml").write_text("model: {class_path: proppo_agents.ChaoticRNNModule}\n")
    with pytest.raises(CommandError) as raised:
        run_collect([*args, "--out", "data"])
    assert told in str(raised.value)
    assert not Path("data").exists()


def test_a_folder_of_another_environments_episodes_is_left_alone(tmp_path: Path) -> None:
    run_collect(["--environment", "Pendulum-v1", "--out", str(tmp_path)])
    with pytest.raises(CommandError, match=r"holds episodes of Pendulum-v1.*another folder"):
        run_collect(["--config", str(CONFIG), "--out", str(tmp_path)])
    [path] = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CommandError, match="is not a whole episode"):
        run_collect(["--environment", "Pendulum-v1", "--out", str(tmp_path)])


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match="cannot be written"):
        run_collect(["--config", str(CONFIG), "--out", str(tmp_path / "file" / "data")])


@pytest.mark.parametrize("args", [["--out", "x"], ["--config", "a", "--ckpt", "b", "--out", "x"]])
def test_there_is_one_thing_to_act_with(args: list[str]) -> None:
    with pytest.raises(SystemExit):
        run_collect(args)


def test_a_checkpoints_policy_is_filmed(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "film.gif"
    assert run_render(["--ckpt", str(checkpoint), "--out", str(path), "--seed", "4"]) == 0
    assert path.read_bytes().startswith(b"GIF89a")
    module = PILCO.load_from_checkpoint(checkpoint, weights_only=True)
    expected = module.evaluate_policy(1, seed=4)["returns"][0]
    told = f"{path}: 26 frames, 2.5 s, return {expected:.4g}, no success\n"
    assert capsys.readouterr().out == told
    run_render(["--ckpt", str(checkpoint), "--out", str(tmp_path / "frames")])
    assert len(list((tmp_path / "frames").glob("*.png"))) == 26


def test_what_cannot_be_filmed_is_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CommandError, match="does not exist"):
        run_render(["--ckpt", "none.ckpt", "--out", str(tmp_path / "film.gif")])
    with pytest.raises(CommandError, match=r"got '\.avi'"):
        run_render(["--ckpt", str(checkpoint), "--out", str(tmp_path / "film.avi")])
    monkeypatch.setattr(render, "can_write", lambda suffix: None)
    monkeypatch.setattr("proppo_agents.watching.films.importlib.util.find_spec", lambda name: None)
    with pytest.raises(CommandError, match="needs moviepy"):
        run_render(["--ckpt", str(checkpoint), "--out", str(tmp_path / "film.mp4")])
