"""Systems to act in: Gymnasium environments, and the chaotic recurrent network.

Importing this package registers its environments with Gymnasium, so that
``gymnasium.make("proppo_envs:CartPoleSwingUp-v0")`` works wherever it is installed.
"""

from proppo_envs.cartpole import CartPoleSwingUpEnv
from proppo_envs.chaotic_rnn import ChaoticRNN
from proppo_envs.costs import tip_distance_cost
from proppo_envs.registration import CARTPOLE_SWING_UP, register_environments
from proppo_envs.success import is_success

register_environments()

__all__ = [
    "CARTPOLE_SWING_UP",
    "CartPoleSwingUpEnv",
    "ChaoticRNN",
    "is_success",
    "register_environments",
    "tip_distance_cost",
]
