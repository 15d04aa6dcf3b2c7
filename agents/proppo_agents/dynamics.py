"""A model of the transition of an environment: Gaussian processes for the change of the state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Normal

from proppo_agents.encodings import encode_angles
from proppo_agents.episodes import Episode
from proppo_agents.gaussian_process import GPPosterior, fit_gaussian_process


@dataclass(frozen=True)
class GPDynamics:
    """Predicts the next observation: x' = x + a process of x (angles encoded) and the action.

    Attributes:
        posterior: of the processes, one for each coordinate of the observation.
        angles: the coordinates that are angles.
    """

    posterior: GPPosterior
    angles: tuple[int, ...]

    @classmethod
    def fit(
        cls,
        episodes: Sequence[Episode],
        angles: tuple[int, ...],
        steps: int = 150,
        learning_rate: float = 0.1,
    ) -> GPDynamics:
        """Fit the processes to all transitions of the episodes; see ``fit_gaussian_process``."""
        inputs = torch.cat([_inputs(e.observations[:-1], e.actions, angles) for e in episodes])
        outputs = torch.cat([e.observations[1:] - e.observations[:-1] for e in episodes])
        return cls(fit_gaussian_process(inputs, outputs, steps, learning_rate), angles)

    def to(self, like: Tensor) -> GPDynamics:
        """Return it with another tensor's dtype and device."""
        return GPDynamics(self.posterior.to(like), self.angles)

    def __call__(self, observation: Tensor, action: Tensor) -> Normal:
        """Return the distribution [P, D] after the action [P, A] at the observation [P, D]."""
        mean, variance = self.posterior.predict(_inputs(observation, action, self.angles))
        return Normal(observation + mean, variance.sqrt(), validate_args=False)

    @torch.no_grad()
    def r_squared(self, episode: Episode) -> Tensor:
        """Return the share [D] of the changes' variance in an episode that is predicted.

        Of an episode that the model was not fitted to, 1 is perfect and 0 no better than the mean.
        """
        before, after = episode.observations[:-1], episode.observations[1:]
        residual = after - self(before, episode.actions).mean
        change = after - before
        return 1 - residual.square().sum(0) / (change - change.mean(0)).square().sum(0)


def _inputs(observation: Tensor, action: Tensor, angles: tuple[int, ...]) -> Tensor:
    return torch.cat([encode_angles(observation, angles), action], dim=-1)
