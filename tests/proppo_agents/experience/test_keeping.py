"""Real experience outlives what fails after it, and comes back once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

from lightning_proppo import PropagationCallback
from lightning_proppo.installed_lightning import pl
from proppo_agents import PILCO
from proppo_agents.experience.episodes import collect_episode
from proppo_agents.experience.files import EpisodeFileError, EpisodeFolder, digest_of, read_episodes
from proppo_agents.experience.keeping import collect_and_keep
from proppo_envs.cartpole import CartPoleSwingUpEnv

from ..small_agent import SMALL


def small(**changes: Any) -> PILCO:
    torch.manual_seed(0)
    return PILCO(**(SMALL | changes))


def fit(module: PILCO, folder: Path, epochs: int = 1, **options: Any) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=pl.loggers.CSVLogger(folder, name="", version=""),
        callbacks=[PropagationCallback("TP")],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, **options)
    trainer.save_checkpoint(folder / "end.ckpt")


def digests(folder: Path) -> list[str]:
    return [digest_of(each.episode) for each in read_episodes(folder)]


def held(module: PILCO) -> list[str]:
    return [digest_of(each) for each in module.episodes]


def test_a_run_keeps_its_episodes(tmp_path: Path) -> None:
    module = small(environment_options={"cost_width": 0.3})
    fit(module, tmp_path, epochs=2)
    found = read_episodes(tmp_path / "episodes")
    assert digests(tmp_path / "episodes") == held(module)
    assert [each.about["steps"] for each in found] == [0, 2, 4]
    assert [each.about["actions"] for each in found] == ["random", "policy", "policy"]
    assert found[2].about["predicted_cost"] == module.trials[2].predicted_cost
    assert found[0].about["environment"] == "proppo_envs:CartPoleSwingUp-v0"
    assert found[0].about["environment_options"] == {"cost_width": 0.3}
    # As it says, the episode can be had again.
    with gymnasium.make("proppo_envs:CartPoleSwingUp-v0", cost_width=0.3) as env:
        again = collect_episode(env, None, found[0].about["seed"])
    assert digest_of(again) == digest_of(found[0].episode)


@pytest.mark.parametrize("method", ["refit", "start_search", "predict", "configure_optimizers"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_fails_after_an_episode_does_not_lose_it(
    method: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = small(random_episodes=2)

    def fail(*args: Any) -> None:
        raise error("injected")

    monkeypatch.setattr(PILCO, method, fail)
    # Lightning turns an interrupt into an exit.
    with pytest.raises((error, SystemExit)):
        fit(module, tmp_path)
    if method == "configure_optimizers":
        assert not (tmp_path / "episodes").exists()  # none had been collected
        return
    assert digests(tmp_path / "episodes") == held(module)
    assert len(module.episodes) == 2
    # And the next training starts from them, with no more random actions.
    monkeypatch.undo()
    next_one = small(random_episodes=2, data=str(tmp_path / "episodes"))
    fit(next_one, tmp_path / "next")
    assert held(next_one)[:2] == held(module)
    assert [trial.steps for trial in next_one.trials] == [0, 0, 2]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_episode_that_is_broken_off_is_kept_as_far_as_it_went(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    real = CartPoleSwingUpEnv.step

    def step(self: CartPoleSwingUpEnv, action: Any) -> Any:
        steps.append(action)
        if len(steps) == 25 + 8:
            raise error("the cable came off")
        return real(self, action)

    monkeypatch.setattr(CartPoleSwingUpEnv, "step", step)
    with pytest.raises((error, SystemExit)):
        fit(small(random_episodes=2), tmp_path)
    whole, part = read_episodes(tmp_path / "episodes")
    assert whole.about["complete"] is True
    assert part.about["complete"] is False
    assert part.episode.observations.shape == (8, 4)
    monkeypatch.undo()
    module = small(random_episodes=2, data=str(tmp_path / "episodes"))
    fit(module, tmp_path / "next")
    assert len(module.episodes[1].actions) == 7


def test_nothing_is_kept_of_an_episode_without_a_step(tmp_path: Path) -> None:
    def fail(observation: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no policy")

    with (
        gymnasium.make("proppo_envs:CartPoleSwingUp-v0") as env,
        pytest.raises(RuntimeError, match="no policy"),
    ):
        collect_and_keep(env, fail, 0, EpisodeFolder(tmp_path), {})
    assert not list(tmp_path.iterdir())


def test_going_on_with_data_neither_loses_nor_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small()
    fit(first, tmp_path / "a", epochs=1)
    # After its checkpoint this run has another episode, and fails.
    crashed = small()
    monkeypatch.setattr(PILCO, "refit", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(crashed, tmp_path / "b", epochs=2, ckpt_path=tmp_path / "a" / "end.ckpt")
    monkeypatch.undo()
    assert len(crashed.episodes) == 3
    # Its folder has all that it knew, also what the first run had collected.
    assert digests(tmp_path / "b" / "episodes") == held(crashed)

    # The checkpoint has two of these three.
    resumed = small(data=str(tmp_path / "b" / "episodes"))
    fit(resumed, tmp_path / "c", epochs=2, ckpt_path=tmp_path / "a" / "end.ckpt")
    assert held(resumed)[:3] == held(crashed)
    assert len(set(held(resumed))) == len(resumed.episodes) == 5
    assert len(resumed.trials) == 5
    assert resumed.trials[:3] == crashed.trials
    assert sorted(digests(tmp_path / "c" / "episodes")) == sorted(held(resumed))

    # In the folder that the data are in, they are not written again.
    again = small(data=str(tmp_path / "b" / "episodes"))
    fit(again, tmp_path / "b", epochs=1)
    assert held(again)[:3] == held(crashed)
    assert digests(tmp_path / "b" / "episodes") == held(again)
    assert len(EpisodeFolder(tmp_path / "b" / "episodes")) == 4


def test_a_checkpoint_can_be_used_where_the_data_are_not(tmp_path: Path) -> None:
    fit(small(), tmp_path / "a")
    module = small(data=str(tmp_path / "a" / "episodes"))
    fit(module, tmp_path / "b")
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    loaded = PILCO.load_from_checkpoint(tmp_path / "b" / "end.ckpt", weights_only=True)
    assert held(loaded) == held(module)
    assert loaded.evaluate_policy(1, seed=0)


def test_data_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with gymnasium.make("proppo_envs:CartDoublePoleSwingUp-v0") as env:
        path = EpisodeFolder(tmp_path / "double").add(collect_episode(env, None, 0))
    with pytest.raises(EpisodeFileError, match=rf"{path} does not fit .*\(4,\).*\(6,\)"):
        fit(small(data=str(tmp_path / "double")), tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(EpisodeFileError, match=f"{path} is not a whole episode"):
        fit(small(data=str(tmp_path / "double")), tmp_path)
    with pytest.raises(EpisodeFileError, match="none does not exist"):
        fit(small(data=str(tmp_path / "none")), tmp_path)


def test_data_of_another_task_are_taken_with_a_warning(tmp_path: Path) -> None:
    name = "proppo_envs:CartPoleBalance-v0"
    with gymnasium.make(name) as env:
        about = {"environment": name}
        collect_and_keep(env, None, 0, EpisodeFolder(tmp_path / "data"), about)
    module = small(data=str(tmp_path / "data"))
    with pytest.warns(UserWarning, match="holds episodes of proppo_envs:CartPoleBalance-v0"):
        fit(module, tmp_path)
    assert len(module.episodes) == 2


def test_a_fast_dev_run_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = pl.Trainer(
        accelerator="cpu",
        fast_dev_run=True,
        callbacks=[PropagationCallback("TP")],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(small())
    assert not list(tmp_path.iterdir())
