"""The callbacks that watch an agent: what they write, and that they change nothing."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_proppo import PropagationCallback
from lightning_proppo.cli.installed import LightningCLI
from lightning_proppo.installed_lightning import pl
from proppo_agents import PILCO, EpisodeVideo, PredictionFigure
from proppo_agents.callbacks.base import EpisodeCallback
from proppo_agents.experience.episodes import Episode, PolicyFunction
from proppo_agents.watching.films import FilmError

from ..small_agent import SMALL


def fit(callbacks: list[pl.Callback], logger: Any, epochs: int = 2, **options: Any) -> PILCO:
    pl.seed_everything(0)
    module = PILCO(**SMALL)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=logger,
        callbacks=[*callbacks, PropagationCallback("TP")],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(module)
    return module


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[PILCO, Path, EventAccumulator]:
    folder = tmp_path_factory.mktemp("run")
    loggers = [
        pl.loggers.TensorBoardLogger(folder, name="", version=""),
        pl.loggers.CSVLogger(folder, name="", version=""),
    ]
    module = fit([PredictionFigure(particles=20), EpisodeVideo()], loggers)
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return module, folder, events


def test_watching_changes_nothing(
    watched: tuple[PILCO, Path, EventAccumulator], tmp_path: Path
) -> None:
    module, _, _ = watched
    alone = fit([], pl.loggers.CSVLogger(tmp_path))
    assert alone.trials == module.trials
    assert torch.equal(alone.policy.weights, module.policy.weights)


def test_pictures_are_in_the_runs_folder(watched: tuple[PILCO, Path, EventAccumulator]) -> None:
    _, folder, _ = watched
    drawn = sorted(path.name for path in (folder / "predictions").iterdir())
    assert drawn == ["trial-001.png", "trial-002.png"]  # of the first there was no model
    picture = imread(folder / "predictions" / "trial-001.png")
    # The band is there, and takes up room.
    band = np.abs(picture[..., :3] - np.array([0.77, 0.90, 0.97])).max(-1) < 0.03
    assert 0.02 < band.mean() < 0.9
    films = sorted(path.name for path in (folder / "videos").iterdir())
    assert films == ["trial-001.gif", "trial-002.gif"]


def test_pictures_are_in_tensorboard(watched: tuple[PILCO, Path, EventAccumulator]) -> None:
    _, folder, events = watched
    assert sorted(events.Tags()["images"]) == ["evaluation/episode", "predictions/trial"]
    assert [image.step for image in events.Images("predictions/trial")] == [2, 4]
    first, last = events.Images("evaluation/episode")
    assert (first.step, last.step) == (2, 4)
    film = (folder / "videos" / "trial-002.gif").read_bytes()
    assert last.encoded_image_string == film


def test_calibration_and_evaluation_are_logged(
    watched: tuple[PILCO, Path, EventAccumulator],
) -> None:
    module, folder, _ = watched
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("rollout_inside", "one_step_inside"):
        values = [float(row[f"calibration/{name}"]) for row in rows if row[f"calibration/{name}"]]
        assert len(values) == 2
        assert all(0 <= value <= 1 for value in values)
    found = [float(row["evaluation/return"]) for row in rows if row["evaluation/return"]]
    assert len(found) == 2
    # One of them is the policy's that has been put back.
    best = module._progress.best_trial
    assert best is not None
    assert found[best - 1] == pytest.approx(module.evaluate_policy(1, seed=0)["returns"][0])


def test_episodes_are_told_before_the_model_knows_them(tmp_path: Path) -> None:
    told: list[tuple[int, bool, bool]] = []

    class Listener(EpisodeCallback):
        def on_episode(
            self, trainer: Any, agent: PILCO, episode: Episode, policy: PolicyFunction | None
        ) -> None:
            assert not any(episode is each for each in agent.episodes)
            told.append((len(agent.episodes), not agent.dynamics.fitted, policy is None))

    fit([Listener()], pl.loggers.CSVLogger(tmp_path))
    assert told == [(0, True, True), (1, False, False), (2, False, False)]


def test_some_trials_only(tmp_path: Path) -> None:
    callbacks = [PredictionFigure(particles=4, every_n_trials=2), EpisodeVideo(every_n_epochs=2)]
    fit(callbacks, pl.loggers.CSVLogger(tmp_path, name="", version=""), epochs=3)
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["trial-002.png"]
    films = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert films == ["trial-002.gif", "trial-003.gif"]


def test_files_are_written_without_a_logger_too(tmp_path: Path) -> None:
    fit([PredictionFigure(particles=4)], False, epochs=1, default_root_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episodes", "predictions"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PredictionFigure(particles=1), "particles must be at least 2; got 1"),
        (lambda: PredictionFigure(every_n_trials=0), "every_n_trials must be at least 1; got 0"),
        (lambda: EpisodeVideo(every_n_epochs=0), "every_n_epochs must be at least 1; got 0"),
        (lambda: EpisodeVideo(file_format="avi"), "file_format must be one of mp4, gif; got 'avi'"),
    ],
)
def test_wrong_arguments_are_refused(make: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


def test_a_film_that_cannot_be_written_is_refused_before_there_is_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FilmError, match="needs moviepy"):
        fit([EpisodeVideo(file_format="mp4")], pl.loggers.CSVLogger(tmp_path, name="", version=""))
    assert not (tmp_path / "episodes").exists()


def test_callbacks_can_be_had_from_yaml(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        """
trainer:
  logger: false
  enable_checkpointing: false
  callbacks:
    - class_path: proppo_agents.PredictionFigure
      init_args: {particles: 30}
    - class_path: proppo_agents.EpisodeVideo
      init_args: {every_n_epochs: 2, file_format: gif}
"""
    )
    found = LightningCLI(PILCO, run=False, args=["--config", str(config)]).trainer
    callbacks: list[Any] = found.callbacks  # type: ignore[attr-defined]
    [figure] = [each for each in callbacks if isinstance(each, PredictionFigure)]
    [video] = [each for each in callbacks if isinstance(each, EpisodeVideo)]
    assert (figure.particles, video.every_n_epochs) == (30, 2)
