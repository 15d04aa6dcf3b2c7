"""What an agent needs to know of an environment beyond its spaces: the cost, and the angles.

| id                          | D  | A | angles | sine and cosine at | cost is of         |
|-----------------------------|----|---|--------|--------------------|--------------------|
| `CartPoleSwingUp-v0`        | 4  | 1 | 2      |                    | after              |
| `CartPoleBalance-v0`        | 4  | 1 | 2      |                    | after              |
| `CartDoublePoleSwingUp-v0`  | 6  | 1 | 2, 4   |                    | after              |
| `Pendulum-v1`               | 3  | 1 |        | (1, 0)             | before, action     |
| `InvertedPendulum-v5`       | 4  | 1 |        |                    | after              |
| `InvertedDoublePendulum-v5` | 9  | 1 |        | (1, 3), (2, 4)     | after              |
| `Reacher-v5`                | 10 | 2 |        | (2, 0), (3, 1)     | action, after      |
| `HalfCheetah-v5`            | 18 | 6 | 2      |                    | all three          |
| `Hopper-v5`                 | 12 | 3 | 2      |                    | all three          |

The last five need MuJoCo (``pip install "lightning-proppo[mujoco]"``). HalfCheetah and Hopper are
rewarded for their forward motion, which Gymnasium's default observation does not tell; these two
are made with ``exclude_current_positions_from_observation=False``. InvertedDoublePendulum's reward
depends on velocities that it observes clipped; it is wrapped in
:class:`proppo_envs.inverted_double_pendulum.RewardObservedState`. Hence :meth:`Task.make`: what
``gymnasium.make`` makes of these three ids alone has other observations or rewards.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import gymnasium
from gymnasium.error import DependencyNotInstalled

from proppo_envs import task_costs as costs
from proppo_envs.inverted_double_pendulum import RewardObservedState
from proppo_envs.registration import (
    CART_DOUBLE_POLE_SWING_UP,
    CARTPOLE_BALANCE,
    CARTPOLE_SWING_UP,
)
from proppo_envs.task_costs import StepCost

_PREFIX = "proppo_envs:"


@dataclass(frozen=True)
class Task:
    """One environment with its cost as a torch function.

    Attributes:
        id: what ``gymnasium.make`` takes.
        cost_class: of the cost, whose fields are the options that change the reward.
        angles: coordinates of the observation that are angles (rad) of joints without a stop, not
            wrapped: what a model should see by sine and cosine.
        encoded_angles: pairs of coordinates (sine, cosine) of angles that the environment itself
            observes in this way.
        options: names and values with which it must be made for the cost to be a function of its
            observations.
        wrapper: in which it must be put for the same reason, called with it and with those options
            that are fields of the cost.
        extra: of this distribution, that the environment needs.
    """

    id: str
    cost_class: type[StepCost]
    angles: tuple[int, ...] = ()
    encoded_angles: tuple[tuple[int, int], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    wrapper: Callable[..., gymnasium.Env[Any, Any]] | None = None
    extra: str | None = None

    @property
    def observation_size(self) -> int:
        """The number D of coordinates of an observation."""
        return self.cost_class.observation_size

    @property
    def action_size(self) -> int:
        """The number A of coordinates of an action."""
        return self.cost_class.action_size

    def make(self, **options: Any) -> gymnasium.Env[Any, Any]:
        """Make the environment.

        Args:
            **options: for ``gymnasium.make``, besides :attr:`options`.

        Returns:
            The environment, with the wrappers that Gymnasium puts around it.

        Raises:
            ValueError: an option contradicts :attr:`options`.
            gymnasium.error.DependencyNotInstalled: the environment needs an extra that is missing.
        """
        self._check(options)
        try:
            env = gymnasium.make(self.id, **{**dict(self.options), **options})
        except DependencyNotInstalled as error:
            if self.extra is None:
                raise
            raise DependencyNotInstalled(
                f'{self.id} needs what is missing: pip install "lightning-proppo[{self.extra}]"'
            ) from error
        return env if self.wrapper is None else self.wrapper(env, **self._of_cost(options))

    def cost(self, **options: Any) -> StepCost:
        """Make the cost of the environment that :meth:`make` makes with the same options.

        Args:
            **options: of the environment. Those that do not change the reward do not matter here;
                whether there are such options at all, ``gymnasium.make`` decides.

        Returns:
            A function of ``observation`` [..., D], ``action`` [..., A] and ``next_observation``
            [..., D] to costs [...].

        Raises:
            ValueError: under one of the options the cost would not be the environment's.
        """
        self._check(options)
        return self.cost_class(**self._of_cost(options))

    def _of_cost(self, options: Mapping[str, Any]) -> dict[str, Any]:
        known = {one.name for one in dataclasses.fields(self.cost_class)}  # type: ignore[arg-type]
        return {name: options[name] for name in known & set(options)}

    def _check(self, options: Mapping[str, Any]) -> None:
        for name, needed in self.options:
            if options.get(name, needed) != needed:
                raise ValueError(
                    f"options: the cost of {self.id} needs {name}={needed!r}, got {options[name]!r}"
                )
        for name in self.cost_class.unsupported:
            if name in options:
                raise ValueError(
                    f"options: the cost of {self.id} holds only for the default {name}, got "
                    f"{options[name]!r}"
                )


_WITH_POSITION = (("exclude_current_positions_from_observation", False),)

_TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.id.removeprefix(_PREFIX): task
        for task in (
            Task(_PREFIX + CARTPOLE_SWING_UP, costs.CartPoleCost, angles=(2,)),
            Task(_PREFIX + CARTPOLE_BALANCE, costs.CartPoleCost, angles=(2,)),
            Task(_PREFIX + CART_DOUBLE_POLE_SWING_UP, costs.CartDoublePoleCost, angles=(2, 4)),
            Task("Pendulum-v1", costs.PendulumCost, encoded_angles=((1, 0),)),
            Task("InvertedPendulum-v5", costs.InvertedPendulumCost, extra="mujoco"),
            Task(
                "InvertedDoublePendulum-v5",
                costs.InvertedDoublePendulumCost,
                encoded_angles=((1, 3), (2, 4)),
                wrapper=RewardObservedState,
                extra="mujoco",
            ),
            Task(
                "Reacher-v5",
                costs.ReacherCost,
                encoded_angles=((2, 0), (3, 1)),
                extra="mujoco",
            ),
            Task(
                "HalfCheetah-v5",
                costs.HalfCheetahCost,
                angles=(2,),
                options=_WITH_POSITION,
                extra="mujoco",
            ),
            Task(
                "Hopper-v5",
                costs.HopperCost,
                angles=(2,),
                options=_WITH_POSITION,
                extra="mujoco",
            ),
        )
    }
)


def task_ids() -> list[str]:
    """List the ids of all tasks, as :func:`find_task` and ``gymnasium.make`` take them."""
    return [task.id for task in _TASKS.values()]


def find_task(environment_id: str) -> Task:
    """Look a task up.

    Args:
        environment_id: what ``gymnasium.make`` takes; ``proppo_envs:`` may stand in front or not.

    Returns:
        The task.

    Raises:
        ValueError: there is none of this id. An environment of one's own needs none: its agent is
            told the cost and the angles instead.
    """
    name = str(environment_id).removeprefix(_PREFIX)
    if name in _TASKS:
        return _TASKS[name]
    by_lower = {known.lower(): task.id for known, task in _TASKS.items()}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f" Did you mean {by_lower[close[0]]!r}?" if close else ""
    raise ValueError(
        f"environment_id: expected one of {', '.join(task_ids())}; got {environment_id!r}.{hint}"
    )
