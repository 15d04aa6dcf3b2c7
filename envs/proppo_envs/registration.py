"""The names under which Gymnasium knows our environments."""

from __future__ import annotations

from typing import Any

import gymnasium

CARTPOLE_SWING_UP = "CartPoleSwingUp-v0"
CARTPOLE_BALANCE = "CartPoleBalance-v0"
CART_DOUBLE_POLE_SWING_UP = "CartDoublePoleSwingUp-v0"

# Strings, not the classes: a spec can be pickled and sent to another process.
_CARTPOLE = "proppo_envs.cartpole:CartPoleSwingUpEnv"
_CART_DOUBLE_POLE = "proppo_envs.cart_double_pole:CartDoublePoleSwingUpEnv"


def register_environments() -> None:
    """Register the environments with Gymnasium; those already registered are left alone.

    Gymnasium warns when an id is registered again, which a reload of the package would do.
    """
    _register(CARTPOLE_SWING_UP, _CARTPOLE, max_episode_steps=25)
    _register(CARTPOLE_BALANCE, _CARTPOLE, max_episode_steps=25, initial_angle="upright")
    _register(CART_DOUBLE_POLE_SWING_UP, _CART_DOUBLE_POLE, max_episode_steps=100)


def _register(name: str, entry_point: str, *, max_episode_steps: int, **options: Any) -> None:
    if name not in gymnasium.registry:
        gymnasium.register(
            id=name,
            entry_point=entry_point,
            max_episode_steps=max_episode_steps,
            kwargs=options,
        )
