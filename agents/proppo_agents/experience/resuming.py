"""What a training needs, beside its weights, to go on where it was broken off, to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from lightning_proppo.installed_lightning import rank_zero_warn
from proppo_agents.experience.episodes import Episode
from proppo_agents.experience.files import (
    StoredEpisode,
    digest_of_arrays,
    read_episodes,
    without_doubles,
)

# What is noted of an episode: the environment's generators after it.
GENERATORS = "generators"
# And what makes it the one that a run comes to next.
_SAME = ("environment", "environment_options", "steps", "seed", "actions", "policy")


@dataclass
class Progress:
    """Where a training stands, in what a checkpoint holds of it besides episodes and trials.

    Attributes:
        begun: the epoch whose trial has begun last; None: none yet.
        concluded: after how many gradient steps the final policy had its episode; None: not yet.
        search_started: how many trials there were when the policy was last drawn at random.
        predicted: the costs [] of an episode by the model, in each step since the last trial.
        best_trial: the trial of the best policy so far; None: no policy has had one.
        best_policy: that policy's parameters and buffers.
    """

    begun: int | None = None
    concluded: int | None = None
    search_started: int = 0
    predicted: list[Tensor] = field(default_factory=list)
    best_trial: int | None = None
    best_policy: dict[str, Tensor] = field(default_factory=dict)


class LeftOver:
    """Episodes in a run's folder that its checkpoint does not know: it was killed after them.

    The run that goes on comes to the same points again, with the same seeds and policies, and takes
    these episodes there instead of acting once more.

    Args:
        folder: of the run's episodes, or None.
        known: those that the training has already.

    Raises:
        EpisodeFileError: if a file cannot be read.
    """

    def __init__(self, folder: Path | None, known: Sequence[Episode]) -> None:
        self._folder = folder
        there = folder is not None and any(folder.glob("*.npz"))
        self._left = without_doubles(read_episodes(folder), known) if folder and there else []
        self._said = False

    def take(self, about: Mapping[str, Any], env: gymnasium.Env[Any, Any]) -> Episode | None:
        """Return the episode that was acted at this point of the training, if there is one.

        Args:
            about: what would be noted of it.
            env: whose generators are put where they were after it.
        """
        for place, each in enumerate(self._left):
            if each.about.get("complete") is True and _key(each.about) == _key(about):
                del self._left[place]
                set_generators(env, each.about.get(GENERATORS, {}))
                return each.episode
        if self._left and not self._said:
            self._said = True
            rank_zero_warn(
                f"{_listed(self._left)} in {self._folder}: this training does not come to the same "
                "point (another policy or seed acts), or the episode was broken off. It stays "
                "there, and a new one is acted. To learn from it too, start with --model.data."
            )
        return None


def digest_of_policy(policy: nn.Module) -> str:
    """Return what tells a policy from others: 16 hexadecimal digits made of its numbers."""
    state = policy.state_dict()
    return digest_of_arrays({name: value.detach().cpu().numpy() for name, value in state.items()})


def same_folder(first: str | Path | None, second: Path | None) -> bool:
    """Whether two paths are there and lead to the same folder."""
    if first is None or second is None or not second.exists():
        return False
    return Path(first).exists() and Path(first).samefile(second)


def generators_of(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """Return the states of an environment's generators, its own and its actions', in plain values.

    Episodes are seeded; these are for an environment whose ``reset`` does not heed the seed.
    """
    return {
        name: _without_arrays(generator.bit_generator.state)
        for name, generator in _generators(env).items()
    }


def set_generators(env: gymnasium.Env[Any, Any], states: Mapping[str, Any]) -> None:
    """Put back what :func:`generators_of` returned; a generator of another kind is left alone."""
    for name, generator in _generators(env).items():
        state = states.get(name)
        present = generator.bit_generator.state
        if state is not None and state["bit_generator"] == present["bit_generator"]:
            generator.bit_generator.state = _like(state, present)


def stacked(values: Sequence[Tensor]) -> Tensor:
    """Return numbers [] as a tensor [N] on the CPU, also if there are none."""
    return torch.stack([value.cpu() for value in values]) if values else torch.empty(0)


def _generators(env: gymnasium.Env[Any, Any]) -> dict[str, np.random.Generator]:
    return {"environment": env.unwrapped.np_random, "actions": env.action_space.np_random}


def _without_arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_arrays(each) for name, each in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _like(value: Any, present: Any) -> Any:
    if isinstance(present, Mapping):
        return {name: _like(value[name], each) for name, each in present.items()}
    return np.array(value, present.dtype) if isinstance(present, np.ndarray) else value


def _key(about: Mapping[str, Any]) -> str:
    # As a file has it.
    return json.dumps([about.get(name) for name in _SAME], default=str, sort_keys=True)


def _listed(left: Sequence[StoredEpisode]) -> str:
    names = [each.path.name for each in left]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
