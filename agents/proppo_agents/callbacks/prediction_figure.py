"""The callback that shows, trial by trial, whether the model tells the truth."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from torch.distributions import Normal

from lightning_proppo.callbacks.tensorboard import tensorboard_writers
from proppo_agents.arguments import check_count
from proppo_agents.callbacks.base import EpisodeCallback
from proppo_agents.encodings import onto_circles
from proppo_agents.experience.episodes import Episode, PolicyFunction
from proppo_agents.experience.keeping import run_folder
from proppo_agents.figures.style import save
from proppo_agents.watching.prediction_plot import draw_prediction
from proppo_agents.watching.predictions import Prediction, predict_episode


class PredictionFigure(EpisodeCallback):
    """Draws each real episode over what the model had predicted of it, with bands of 2 sigma.

    The model is the one before it is fitted to that episode, the policy the one that acted. Two
    kinds of predictions are held against what came: rollouts from the episode's first observation,
    as the policy learns from, and single steps from each real observation. The first shows where
    the model leads astray in the long run; it says little by its share inside, because the points
    of one trajectory err together. The second measures whether the model's deviations are right.

    Pictures are written to ``predictions/trial-NUMBER.png`` in the run's folder, and to TensorBoard
    where that is a logger. Logged, as means over coordinates: ``calibration/rollout_inside`` and
    ``calibration/one_step_inside``, the shares of real points within 2 deviations of the predicted
    mean (0.954 for a true normal distribution), and ``calibration/one_step_rms``, the root mean
    square of the errors over their predicted deviations (1; more: the model is too sure of itself).
    Random numbers of the training are left as they are.

    Args:
        particles: rollouts that the bands are made of.
        every_n_trials: draw and log at each so-and-so-many-th trial. The first has no model yet.
        seed: of the rollouts.

    Raises:
        ValueError: if ``particles`` is less than 2, or ``every_n_trials`` less than 1.
    """

    def __init__(self, particles: int = 200, every_n_trials: int = 1, seed: int = 0) -> None:
        check_count("particles", particles, 2)
        check_count("every_n_trials", every_n_trials)
        self.particles = particles
        self.every_n_trials = every_n_trials
        self.seed = seed

    def on_episode(
        self, trainer: Any, agent: Any, episode: Episode, policy: PolicyFunction | None
    ) -> None:
        """Draw the episode, and log how much of it was foreseen."""
        # All ranks have to ask for it.
        folder = run_folder(trainer, "predictions")
        trial = len(agent.trials)
        if not trainer.is_global_zero or trial % self.every_n_trials:
            return
        prediction = predicted_by(agent, episode, policy, self.particles, self.seed)
        if prediction is None:
            return
        for logger in trainer.loggers:
            logger.log_metrics(prediction.metrics(), step=trainer.global_step)
        figure = draw_prediction(prediction, f"Trial {trial}: real, and predicted by the model")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            save(figure, folder / f"trial-{trial:03d}.png")
        for writer in tensorboard_writers(trainer):
            writer.add_figure("predictions/trial", figure, trainer.global_step, close=False)


def predicted_by(
    agent: Any, episode: Episode, policy: PolicyFunction | None, particles: int, seed: int
) -> Prediction | None:
    """Return what an agent's present model predicts of an episode, or None if it has no model."""
    if not agent.dynamics.fitted:
        return None
    # A copy: the agent's own stays where it is, in its precision.
    dynamics = copy.deepcopy(agent.dynamics).to(episode.observations)
    spaces = agent.world.spaces

    def single(x: Tensor, action: Tensor) -> Normal:
        mean, variance = dynamics.expected_change(x, action)
        return Normal(x + mean, variance.sqrt(), validate_args=False)

    def draw(x: Tensor, action: Tensor) -> Tensor:
        return onto_circles(dynamics(x, action).sample(), spaces.encoded_angles)

    return predict_episode(single, policy, episode, particles, spaces.angles, seed, draw)
