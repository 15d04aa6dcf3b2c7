"""Acting in an environment."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_RETURNED = {
    "reset": ("observation", "info"),
    "step": ("observation", "reward", "terminated", "truncated", "info"),
}
_OLD = "This looks like the old Gym's interface: gymnasium.farama.org/introduction/migration_guide."

# Takes observations [P, D] to actions [P, A]; a policy of this package is one.
PolicyFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Episode:
    """What was seen and done in one episode of H steps, in float64.

    Attributes:
        observations: [H + 1, D].
        actions: [H, A].
        rewards: [H].
        success: whether the environment called it one; None: it does not say.
        terminated: whether what happened in the environment ended it, and not its time.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    success: bool | None
    terminated: bool = False

    @property
    def total(self) -> float:
        """The return: the sum of the rewards."""
        return float(self.rewards.sum())

    def early_end(self, limit: int | None) -> str | None:
        """Return how it ended before its time, in words; None if it did not.

        Args:
            limit: how many steps it could have had; None: that is not known.
        """
        steps = len(self.actions)
        if steps == limit or (limit is None and not self.terminated):
            return None
        of_all = "" if limit is None else f" of {limit}"
        return f"{'terminated' if self.terminated else 'truncated'} at step {steps}{of_all}"

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, as a checkpoint keeps them."""
        return dict(vars(self))


def in_words(early_end: str | None, success: bool | None) -> list[str]:
    """Return what there is to be said of an episode's end: nothing, where nothing is known."""
    said = {True: "success", False: "no success", None: None}[success]
    return [words for words in (early_end, said) if words is not None]


def step_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """Return after how many steps an environment ends its episodes; None: it does not say."""
    return None if env.spec is None else env.spec.max_episode_steps


def collect_episode(
    env: gymnasium.Env[Any, Any],
    policy: PolicyFunction | None,
    seed: int | None = None,
    broken_off: Callable[[Episode], Any] | None = None,
) -> Episode:
    """Act until the environment ends the episode.

    Args:
        env: with Box spaces; its info may hold ``"success"``.
        policy: takes observations [1, D] to actions [1, A]; None: random actions of any space.
        seed: of the episode's noise and random actions; None: go on with the environment's own.
        broken_off: called with the steps so far, if there are any, when an exception ends the
            episode; the exception goes on.

    Whatever is kept or handed on is a copy: environments reuse their arrays, and write into them.

    Raises:
        TypeError: if the policy returns no tensor of numbers.
        ValueError: if the policy's actions, or what the environment gives, are not finite or of
            another shape; if a space of the environment is no Box, or its ``reset`` and ``step``
            are those of the old Gym.
    """
    _check_spaces(env, policy)
    if seed is not None:
        env.action_space.seed(seed)
    observation, _ = _call(env, "reset", seed=seed)
    shape = env.observation_space.shape
    observation = _copy_of(env, "the first observation", observation, shape)
    observations: list[Any] = [observation]
    actions: list[Any] = []
    rewards: list[float] = []
    success: bool | None = None
    terminated = truncated = False

    def so_far() -> Episode:
        # An interrupt may come between two of these lists.
        steps = len(rewards)
        return Episode(
            observations=torch.as_tensor(np.stack(observations[: steps + 1]), dtype=torch.float64),
            actions=torch.as_tensor(np.stack(actions[:steps]), dtype=torch.float64),
            rewards=torch.tensor(rewards, dtype=torch.float64),
            success=success,
            terminated=bool(terminated),
        )

    try:
        while not (terminated or truncated):
            if policy is None:
                action = env.action_space.sample()
            else:
                with torch.no_grad():
                    action = policy(torch.tensor(observation)[None])
                action = _checked_action(env, action, len(actions))
            action = np.array(action, dtype=env.action_space.dtype)
            observation, reward, terminated, truncated, info = _call(env, "step", action.copy())
            step = len(actions)
            observation = _copy_of(env, f"the observation after step {step}", observation, shape)
            observations.append(observation)
            actions.append(action)
            rewards.append(float(_copy_of(env, f"the reward of step {step}", reward, ())))
            success = None if info.get("success") is None else bool(info["success"])
    # Also where the user ends it: a robot's steps are not to be had again.
    except BaseException:
        if rewards and broken_off is not None:
            broken_off(so_far())
        raise
    return so_far()


def _check_spaces(env: gymnasium.Env[Any, Any], policy: PolicyFunction | None) -> None:
    spaces = {"observations": env.observation_space}
    if policy is not None:
        spaces["actions"] = env.action_space
    for name, space in spaces.items():
        if not isinstance(space, gymnasium.spaces.Box):
            raise ValueError(
                f"env: the {name} of {_name(env)} must be a Box; got {space}. Wrap it: "
                "gymnasium.wrappers.FlattenObservation makes one of a Discrete, Dict or Tuple of "
                "observations; actions must be continuous."
            )


def _checked_action(env: gymnasium.Env[Any, Any], action: Any, step: int) -> Any:
    """Return an action [A] of a policy's [1, A]."""
    shape = env.action_space.shape or ()
    if not isinstance(action, Tensor):
        raise TypeError(
            f"policy must return a tensor [1, A] of actions; got {type(action).__name__} at step "
            f"{step}."
        )
    if tuple(action.shape) != (1, *shape):
        raise ValueError(
            f"policy must return actions of shape {[1, *shape]} for {_name(env)}; got "
            f"{list(action.shape)} at step {step}."
        )
    if not bool(action.isfinite().all()):
        raise ValueError(
            f"policy must return finite actions; got {action[0].tolist()} at step {step}. Its "
            "parameters may have become NaN: look at the gradients, and clip them "
            "(gradient_clip_val)."
        )
    return action[0].cpu().numpy()


def _call(env: gymnasium.Env[Any, Any], method: str, *args: Any, **options: Any) -> Any:
    """Return what ``reset`` or ``step`` returns.

    Raises:
        ValueError: if it is not what Gymnasium wants.
    """
    wanted = _RETURNED[method]
    message = f"env: {method} of {_name(env)} must return ({', '.join(wanted)})"
    if method == "reset":
        message = message.replace("must", "must take the keywords seed and options, and")
    try:
        found = getattr(env, method)(*args, **options)
    except (TypeError, ValueError) as error:
        # Most wrappers take apart what is returned before it comes here.
        known = "unpack" in str(error) or "keyword" in str(error)
        if not (known and _raised_by_gymnasium(error)):
            raise
        problem = str(error)
    else:
        if isinstance(found, tuple) and len(found) == len(wanted):
            return found
        problem = f"got {f'{len(found)} values' if isinstance(found, tuple) else type(found)}"
    raise ValueError(f"{message}; {problem}. {_OLD}")


def _raised_by_gymnasium(error: BaseException) -> bool:
    """Return whether an error comes from a wrapper of Gymnasium's, or was raised right here."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith(("gymnasium.", __name__))


def _copy_of(
    env: gymnasium.Env[Any, Any], name: str, value: Any, shape: tuple[int, ...] | None
) -> NDArray[Any]:
    """Return a copy of what the environment gave, in its dtype.

    Raises:
        ValueError: if it is no numbers, of another shape, or not finite.
    """
    copy = np.array(value)
    if copy.dtype.kind not in "fiub":
        raise ValueError(f"env: {name} of {_name(env)} must be numbers; got {value!r}.")
    if copy.shape != shape:
        expected = f"of shape {list(shape)}, as its space is" if shape else "a single number"
        raise ValueError(
            f"env: {name} of {_name(env)} must be {expected}; got one of shape "
            f"{list(copy.shape)}: {copy.tolist()}."
        )
    if not np.isfinite(copy).all():
        raise ValueError(
            f"env: {name} of {_name(env)} must be finite; got {copy.tolist()}. The environment is "
            "at fault, or its simulation has diverged."
        )
    return copy


def _name(env: gymnasium.Env[Any, Any]) -> str:
    return type(env.unwrapped).__name__ if env.spec is None else env.spec.id
