"""The real experience of a training: where it is kept, and what is taken from earlier ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import torch

from lightning_proppo.installed_lightning import rank_zero_warn
from proppo_agents.experience.episodes import Episode, PolicyFunction, collect_episode
from proppo_agents.experience.files import (
    EpisodeFileError,
    EpisodeFolder,
    StoredEpisode,
    read_episodes,
    without_doubles,
)
from proppo_agents.experience.resuming import GENERATORS, generators_of
from proppo_agents.experience.trials import Trial


def run_folder(trainer: Any, name: str) -> Path | None:
    """Return the folder ``name`` in that of a run; all ranks have to call this.

    Without a logger that is the Trainer's ``default_root_dir``, as it is for Lightning's
    checkpoints.

    Args:
        trainer: the Trainer, or None.
        name: of the folder; it is not made.

    Returns:
        Its path; None without a Trainer, and with ``fast_dev_run``, which leaves nothing behind.
    """
    if trainer is None or trainer.fast_dev_run:
        return None
    return Path(trainer.log_dir or trainer.default_root_dir) / name


def collect_and_keep(
    env: gymnasium.Env[Any, Any],
    policy: PolicyFunction | None,
    seed: int,
    folder: EpisodeFolder | None,
    about: dict[str, Any],
) -> Episode:
    """Act for one episode, and have it on the disk before anything else can fail.

    Where the environment, the policy or the user breaks the episode off, the part of it that was
    collected is kept too (``"complete": false`` in the file), and the exception goes on.

    Args:
        env: as :func:`~proppo_agents.experience.episodes.collect_episode` takes it, and ``policy``
            and ``seed``.
        policy: acts; None: random actions.
        seed: of the episode.
        folder: where it is kept; None: nowhere.
        about: plain values on where it comes from.
    """
    told = {**about, "seed": seed, "actions": "random" if policy is None else "policy"}

    def keep(episode: Episode, complete: bool) -> None:
        if folder is not None:
            after = {GENERATORS: generators_of(env)}
            folder.add(episode, {**told, **after, "complete": complete})

    episode = collect_episode(env, policy, seed, broken_off=lambda part: keep(part, False))
    keep(episode, True)
    return episode


def earlier_episodes(
    source: str | Path | None,
    known: Sequence[Episode],
    env: gymnasium.Env[Any, Any],
    environment: str,
) -> list[StoredEpisode]:
    """Return the episodes of a folder that are not known yet, in the order of their names.

    Args:
        source: the folder or one file; None: no episodes.
        known: those that there are already, from a checkpoint say.
        env: whose observations and actions they must be of. If they were collected under another
            id, there is a warning.
        environment: its id.

    Raises:
        EpisodeFileError: if there is none, if a file cannot be read, or has other sizes.
    """
    if source is None:
        return []
    stored = read_episodes(Path(source))
    sizes = (env.observation_space.shape, env.action_space.shape)
    others = set()
    for each in stored:
        observations, actions = each.episode.observations, each.episode.actions
        if (tuple(observations.shape[1:]), tuple(actions.shape[1:])) != sizes:
            raise EpisodeFileError(
                f"{each.path} does not fit {environment}, whose observations and actions have the "
                f"shapes {sizes[0]} and {sizes[1]}; its own have {tuple(observations.shape[1:])} "
                f"and {tuple(actions.shape[1:])}."
            )
        others.add(each.about.get("environment", environment))
    others.discard(environment)
    if others:
        rank_zero_warn(
            f"{source} holds episodes of {', '.join(sorted(others))}; they are taken as if they "
            f"were of {environment}, returns and successes too."
        )
    return without_doubles(stored, known)


def seeds_of(found: Sequence[StoredEpisode]) -> set[int]:
    """Return the seeds that episodes were collected with, where their files tell."""
    return {int(each.about["seed"]) for each in found if each.about.get("seed") is not None}


def new_seed(used: Collection[int]) -> int:
    """Return a seed that PyTorch's global generator draws, none of those that are used.

    A training that is resumed draws the seeds of the one that it goes on from again; a simulated
    episode would be the very one that its data hold.
    """
    while True:
        seed = int(torch.randint(2**31 - 1, ()))
        if seed not in used:
            return seed


def keep_all(
    folder: EpisodeFolder,
    episodes: Sequence[Episode],
    trials: Sequence[Trial],
    found: Sequence[StoredEpisode],
    environment: str,
) -> None:
    """Write what a training starts from, so that its folder has all that it learns from.

    Args:
        folder: where to; what it has already is left alone.
        episodes: of a checkpoint.
        trials: what is known of each of them.
        found: episodes of other folders, written after those.
        environment: its id.
    """
    for episode, trial in zip(episodes, trials, strict=True):
        about = {"steps": trial.steps, "predicted_cost": trial.predicted_cost}
        folder.add(episode, {"environment": environment, **about})
    for each in found:
        folder.add(each.episode, each.about)
