"""Watching and real experience on two ranks: one writes and reads, and both know the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from proppo_agents.experience.episodes import Episode
from proppo_agents.experience.files import digest_of, read_episodes

from ...launching import launch

SCRIPT = """
import sys
from pathlib import Path

import torch

from lightning_proppo import PropagationCallback
from lightning_proppo.installed_lightning import pl
from proppo_agents import PILCO, EpisodeVideo, PredictionFigure
from proppo_agents.experience.files import EpisodeFolder
from proppo_agents.experience.keeping import collect_and_keep

folder = Path(sys.argv[1])
touched = []


def note_files(event, details):
    if event == "open" and str(details[0]).startswith((str(folder / "run"), str(folder / "data"))):
        touched.append(Path(details[0]).name)


torch.set_num_threads(1)
pl.seed_everything(4)
module = PILCO(
    particles=8, steps=2, candidates=1, data=str(folder / "data")
)
sys.addaudithook(note_files)
trainer = pl.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_epochs=2,
    log_every_n_steps=1,
    logger=pl.loggers.CSVLogger(folder / "run", name="", version=""),
    callbacks=[PredictionFigure(particles=4), EpisodeVideo(), PropagationCallback("TP")],
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
)
trainer.fit(module)
torch.save(
    {
        "touched": touched,
        "drawn": torch.rand(3),
        "episodes": [episode.state_dict() for episode in module.episodes],
        "trials": [trial.state_dict() for trial in module.trials],
        "policy": module.policy.state_dict(),
    },
    folder / f"rank{trainer.global_rank}.pt",
)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder that was trained in, and what either rank found."""
    from proppo_agents.commands.collect import main

    folder = tmp_path_factory.mktemp("ranks")
    (folder / "agent.py").write_text(SCRIPT)
    name = "proppo_envs:CartPoleSwingUp-v0"
    main(["--environment", name, "--out", str(folder / "data"), "--episodes", "2"])
    ended = launch(folder, "agent.py", str(folder))
    assert ended.status == 0, ended.stderr
    return folder, [torch.load(folder / f"rank{r}.pt", weights_only=True) for r in range(2)]


@pytest.mark.slow
def test_both_ranks_know_the_same(ranks: Any) -> None:
    folder, (one, two) = ranks
    digests = [[digest_of(Episode(**each)) for each in found["episodes"]] for found in (one, two)]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 4
    assert digests[0][:2] == [digest_of(each.episode) for each in read_episodes(folder / "data")]
    assert one["trials"] == two["trials"]
    # What one rank alone drew for its pictures has not put the generators out of step.
    for name, value in one["policy"].items():
        assert torch.equal(value, two["policy"][name])


@pytest.mark.slow
def test_one_rank_reads_and_writes(ranks: Any) -> None:
    folder, (one, two) = ranks
    assert two["touched"] == []
    assert one["touched"]
    made = {
        each.name: len(list(each.iterdir())) for each in (folder / "run").iterdir() if each.is_dir()
    }
    assert made == {"episodes": 4, "predictions": 2, "videos": 2}
