"""What callbacks that look at an agent's real episodes have in common."""

from __future__ import annotations

from typing import Any

from lightning_proppo.installed_lightning import pl
from proppo_agents.experience.episodes import Episode, PolicyFunction


class EpisodeCallback(pl.Callback):
    """A callback that is told of each real episode of the training."""

    def on_episode(
        self, trainer: Any, agent: Any, episode: Episode, policy: PolicyFunction | None
    ) -> None:
        """Look at an episode; called on every rank.

        The agent does not have it among its episodes yet, and its model has not been fitted to it.
        What is drawn here from the global generators must be undone: it is drawn on one rank.

        Args:
            trainer: the Trainer.
            agent: whose episode it is.
            episode: what was seen and done.
            policy: that acted; None: random actions.
        """


def tell_callbacks(agent: Any, episode: Episode, policy: PolicyFunction | None) -> None:
    """Tell those of an agent's Trainer, if it has one, of an episode."""
    trainer = agent._trainer
    if trainer is None:
        return
    for callback in trainer.callbacks:
        if isinstance(callback, EpisodeCallback):
            callback.on_episode(trainer, agent, episode, policy)
