"""What an agent's model predicted of an episode, beside what came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proppo_agents.experience.episodes import Episode, PolicyFunction
from proppo_agents.watching.calibration import (
    Draw,
    Model,
    draw_trajectories,
    moments,
    one_step_errors,
    root_mean_square,
    share_inside,
    standardized_errors,
    unwrapped,
)


@dataclass(frozen=True)
class Prediction:
    """An episode of H steps, and what a model that did not know it made of its first observation.

    Attributes:
        real: [H + 1, D], what was observed.
        trajectories: [H + 1, P, D], the model's, all from the real start.
        rollout_errors: [H, D], standardized errors of the rollouts' distribution, by step.
        one_step_errors: [H, D], those of predictions from each real observation.
        angles: the coordinates that are angles (rad).
    """

    real: Tensor
    trajectories: Tensor
    rollout_errors: Tensor
    one_step_errors: Tensor
    angles: tuple[int, ...]

    def metrics(self) -> dict[str, float]:
        """Return what is logged: means over the coordinates."""
        return {
            "calibration/rollout_inside": float(share_inside(self.rollout_errors).mean()),
            "calibration/one_step_inside": float(share_inside(self.one_step_errors).mean()),
            "calibration/one_step_rms": float(root_mean_square(self.one_step_errors).mean()),
        }


@torch.no_grad()
def predict_episode(
    model: Model,
    policy: PolicyFunction | None,
    episode: Episode,
    particles: int,
    angles: Sequence[int] = (),
    seed: int = 0,
    draw: Draw | None = None,
) -> Prediction:
    """Predict an episode from its first observation.

    Rollouts act by the policy, as those do that the policy learns from; where there was none, by
    the actions that were taken. What is drawn comes from a stream of its own.

    Args:
        model: of the transition, with normal distributions; not fitted to this episode.
        policy: that acted; None: random actions.
        episode: what came.
        particles: P, at least 2.
        angles: the coordinates that are angles (rad).
        seed: of the trajectories.
        draw: a step of a rollout, where that is something else than a sample of the model's
            distribution; None: such a sample.
    """
    start = episode.observations[:1].expand(particles, -1)
    actions = episode.actions

    def act(step: int, x: Tensor) -> Tensor:
        if policy is None:
            return actions[step].expand(len(x), -1)
        # Policies and models may have another precision than the episode.
        return policy(x).to(actions)

    def sample(x: Tensor, action: Tensor) -> Tensor:
        return model(x, action).sample()

    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed a GPU's too.
        torch.default_generator.manual_seed(seed)
        trajectories = draw_trajectories(draw or sample, act, start, len(actions))
    real = unwrapped(episode.observations, angles)
    mean, std = moments(trajectories)
    return Prediction(
        real=real,
        trajectories=trajectories,
        # At the start there is nothing to predict.
        rollout_errors=standardized_errors(real[1:], mean[1:], std[1:]),
        one_step_errors=one_step_errors(model, episode.observations, actions, angles),
        angles=tuple(angles),
    )
