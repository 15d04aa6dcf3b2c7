"""The list of tasks: look-up, options, what is said where something is missing."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys

import gymnasium
import pytest

from proppo_envs import find_task, task_ids, tasks
from proppo_envs.task_costs import HalfCheetahCost, StepCost


@pytest.mark.parametrize("name", task_ids())
def test_every_task_is_found_with_the_prefix_and_without(name: str) -> None:
    task = find_task(name)
    assert task.id == name
    assert issubclass(task.cost_class, StepCost)
    bare = name.removeprefix("proppo_envs:")
    assert find_task(bare) is task
    assert gymnasium.spec(bare).id == bare


@pytest.mark.parametrize("name", task_ids())
def test_the_table_of_tasks_is_that_of_the_docstring(name: str) -> None:
    task = find_task(name)
    row = next(line for line in tasks.__doc__.splitlines() if f"`{name.split(':')[-1]}`" in line)
    _, _, size, actions, angles, pairs, _, _ = (cell.strip() for cell in row.split("|"))
    assert (int(size), int(actions)) == (task.observation_size, task.action_size)
    assert angles == ", ".join(map(str, task.angles))
    assert pairs == ", ".join(map(str, task.encoded_angles))


@pytest.mark.parametrize("name", task_ids())
def test_tasks_and_costs_can_be_copied_and_pickled(name: str) -> None:
    task = find_task(name)
    for one in (task, task.cost()):
        assert copy.deepcopy(one) == one
        assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CartPoleSwingup-v0", "proppo_envs:CartPoleSwingUp-v0"),
        ("proppo_envs:cartpolebalance-v0", "proppo_envs:CartPoleBalance-v0"),
        ("Pendulum-v0", "Pendulum-v1"),
        ("InvertedDoublePendulum-v4", "InvertedDoublePendulum-v5"),
        ("Half-Cheetah-v5", "HalfCheetah-v5"),
    ],
)
def test_an_unknown_id_is_told_what_may_be_meant(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=r"^environment_id: expected one of ") as caught:
        find_task(name)
    assert str(caught.value).endswith(f"; got {name!r}. Did you mean {meant!r}?")
    assert all(known in str(caught.value) for known in task_ids())


def test_a_quite_different_id_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"Hopper-v5; got 'x'\.$"):
        find_task("x")


def test_options_that_do_not_change_the_reward_do_not_matter_to_the_cost() -> None:
    task = find_task("HalfCheetah-v5")
    cost = task.cost(ctrl_cost_weight=0.2, reset_noise_scale=0.0, render_mode="rgb_array")
    assert cost == HalfCheetahCost(ctrl_cost_weight=0.2)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own: Gymnasium may have imported its MuJoCo modules here already.
    code = (
        "import sys\n"
        "sys.modules['mujoco'] = None\n"
        "from proppo_envs import find_task\n"
        "find_task('Reacher-v5').make()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(r'Reacher-v5 needs .*pip install "lightning-proppo\[mujoco\]"', done.stderr)


def test_importing_the_package_imports_neither_mujoco_nor_pygame() -> None:
    code = "import sys, proppo_envs; assert not {'mujoco', 'pygame'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
