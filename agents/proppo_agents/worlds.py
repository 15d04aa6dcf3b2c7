"""The environment as an agent takes it: actions from -1 to 1, episodes that end, known angles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import FlattenObservation, TimeLimit
from numpy.typing import NDArray
from torch import Tensor

from proppo_agents.arguments import check_count
from proppo_agents.encodings import check_angles
from proppo_agents.parts import Spaces
from proppo_envs import Task, find_task


@dataclass(frozen=True)
class World:
    """A real environment.

    Attributes:
        env: to act in; its observations are [D] numbers, its actions [A] numbers from -1 to 1.
        spaces: their sizes, and what is known of angles.
        episode_steps: after how many an episode ends, if not before.
        task: what ``proppo_envs`` knows of it, or None.
        options: with which it was made.
        low: [A], of the actions that the environment itself takes; -1 is turned into it.
        high: [A]; 1 is turned into it.
    """

    env: gymnasium.Env[Any, Any] = field(repr=False)
    spaces: Spaces
    episode_steps: int
    task: Task | None
    options: dict[str, Any]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def rescaled(self) -> bool:
        """Whether the environment's own actions have other bounds than -1 and 1."""
        return _are_others(self.low, self.high)

    def own_action(self, action: Tensor) -> Tensor:
        """Return actions [..., A] from -1 to 1 in the environment's own units."""
        if not self.rescaled:
            return action
        low, high = (torch.tensor(bound).to(action) for bound in (self.low, self.high))
        own: Tensor = _between(low, high, action)
        return own


def make_world(
    environment: str,
    options: dict[str, Any] | None = None,
    episode_steps: int | None = None,
    angles: Sequence[int] | None = None,
    horizon: int | None = None,
) -> World:
    """Make an environment, and put it into the wrappers that it needs.

    Actions within other bounds than -1 and 1 are rescaled, observations of several axes flattened,
    and episodes ended after ``episode_steps`` (TimeLimit).

    Args:
        environment: what ``gymnasium.make`` takes. Those that ``proppo_envs.find_task`` knows are
            made by their task.
        options: keyword arguments for it.
        episode_steps: length of an episode; None: the environment's own.
        angles: the coordinates of the observation that are angles (rad); None: those that are known
            of the task, or none.
        horizon: the length of an episode where neither ``episode_steps`` nor the environment tells.

    Raises:
        ValueError: if its spaces are not boxes, if its actions have no bounds, if its episodes have
            no end, or there are no such angles.
    """
    given = dict(options or {})
    try:
        task = find_task(environment)
    except ValueError:  # one that proppo_envs does not know
        task = None
    env = gymnasium.make(environment, **given) if task is None else task.make(**given)
    low, high = _action_bounds(environment, env.action_space)
    size = _observation_size(environment, env.observation_space)
    if len(env.observation_space.shape or ()) != 1:
        env = FlattenObservation(env)
    own = None if env.spec is None else env.spec.max_episode_steps
    if episode_steps is not None:
        check_count("episode_steps", episode_steps)
    steps = next((count for count in (episode_steps, own, horizon) if count is not None), None)
    if steps is None:
        raise ValueError(
            f"episode_steps: {environment} does not say after how many steps an episode ends "
            "(max_episode_steps); say it, by episode_steps or horizon."
        )
    if own is not None and steps > own:
        raise ValueError(
            f"episode_steps: {environment} ends its episodes after {own} steps already; got "
            f"{steps}. Give environment_options: {{max_episode_steps: {steps}}}."
        )
    if own is None or steps < own:
        env = TimeLimit(env, max_episode_steps=steps)
    if _are_others(low, high):
        env = _UnitActions(env)
    if angles is None:
        angles = () if task is None else task.angles
    spaces = Spaces(
        observation_size=size,
        action_size=len(low),
        angles=check_angles(angles, size),
        encoded_angles=() if task is None else task.encoded_angles,
    )
    return World(env, spaces, int(steps), task, given, low, high)


class _UnitActions(gymnasium.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """Takes actions from -1 to 1.

    Gymnasium's RescaleAction makes NaN of a component whose bounds are equal.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        space: Any = env.action_space
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, space.shape, space.dtype)
        self._low, self._high = (np.asarray(bound, np.float64) for bound in (space.low, space.high))

    def action(self, action: NDArray[Any]) -> NDArray[Any]:
        """Return an action [A] in the environment's own units."""
        own: NDArray[Any] = _between(self._low, self._high, action)
        return own.astype(action.dtype)


def _between(low: Any, high: Any, action: Any) -> Any:
    """Return actions from -1 to 1 as ones from ``low`` to ``high``."""
    return low + (0.5 * (high - low)) * (action + 1)


def _are_others(low: Sequence[float], high: Sequence[float]) -> bool:
    """Return whether bounds are others than -1 and 1."""
    return any(value != -1 for value in low) or any(value != 1 for value in high)


def _action_bounds(
    name: str, space: gymnasium.Space[Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not (
        isinstance(space, gymnasium.spaces.Box)
        and len(space.shape) == 1
        and np.issubdtype(space.dtype, np.floating)
    ):
        raise ValueError(
            f"environment: the actions of {name} must be a Box of [A] floating point numbers; got "
            f"{space}. Rollouts through a model need continuous actions: take an environment that "
            "has them, or wrap this one."
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"environment: the actions of {name} must have finite bounds; got {space}. "
            "gymnasium.wrappers.ClipAction does not give them; write a wrapper that does."
        )
    return tuple(map(float, space.low)), tuple(map(float, space.high))


def _observation_size(name: str, space: gymnasium.Space[Any]) -> int:
    if not isinstance(space, gymnasium.spaces.Box) or not np.prod(space.shape):
        raise ValueError(
            f"environment: the observations of {name} must be a Box of at least one number; got "
            f"{space}. gymnasium.wrappers.FlattenObservation makes one of a Dict or Tuple."
        )
    return int(np.prod(space.shape))
