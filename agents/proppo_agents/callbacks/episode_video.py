"""The callback that films the policy, trial by trial."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium

from lightning_proppo.callbacks.tensorboard import tensorboard_writers
from lightning_proppo.errors import check_choice
from lightning_proppo.installed_lightning import pl
from proppo_agents.arguments import check_count
from proppo_agents.experience.keeping import run_folder
from proppo_agents.watching.films import Film, FilmError, can_write, film_episode, rendered


class EpisodeVideo(pl.Callback):
    """Films an evaluation episode at the end of an epoch.

    The episode is one more than those that the agent learns from: nothing is learned from it, and
    it has an environment of its own, which must be a simulator. Each starts with the same seed.

    Films are written to ``videos/trial-NUMBER`` in the run's folder, by Gymnasium's RecordVideo as
    mp4, or as GIF; where TensorBoard is a logger, the film is among its images (as GIF, which it
    shows moving). Logged: ``evaluation/return``, the sum of the environment's rewards, and,
    where the environment tells it, ``evaluation/success``.

    Args:
        every_n_epochs: film at the end of each so-and-so-many-th epoch, and of the last.
        file_format: ``"mp4"``, which needs MoviePy (``pip install "lightning-proppo[video]"``), or
            ``"gif"``.
        seed: of the episode.

    Raises:
        ValueError: if an argument is not as said here.
        FilmError: at the start of training, if the environment has no pictures, or something is
            not installed.
    """

    def __init__(
        self, every_n_epochs: int = 1, file_format: Literal["mp4", "gif"] = "gif", seed: int = 0
    ) -> None:
        check_count("every_n_epochs", every_n_epochs)
        check_choice("file_format", file_format, ("mp4", "gif"))
        self.every_n_epochs = every_n_epochs
        self.file_format = file_format
        self.seed = seed
        self._env: gymnasium.Env[Any, Any] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Make the environment, and see that it can be filmed, before there is a trial."""
        if stage != "fit" or not trainer.is_global_zero:
            return
        can_write(f".{self.file_format}")
        can_write(".gif")
        self._env = rendered(pl_module.env)
        try:
            self._env.reset(seed=self.seed)
            self._env.render()
        except gymnasium.error.DependencyNotInstalled as error:
            raise FilmError(f"the environment cannot be filmed: {error}") from error

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Film an episode."""
        # All ranks have to ask for it.
        folder = run_folder(trainer, "videos")
        trial = trainer.current_epoch + 1
        last = trial == trainer.max_epochs
        if self._env is None or not (last or trial % self.every_n_epochs == 0):
            return
        path = None if folder is None else folder / f"trial-{trial:03d}.{self.file_format}"
        film = film_episode(self._env, pl_module.act, self.seed, path)
        metrics = {"evaluation/return": film.episode.total}
        if film.episode.success is not None:
            metrics["evaluation/success"] = float(film.episode.success)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        for writer in tensorboard_writers(trainer):
            _add_film(writer, "evaluation/episode", film, trainer.global_step)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close the environment."""
        if self._env is not None:
            self._env.close()
            self._env = None


def _add_film(writer: Any, tag: str, film: Film, step: int) -> None:
    # The writer's own add_video needs MoviePy.
    from tensorboard.compat.proto.summary_pb2 import Summary

    height, width, colours = film.frames[0].shape
    image = Summary.Image(
        height=height, width=width, colorspace=colours, encoded_image_string=film.as_gif()
    )
    writer._get_file_writer().add_summary(
        Summary(value=[Summary.Value(tag=tag, image=image)]), step
    )
