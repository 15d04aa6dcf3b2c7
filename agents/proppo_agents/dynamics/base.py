"""What every model of the transition does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Normal
from typing_extensions import Self

from proppo_agents.encodings import angle_changes, encode_angles
from proppo_agents.experience.episodes import Episode
from proppo_agents.parts import Part, Spaces
from proppo_agents.regression import Regressor


class DynamicsModel(Part):
    """Predicts how an observation changes: a regression on the observation and the action.

    Inputs are the observation, its angles as sines and cosines, and the action. Outputs are the
    changes of all coordinates, those of angles the shorter way round, so that it does not matter
    whether the environment wraps its angles. Predicted angles are not wrapped. What was fitted is
    in ``state_dict``.

    A final class says what regressor it is made of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.regressor = self._make_regressor()
        self._angles: tuple[int, ...] = ()
        self._sizes: tuple[int, int] | None = None  # of observation and action, once built

    @abstractmethod
    def _make_regressor(self) -> Regressor:
        """Return a regressor that has not been fitted."""

    def new_regressor(self) -> Regressor:
        """Return another regressor of the same kind, not fitted: for what else must be learned."""
        return self._make_regressor()

    def build(self, spaces: Spaces) -> Self:
        """Prepare for an environment, and return itself."""
        self._angles = spaces.angles
        self._sizes = spaces.observation_size, spaces.action_size
        return self

    @property
    def fitted(self) -> bool:
        """Whether there is something to predict from."""
        return self.regressor.fitted

    @property
    def noise_std(self) -> Tensor:
        """The noise [D] of a step, a standard deviation in the coordinates' units."""
        return self.regressor.noise_std

    def fit(self, episodes: Sequence[Episode]) -> Self:
        """Fit to all transitions of the episodes, in place of all before, and return itself.

        Raises:
            ValueError: if there is no transition; if not all values are finite; if an episode is
                not of the environment that the model was built for.
        """
        if not episodes:
            raise ValueError("episodes must hold at least one; got none.")
        for episode in episodes:
            self._check_episode(episode)
        inputs = torch.cat([self._inputs(e.observations[:-1], e.actions) for e in episodes])
        outputs = torch.cat([self._changes(e) for e in episodes])
        self.regressor.fit(inputs, outputs)
        return self

    def change(self, observation: Tensor, action: Tensor) -> Normal:
        """Return the distribution [P, D] of the change by the action [P, A] at [P, D].

        It is the one that the particle goes by in a rollout: with an ensemble, its member's.
        """
        mean, std = self.regressor.predict_particles(self._inputs(observation, action))
        return Normal(mean, std, validate_args=False)

    def forward(self, observation: Tensor, action: Tensor) -> Normal:
        """Return the distribution [P, D] of the observation after the action; see ``change``."""
        mean, std = self.regressor.predict_particles(self._inputs(observation, action))
        return Normal(observation + mean, std, validate_args=False)

    def expected_change(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance [P, D] of the change: with an ensemble, over its members."""
        return self.regressor.predict(self._inputs(observation, action))

    @torch.no_grad()
    def r_squared(self, episode: Episode) -> Tensor:
        """Return the share [D] of the changes' variance in an episode that is predicted.

        Of an episode that the model was not fitted to, 1 is perfect and 0 no better than the mean.
        A coordinate that does not change at all has none: NaN.
        """
        like = self.noise_std
        observations = episode.observations[:-1].to(like)
        mean, _ = self.expected_change(observations, episode.actions.to(like))
        change = self._changes(episode).to(like)
        residual = change - mean
        return 1 - residual.square().sum(0) / (change - change.mean(0)).square().sum(0)

    def _check_episode(self, episode: Episode) -> None:
        if self._sizes is None:
            return
        found = (episode.observations.shape[-1], episode.actions.shape[-1])
        if found != self._sizes:
            raise ValueError(
                "episodes must have observations and actions of the sizes "
                f"{self._sizes}, those of the environment that the model was built for; got "
                f"{found}."
            )

    def _inputs(self, observation: Tensor, action: Tensor) -> Tensor:
        if observation.shape[:-1] != action.shape[:-1]:
            raise ValueError(
                "observation and action must be [P, D] and [P, A] with the same P; got "
                f"{list(observation.shape)} and {list(action.shape)}."
            )
        return torch.cat([encode_angles(observation, self._angles), action], dim=-1)

    def _changes(self, episode: Episode) -> Tensor:
        before, after = episode.observations[:-1], episode.observations[1:]
        return angle_changes(after - before, self._angles)
