"""The best policy is kept: a task that is solved stays solved."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_proppo import PropagationCallback
from lightning_proppo.cli.resume import last_checkpoint
from lightning_proppo.installed_lightning import pl
from proppo_agents import PILCO, GPDynamics, LinearPolicy, SaturatingCost
from proppo_agents.callbacks.base import EpisodeCallback
from proppo_agents.experience.best import keep_if_best
from proppo_agents.experience.resuming import Progress
from proppo_agents.experience.trials import Trial, is_better

STEPS = 6


class Outcomes(gymnasium.Env[Any, Any]):
    """Its episodes end as it is said beforehand: after so many steps, with so much as a bonus."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    left: ClassVar[list[tuple[int, float]]] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = 0.1 * self.np_random.standard_normal(1)
        self.steps, self.bonus = self.left.pop(0)
        return self.state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state = self.state + 0.1 * float(action[0])
        self.steps -= 1
        terminated = self.steps == 0
        return self.state, -1.0 + terminated * self.bonus, terminated, False, {}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("Outcomes-v0", Outcomes, max_episode_steps=STEPS)
    yield
    del gymnasium.registry["Outcomes-v0"]


class Noting(EpisodeCallback):
    """Notes the policies that acted."""

    def __init__(self) -> None:
        self.policies: list[Tensor] = []

    def on_episode(self, trainer: Any, agent: Any, episode: Any, policy: Any) -> None:
        self.policies.append(weights(agent))


def weights(agent: Any) -> Tensor:
    return nn.utils.parameters_to_vector(agent.policy.parameters()).detach().clone()


def agent(**changes: Any) -> PILCO:
    pl.seed_everything(0, verbose=False)
    return PILCO(
        "Outcomes-v0",
        cost=SaturatingCost([0.0], width=0.5),
        dynamics=GPDynamics(steps=2),
        policy=LinearPolicy(),
        spread=[1.0],
        particles=4,
        steps=2,
        candidates=2,
        **changes,
    )


def fit(
    module: PILCO, folder: Path, outcomes: list[tuple[int, float]], epochs: int, **options: Any
) -> list[Tensor]:
    """Train, and return the policies that acted."""
    noting = Noting()
    Outcomes.left[:] = outcomes
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=pl.loggers.CSVLogger(folder, name="", version=""),
        callbacks=[PropagationCallback("TP"), noting],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        enable_checkpointing=options.pop("enable_checkpointing", True),
    )
    trainer.fit(module, **options)
    return noting.policies


# Random actions, a failure, the goal in half the time, a failure, another one.
SOLVED = [(STEPS + 1, 0.0), (STEPS + 1, 0.0), (3, 100.0), (STEPS + 1, 0.0), (STEPS + 1, 0.0)]


def test_the_policy_that_solved_the_task_is_given_back_and_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = agent()
    with caplog.at_level(logging.INFO):
        policies = fit(module, tmp_path, SOLVED, epochs=4)
    assert [trial.real_return for trial in module.trials] == [-6, -6, 97, -6, -6]
    # Its cost is that of three steps: by the agent's cost alone nothing could be said.
    assert module.trials[2].real_cost < module.trials[1].real_cost
    assert torch.equal(weights(module), policies[2])
    assert not any(torch.equal(policies[2], policies[i]) for i in (1, 3, 4))
    assert module.best_checkpoint == tmp_path / "best.ckpt"
    saved = PILCO.load_from_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    assert torch.equal(weights(saved), policies[2])
    said = [
        text for text in caplog.messages if text.startswith(("Trial ", "Policy ", "The policy"))
    ]
    solved = module.trials[2]
    assert said == [
        f"Trial 0: {module.trials[0]}.",
        f"Trial 1: {module.trials[1]}.",
        "Policy given up (patience 1): no return above -6. A new one is drawn.",
        f"Trial 2: return 97, cost {solved.real_cost:.4g} ({solved.predicted_cost:.4g} predicted), "
        "terminated at step 3 of 6.",
        f"Trial 3: {module.trials[3]}.",
        "Policy given up (patience 1): no return above 97. A new one is drawn.",
        f"Trial 4: {module.trials[4]}.",
        "The policy of trial 2 is the best, and is put back.",
    ]


def test_random_actions_are_no_policy_to_be_given_up_or_to_be_the_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = agent(random_episodes=2)
    with caplog.at_level(logging.INFO):
        policies = fit(module, tmp_path, [SOLVED[2], SOLVED[0], SOLVED[0]], epochs=1)
    assert [trial.real_return for trial in module.trials] == [97, -6, -6]
    assert torch.equal(weights(module), policies[2])
    assert "given up" not in caplog.text


def test_a_run_that_goes_on_keeps_its_best_policy(tmp_path: Path) -> None:
    policies = fit(agent(), tmp_path, SOLVED[:4], epochs=3)
    assert torch.equal(weights(PILCO.load_from_checkpoint(tmp_path / "best.ckpt")), policies[2])
    # It is no checkpoint to go on from, which Lightning's own is.
    last = last_checkpoint(tmp_path)
    assert last is not None
    assert last.parent.name == "checkpoints"
    for folder in (tmp_path, tmp_path / "moved"):
        resumed = agent()
        fit(resumed, folder, SOLVED[1:2] * 2, epochs=4, ckpt_path=last)
        assert len(resumed.trials) == 5
        assert torch.equal(weights(resumed), policies[2])
        saved = PILCO.load_from_checkpoint(folder / "best.ckpt", weights_only=True)
        assert torch.equal(weights(saved), policies[2])
        assert not (folder / "best-v1.ckpt").exists()


def test_best_policies_of_other_runs_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    fit(agent(), tmp_path, SOLVED[:2], epochs=1)
    first = (tmp_path / "best.ckpt").read_bytes()
    for number in (1, 2):
        module = agent()
        fit(module, tmp_path, SOLVED[:2], epochs=1)
        assert module.best_checkpoint == tmp_path / f"best-v{number}.ckpt"
        assert module.best_checkpoint.is_file()
    assert (tmp_path / "best.ckpt").read_bytes() == first


def test_a_run_without_checkpoints_puts_its_best_policy_back_all_the_same(tmp_path: Path) -> None:
    module = agent()
    policies = fit(module, tmp_path, SOLVED, epochs=4, enable_checkpointing=False)
    assert module.best_checkpoint is None
    assert not list(tmp_path.rglob("*.ckpt"))
    assert torch.equal(weights(module), policies[2])


# -- comparing ---------------------------------------------------------------------------------


def trial(real_return: float, predicted_cost: float = 1.0, real_cost: float = 1.0) -> Trial:
    return Trial(1, predicted_cost, real_cost, real_return, success=None, early_end=None)


@pytest.mark.parametrize(
    ("trials", "best"),
    [
        # By the return, whatever the costs.
        ([trial(1.0, real_cost=0.0), trial(2.0, real_cost=9.0), trial(-3.0)], 1),
        # Of equal returns, by the model.
        ([trial(2.0, predicted_cost=5.0), trial(2.0, predicted_cost=4.0), trial(0.0)], 1),
        # All the same: the first.
        ([trial(2.0), trial(2.0), trial(2.0)], 0),
        # No rewards: by the real cost.
        ([trial(0.0, 1.0, 3.0), trial(0.0, 2.0, 2.0), trial(0.0, 0.0, 4.0)], 1),
        # The first reward of all.
        ([trial(0.0, 1.0, 3.0), trial(0.0, 2.0, 2.0), trial(1.0, 9.0, 9.0)], 2),
    ],
)
def test_the_best_trial_is_that_of_the_best_return(trials: list[Trial], best: int) -> None:
    assert all(is_better(trials, best, i) for i in range(best))
    assert not any(is_better(trials, i, best) for i in range(len(trials)))
    progress, policy = Progress(), nn.Linear(1, 1)
    for count in range(1, len(trials) + 1):
        with torch.no_grad():
            policy.weight.fill_(float(count - 1))
        keep_if_best(progress, trials[:count], policy)
    assert progress.best_trial == best
    assert float(progress.best_policy["weight"]) == best
