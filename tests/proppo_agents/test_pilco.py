"""The PILCO-style agent: what an epoch does, logs and saves."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

from lightning_proppo import PropagationCallback, PropagationError, PropagationManager
from lightning_proppo.cli import load_module
from lightning_proppo.installed_lightning import pl
from proppo_agents import PILCO, GPDynamics, RBFPolicy
from proppo_agents.experience.episodes import Episode, collect_episode
from proppo_agents.experience.trials import Trial

SMALL = {"particles": 8, "steps": 3, "candidates": 2}


def small(**changes: Any) -> PILCO:
    torch.manual_seed(0)
    parts = {"dynamics": GPDynamics(steps=5), "policy": RBFPolicy(basis_functions=10)}
    return PILCO(**(SMALL | parts | changes))


def fit(module: PILCO, folder: Path, epochs: int = 2, **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=pl.loggers.CSVLogger(folder, name="", version=""),
        callbacks=[PropagationCallback("TP")],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(module)
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[PILCO, Path]:
    folder = tmp_path_factory.mktemp("run")
    module = small()
    trainer = fit(module, folder)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module, folder


def test_an_epoch_is_a_trial(trained: tuple[PILCO, Path]) -> None:
    module, _ = trained
    # One random episode, that of the first epoch's policy, and that of the final policy.
    assert [trial.steps for trial in module.trials] == [0, 3, 6]
    assert module.trials[0].predicted_cost is None
    assert all(trial.predicted_cost is not None for trial in module.trials[1:])
    assert [trial.real_return for trial in module.trials] == [e.total for e in module.episodes]
    # The environment's own cost: what its reward of at most 1 is short of that, in 25 steps.
    assert [trial.real_cost for trial in module.trials] == [25 - e.total for e in module.episodes]


def test_real_costs_and_returns_are_logged_beside_predicted_costs(
    trained: tuple[PILCO, Path],
) -> None:
    module, folder = trained
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("cost", "return"):
        real = {int(r["step"]): float(r[f"real/{name}"]) for r in rows if r[f"real/{name}"]}
        assert real == pytest.approx({t.steps: getattr(t, f"real_{name}") for t in module.trials})
    predicted = [float(row["predicted/cost"]) for row in rows if row["predicted/cost"]]
    assert len(predicted) == 6
    for name in ("real/success", "dynamics/r_squared", "dynamics/noise_std", "propagation/cost"):
        assert any(row[name] for row in rows), name


def test_the_learning_curve_is_drawn(trained: tuple[PILCO, Path]) -> None:
    _, folder = trained
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_is_safe_to_load_and_holds_policy_and_episodes(
    trained: tuple[PILCO, Path],
) -> None:
    module, folder = trained
    loaded = load_module(folder / "last.ckpt")
    assert isinstance(loaded, PILCO)
    x = torch.randn(5, 4)
    assert torch.equal(loaded.act(x), module.act(x))
    assert len(loaded.episodes) == 3
    assert torch.equal(loaded.episodes[1].observations, module.episodes[1].observations)
    assert loaded.trials == module.trials


def test_training_goes_on_from_a_checkpoint(trained: tuple[PILCO, Path], tmp_path: Path) -> None:
    _, folder = trained
    resumed = small()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        default_root_dir=tmp_path,
        callbacks=[PropagationCallback("TP")],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(resumed, ckpt_path=folder / "last.ckpt", weights_only=True)
    assert [trial.steps for trial in resumed.trials] == [0, 3, 6, 6, 9]


def test_evaluation_is_reproducible_and_learns_nothing(trained: tuple[PILCO, Path]) -> None:
    module, _ = trained
    told: list[int] = []
    first = module.evaluate_policy(2, seed=3, progress=told.append)
    assert told == [1, 1]
    assert first == module.evaluate_policy(2, seed=3)
    assert first["returns"][1] == module.evaluate_policy(1, seed=4)["returns"][0]
    assert len(module.episodes) == 3


@pytest.mark.parametrize(
    ("patience", "returns", "expected"),
    [
        (1, [5, 4, 3, 2, 1], [0, 1, 2, 3]),
        (2, [5, 4, 3, 2, 1], [0, 2]),
        (None, [5, 4, 3, 2, 1], [0]),
        # Better than all before: it goes on; then not better any more.
        (1, [5, 6, 7, 7, 0], [0, 3]),
        # A success (20) goes on, though another was better.
        (1, [5, 30, 20, 20, 0], [0]),
        # Nor is what has succeeded given up after worse trials.
        (1, [5, 20, 4, 3, 2], [0]),
        # Unless it was not the present search that did.
        (1, [20, 4, 3, 2, 1], [0, 1, 2, 3]),
        # Waiting starts anew with a new search.
        (2, [9, 4, 3, 2, 1], [0, 2]),
    ],
)
def test_a_policy_that_comes_to_nothing_is_given_up(
    patience: int | None,
    returns: list[int],
    expected: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes = iter(returns)

    def collect(env: Any, policy: Any, seed: int, **options: Any) -> Episode:
        outcome = float(next(outcomes))
        rewards = torch.tensor([outcome], dtype=torch.float64)
        episode = collect_episode(env, policy, seed)
        return replace(episode, rewards=rewards, success=outcome >= 20)

    started = []
    start_search = PILCO.start_search

    def start(self: PILCO) -> None:
        started.append(self.current_epoch)
        start_search(self)

    monkeypatch.setattr("proppo_agents.experience.keeping.collect_episode", collect)
    monkeypatch.setattr(PILCO, "start_search", start)
    fit(small(patience=patience, steps=1), tmp_path, epochs=4)
    assert started == expected


def test_the_start_is_the_best_of_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    module = small(candidates=5, steps=1)
    module.collect(None)
    module.refit()
    module.manager = PropagationManager("TP")
    costs, candidates = [], []
    predict = module.predict

    def told() -> Any:
        found = predict()
        costs.append(float(found[0]))
        candidates.append(module.policy.weights.detach().clone())
        return found

    monkeypatch.setattr(module, "predict", told)
    module.start_search()
    assert len(set(costs)) == 5
    assert torch.equal(module.policy.weights, candidates[costs.index(min(costs))])


def test_in_double_precision_everything_is_double(tmp_path: Path) -> None:
    module = small()
    fit(module, tmp_path, epochs=1, precision="64-true")
    assert module.policy.centres.dtype == torch.float64
    assert module.dynamics.posterior.weights.dtype == torch.float64


def test_the_gradient_is_that_of_the_predicted_cost() -> None:
    torch.set_default_dtype(torch.float64)
    module = small(particles=4)
    module.collect(None)
    module.refit()
    module.manager = PropagationManager("RP")
    weights = module.policy.weights

    def cost() -> torch.Tensor:
        torch.manual_seed(1)
        return module.predict()[0]

    cost().backward()
    assert weights.grad is not None
    step = torch.randn_like(weights)
    with torch.no_grad():
        weights += 1e-5 * step
        above = cost()
        weights -= 2e-5 * step
        below = cost()
    slope = (above - below) / 2e-5
    torch.testing.assert_close((weights.grad * step).sum(), slope, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"particles": 1}, "particles must be at least 2; got 1"),
        ({"horizon": 24}, "horizon must be at least an episode's 25 steps; got 24"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive; got 0.0"),
        ({"spread": (1.0,)}, "spread must be 4 positive numbers"),
        ({"angles": (4,)}, "angles must be distinct coordinates"),
        ({"environment": "CartPole-v1"}, "must be a Box of .* floating point numbers"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        small(**changes)


def test_predicted_costs_are_of_an_episode_whatever_the_horizon() -> None:
    found = []
    for horizon in (None, 30):
        module = small(horizon=horizon)
        module.collect(None)
        module.refit()
        module.manager = PropagationManager("RP")
        torch.manual_seed(1)
        loss, predicted_cost = module.predict()
        assert not predicted_cost.requires_grad
        found.append((float(loss.detach()), float(predicted_cost)))
    (loss, episode_cost), (longer_loss, same_cost) = found
    assert episode_cost == pytest.approx(loss, abs=1e-4)
    assert same_cost == pytest.approx(episode_cost, abs=1e-4)
    assert longer_loss > loss


def test_training_without_a_manager_is_refused_before_an_episode(tmp_path: Path) -> None:
    module = small()
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(PropagationError, match=r"PILCO has no manager; add .*PropagationCallback"):
        trainer.fit(module)
    assert module.episodes == []


def test_rolling_out_without_a_model_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="refit"):
        small().predict()


def test_a_trial_says_in_words_what_came_of_it() -> None:
    first = Trial(0, None, 24.5, 0.5, success=False, early_end=None)
    assert str(first) == "return 0.5, cost 24.5 (random actions), no success"
    early = Trial(9, 11.0, 12.5, 94.75, success=True, early_end="terminated at step 3 of 9")
    words = "return 94.75, cost 12.5 (11 predicted), terminated at step 3 of 9, success"
    assert str(early) == words
    assert str(Trial(9, 11.0, 12.5, 94.75, None, None)) == "return 94.75, cost 12.5 (11 predicted)"


# -- parts ---------------------------------------------------------------------------------------


def episode(seed: int = 0) -> Episode:
    with gymnasium.make("proppo_envs:CartPoleSwingUp-v0") as env:
        return collect_episode(env, None, seed)


def test_an_episode_holds_what_was_seen_done_and_earned() -> None:
    found = episode()
    assert found.observations.shape == (26, 4)
    assert found.actions.shape == (25, 1)
    assert found.rewards.shape == (25,)
    assert found.total == pytest.approx(float(found.rewards.sum()))
    assert not found.success
    assert torch.equal(found.observations, episode().observations)
    assert not torch.equal(found.observations, episode(1).observations)


def test_a_policy_is_asked_for_each_action() -> None:
    asked = []

    def policy(observation: torch.Tensor) -> torch.Tensor:
        asked.append(observation)
        return torch.full((1, 1), 0.5)

    with gymnasium.make("proppo_envs:CartPoleSwingUp-v0") as env:
        found = collect_episode(env, policy, 0)
    assert bool((found.actions == 0.5).all())
    torch.testing.assert_close(torch.cat(asked).double(), found.observations[:-1])
