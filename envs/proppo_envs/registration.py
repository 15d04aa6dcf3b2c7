"""The names under which Gymnasium knows our environments."""

from __future__ import annotations

import gymnasium

CARTPOLE_SWING_UP = "CartPoleSwingUp-v0"


def register_environments() -> None:
    """Register the environments with Gymnasium; those already registered are left alone.

    Gymnasium warns when an id is registered again, which a reload of the package would do.
    """
    if CARTPOLE_SWING_UP not in gymnasium.registry:
        gymnasium.register(
            id=CARTPOLE_SWING_UP,
            # A string, not the class: the spec can be pickled and sent to another process.
            entry_point="proppo_envs.cartpole:CartPoleSwingUpEnv",
            max_episode_steps=25,
        )
