"""Systems to act in: Gymnasium environments, and the chaotic recurrent network.

Importing this package registers its environments with Gymnasium, so that
``gymnasium.make("proppo_envs:CartPoleSwingUp-v0")`` works wherever it is installed.
:func:`find_task` knows the costs of these and of some of Gymnasium's own, as torch functions.
"""

from proppo_envs.cart_double_pole import CartDoublePoleSwingUpEnv
from proppo_envs.cartpole import CartPoleSwingUpEnv
from proppo_envs.chaotic_rnn import ChaoticRNN
from proppo_envs.costs import tip_distance_cost
from proppo_envs.registration import (
    CART_DOUBLE_POLE_SWING_UP,
    CARTPOLE_BALANCE,
    CARTPOLE_SWING_UP,
    register_environments,
)
from proppo_envs.success import is_success
from proppo_envs.task_costs import StepCost
from proppo_envs.tasks import Task, find_task, task_ids

register_environments()

__all__ = [
    "CARTPOLE_BALANCE",
    "CARTPOLE_SWING_UP",
    "CART_DOUBLE_POLE_SWING_UP",
    "CartDoublePoleSwingUpEnv",
    "CartPoleSwingUpEnv",
    "ChaoticRNN",
    "StepCost",
    "Task",
    "find_task",
    "is_success",
    "register_environments",
    "task_ids",
    "tip_distance_cost",
]
