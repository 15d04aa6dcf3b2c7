"""The PILCO-style agent on two ranks: one acts, fits and writes, and both know the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from proppo_agents import PILCO, RBFPolicy
from proppo_agents.ranks import made_by_first, mean_over_ranks, own_noise, share_of

from ..launching import launch

SCRIPT = """
import sys
from pathlib import Path

import torch

from lightning_proppo import PropagationCallback
from lightning_proppo.installed_lightning import pl
from proppo_agents import PILCO, GPDynamics, RBFPolicy
from proppo_envs.cartpole import CartPoleSwingUpEnv

folder = Path(sys.argv[1])
seen = {"steps": 0, "written": [], "searches": [], "particles": set(), "starts": []}


def note_files(event, details):
    if event == "open" and str(details[0]).startswith(str(folder / "run")):
        name, mode, flags = details
        if (mode and mode[0] in "wax") or (mode is None and flags & 3):
            seen["written"].append(Path(name).name)


def step(self, action, real=CartPoleSwingUpEnv.step):
    seen["steps"] += 1
    return real(self, action)


class Agent(PILCO):
    def start_search(self):
        seen["searches"].append(self.current_epoch)
        super().start_search()

    def _out_of_patience(self):
        return super()._out_of_patience() or self.current_epoch == 2


def policy_input(module, given):
    if len(given[0]) > 1 and not given[0].requires_grad:
        seen["particles"].add(len(given[0]))
        seen["starts"].append(given[0].clone())


sys.addaudithook(note_files)
CartPoleSwingUpEnv.step = step
torch.set_num_threads(1)
pl.seed_everything(4)
module = Agent(
    dynamics=GPDynamics(steps=5),
    policy=RBFPolicy(basis_functions=10),
    particles=8,
    steps=3,
    candidates=3,
    patience=1,
)
module.policy.register_forward_pre_hook(policy_input)
trainer = pl.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_epochs=3,
    log_every_n_steps=1,
    logger=pl.loggers.CSVLogger(folder / "run", name="", version=""),
    callbacks=[
        PropagationCallback("TP"), pl.callbacks.ModelCheckpoint(folder / "run", save_last=True)
    ],
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module)
posterior = module.dynamics.posterior
torch.save(
    {
        **seen,
        "policy": list(module.policy.state_dict().values()),
        "optimizer": [
            value for state in trainer.optimizers[0].state.values() for value in state.values()
        ],
        "episodes": [
            value
            for episode in module.episodes
            for value in (episode.observations, episode.actions, episode.rewards)
        ],
        "dynamics": [v for v in vars(posterior).values() if isinstance(v, torch.Tensor)]
        + [v for v in vars(posterior.factors).values() if isinstance(v, torch.Tensor)],
        "trials": [trial.state_dict() for trial in module.trials],
    },
    folder / f"rank{trainer.global_rank}.pt",
)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder that was trained in, and what either rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "agent.py").write_text(SCRIPT)
    ended = launch(folder, "agent.py", str(folder))
    assert ended.status == 0, ended.stderr
    return folder, [torch.load(folder / f"rank{r}.pt", weights_only=False) for r in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["policy", "optimizer", "episodes", "dynamics"])
def test_both_ranks_have_the_same_to_the_bit(ranks: Any, what: str) -> None:
    one, two = (found[what] for found in ranks[1])
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_restarts_and_trials_are_the_same(ranks: Any) -> None:
    one, two = ranks[1]
    assert one["trials"] == two["trials"]
    assert [trial["steps"] for trial in one["trials"]] == [0, 3, 6, 9]
    assert all(trial["predicted_cost"] is not None for trial in one["trials"][1:])
    # The first trial starts a search; a later one too, or this test would not tell much.
    assert one["searches"] == two["searches"]
    assert len(one["searches"]) > 1


@pytest.mark.slow
def test_one_rank_acts_in_the_environment(ranks: Any) -> None:
    one, two = ranks[1]
    assert one["steps"] == 4 * 25
    assert two["steps"] == 0


@pytest.mark.slow
def test_particles_are_shared_out_and_each_has_noise_of_its_own(ranks: Any) -> None:
    one, two = ranks[1]
    assert one["particles"] == two["particles"] == {4}
    # The starts of 9 rollouts, and each step of those that candidates were judged by.
    judged = 3 * 25 * len(one["searches"])
    assert len(one["starts"]) == len(two["starts"]) == 9 + judged
    for a, b in zip(one["starts"], two["starts"], strict=True):
        assert not bool((a == b).any())


@pytest.mark.slow
def test_one_rank_writes(ranks: Any) -> None:
    folder, (one, two) = ranks
    assert two["written"] == []
    assert {"metrics.csv", "learning_curve.png"} <= set(one["written"])
    assert (folder / "run" / "learning_curve.png").is_file()
    assert (folder / "run" / "last.ckpt").is_file()


@pytest.mark.slow
def test_the_cost_predicted_is_that_of_all_particles(ranks: Any) -> None:
    """What is logged at the steps, and what a trial keeps, is the mean over both ranks."""
    folder, (one, _) = ranks
    header, *rows = (line.split(",") for line in (folder / "run/metrics.csv").read_text().split())
    column = header.index("predicted/cost")
    logged = [float(row[column]) for row in rows if row[column]]
    assert len(logged) == 9
    kept = [trial["predicted_cost"] for trial in one["trials"][1:]]
    means = [sum(logged[k : k + 3]) / 3 for k in (0, 3, 6)]
    assert kept == pytest.approx(means, rel=1e-5)


# -- without other ranks -------------------------------------------------------------------------


class FakeTrainer:
    def __init__(self, world_size: int, rank: int = 0) -> None:
        self.world_size = world_size
        self.global_rank = rank
        self.is_global_zero = True
        self.strategy = self

    def broadcast(self, value: Any, src: int) -> Any:
        assert src == 0
        return value


def test_alone_everything_is_made_here() -> None:
    value = torch.ones(2)
    assert made_by_first(None, lambda: 3) == 3
    assert mean_over_ranks(None, value) is value
    assert mean_over_ranks(FakeTrainer(1), value) is value
    assert share_of(None, 7, "particles") == 7


def test_ranks_draw_noise_of_their_own_and_then_go_on_together() -> None:
    drawn, after = [], []
    for rank in (0, 1, 1):
        torch.manual_seed(3)
        with own_noise(FakeTrainer(2, rank), torch.device("cpu")):
            drawn.append(torch.randn(1000, dtype=torch.float64))
        after.append(torch.randn(3))
    zero, one, again = drawn
    assert torch.equal(one, again)
    assert torch.corrcoef(torch.stack([zero, one]))[0, 1].abs() < 0.15  # 1000 numbers: 5 sigma
    assert torch.equal(after[0], after[1])


def test_alone_noise_is_what_it_was() -> None:
    found = []
    for trainer in (None, FakeTrainer(1)):
        torch.manual_seed(3)
        with own_noise(trainer, torch.device("cpu")):
            found.append(torch.randn(3))
    torch.manual_seed(3)
    assert torch.equal(found[0], torch.randn(3))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(("count", "ranks", "share"), [(8, 2, 4), (9, 3, 3), (200, 1, 200)])
def test_shares_are_even(count: int, ranks: int, share: int) -> None:
    assert share_of(FakeTrainer(ranks), count, "particles") == share


@pytest.mark.parametrize(
    ("count", "ranks", "told"),
    [
        (200, 3, "particles=200 on 3 ranks. Take 198 or 201."),
        (2, 4, "particles=2 on 4 ranks. Take 4."),
    ],
)
def test_uneven_shares_are_refused_with_the_numbers(count: int, ranks: int, told: str) -> None:
    with pytest.raises(ValueError, match=told.replace(".", r"\.")):
        share_of(FakeTrainer(ranks), count, "particles")


def test_particles_are_checked_before_an_episode_is_spent() -> None:
    module = PILCO(particles=9)
    module.trainer = FakeTrainer(2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="particles=9 on 2 ranks"):
        module.setup("fit")


def test_a_candidate_whose_cost_is_not_a_number_is_not_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = PILCO(candidates=3, policy=RBFPolicy(basis_functions=4))
    costs = iter([2.0, float("nan"), 1.0])
    tried: list[Tensor] = []

    def predict(self: PILCO) -> tuple[Tensor, Tensor]:
        tried.append(self.policy.weights.detach().clone())
        return torch.tensor(next(costs)), torch.zeros(())

    monkeypatch.setattr(PILCO, "predict", predict)
    module.start_search()
    assert torch.equal(module.policy.weights, tried[2])
