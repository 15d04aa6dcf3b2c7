"""What every cost does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from proppo_agents.experience.episodes import Episode
from proppo_agents.parts import Part
from proppo_agents.worlds import World

ARGUMENTS = ("observation", "action", "next_observation")


class Cost(Part):
    """The cost of a step of a rollout, differentiable.

    Attributes:
        of_environment: whether it is the environment's: ``reward_offset`` less its reward, known or
            learned.
        reward_offset: the environment's reward where the cost is 0.
        uses: those of the arguments that the cost depends on. Estimators that shape the state
            (GS) look at these alone.
    """

    of_environment: ClassVar[bool]
    reward_offset: float = 0.0
    uses: tuple[str, ...] = ARGUMENTS

    @abstractmethod
    def build(self, world: World) -> Self:
        """Prepare for an environment, and return itself.

        Raises:
            ValueError: if it does not go with the environment.
        """

    @abstractmethod
    def forward(
        self,
        observation: Tensor | None = None,
        action: Tensor | None = None,
        next_observation: Tensor | None = None,
    ) -> Tensor:
        """Return the costs [P].

        Args:
            observation: [P, D], before the step.
            action: [P, A], in [-1, 1].
            next_observation: [P, D], after the step.

        Those that are not among ``uses`` can be left out.
        """

    def fit(self, episodes: Sequence[Episode]) -> None:
        """Learn from all episodes so far, where there is something to learn."""
        del episodes

    @property
    def learns(self) -> bool:
        """Whether ``fit`` does anything."""
        return type(self).fit is not Cost.fit

    @torch.no_grad()
    def cost_of(self, episode: Episode, like: Tensor) -> float:
        """Return the sum of a real episode's costs.

        Args:
            episode: of H steps.
            like: of the dtype and on the device that costs are computed in.
        """
        if self.of_environment:
            return self.reward_offset * len(episode.rewards) - episode.total
        x, u = episode.observations.to(like), episode.actions.to(like)
        return float(self(**self.arguments(x[:-1], u, x[1:])).sum())

    def arguments(
        self, observation: Tensor, action: Tensor, next_observation: Tensor
    ) -> dict[str, Tensor]:
        """Return those that the cost depends on, by their names."""
        given = dict(zip(ARGUMENTS, (observation, action, next_observation), strict=True))
        return {name: given[name] for name in self.uses}
