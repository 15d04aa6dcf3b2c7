"""Ranks that end, and one that fails in the middle of a rollout: all end soon, and say why."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed

from lightning_proppo.callbacks import leaving
from lightning_proppo.callbacks.leaving import leave_at_exit, leave_on_failure

from ...errors import all_that_it_says
from ...launching import LIMIT, Ended, launch_together

# A rank fails in its third batch, while the other is about to wait for it in a reduction.
SCRIPT = """
import sys

import torch
from torch import nn
from torch.distributions import Normal
from torch.utils.data import DataLoader

from lightning_proppo import PropagationCallback
from lightning_proppo.installed_lightning import pl


class Module(pl.LightningModule):
    def __init__(self, failing):
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.failing = failing

    def training_step(self, batch, batch_idx):
        x = torch.zeros(16, 2)
        for t in range(3):
            x = self.manager.sample(Normal(x + self.net(x), 0.1))
            if (batch_idx, t, self.global_rank) == (2, 1, self.failing):
                raise ValueError("the pole fell off")
        return self.manager.loss((x - 1).square().sum(1))

    def train_dataloader(self):
        return DataLoader(range(10))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


if __name__ == "__main__":
    strategy, failing = sys.argv[1:]
    torch.set_num_threads(1)
    pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            pl.callbacks.OnExceptionCheckpoint(f"saved{failing}"), PropagationCallback("TP")
        ],
    ).fit(Module(int(failing)))
"""
WAYS = {
    # Saving a checkpoint on the exception begins with a barrier, which would never end.
    "ddp, rank 0 fails": ("failing.py", "ddp", "0"),
    "ddp, rank 1 fails": ("failing.py", "ddp", "1"),
    "spawn, rank 1 fails": ("failing.py", "ddp_spawn", "1"),
    "torchrun, rank 1 fails": (
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("failing.py", "ddp", "1"),
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Ended, Path]]:
    """What came of a run whose rank fails, and its folder, launched in each way."""
    folder = tmp_path_factory.mktemp("failing")
    (folder / "failing.py").write_text(SCRIPT)
    ended = launch_together(folder, list(WAYS.values()))
    return {way: (each, folder) for way, each in zip(WAYS, ended, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_run_ends_with_the_traceback_of_the_rank_that_failed(runs: Any, way: str) -> None:
    """And long before a process group's 30 minutes are over, or the launch would have failed."""
    ended, _ = runs[way]
    assert ended.status != 0
    assert "in training_step" in ended.stderr
    assert "ValueError: the pole fell off" in ended.stderr
    if "ddp" in way:
        rank = WAYS[way][-1]
        assert f"Rank {rank} of 2 failed" in ended.stderr
        assert "Another rank has ended while this one waited" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if "ddp" in way])
def test_no_rank_is_left_behind(runs: Any, way: str) -> None:
    ended, _ = runs[way]

    def remains() -> bool:
        try:
            os.killpg(ended.pid, 0)
        except ProcessLookupError:
            return False
        return True

    until = time.monotonic() + LIMIT
    while remains() and time.monotonic() < until:
        time.sleep(0.1)
    assert not remains()


@pytest.mark.slow
def test_what_is_to_be_saved_on_an_exception_is_saved(runs: Any) -> None:
    _, folder = runs["ddp, rank 0 fails"]
    assert (folder / "saved0" / "on_exception.ckpt").is_file()


# -- in this process -----------------------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[None]:
    """A process group with one member, which is told that it is the second of two."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def trainer(world_size: int = 2, procs: Any = None) -> Any:
    launcher = SimpleNamespace(procs=procs) if procs is not None else None
    return SimpleNamespace(
        world_size=world_size, global_rank=1, strategy=SimpleNamespace(launcher=launcher)
    )


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_rank_that_fails_says_why_and_leaves(
    group: None, caplog: pytest.LogCaptureFixture
) -> None:
    leave_on_failure(trainer(), raised(ValueError("the pole fell off")))
    assert not torch.distributed.is_initialized()
    assert "Rank 1 of 2 failed" in caplog.text
    assert "Traceback" in caplog.text
    assert "the pole fell off" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1"),
        torch.distributed.DistBackendError("NCCL communicator was aborted"),
    ],
)
def test_a_rank_that_waited_in_vain_says_whose_traceback_to_read(
    group: None, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    leave_on_failure(trainer(), raised(error))
    assert not torch.distributed.is_initialized()
    assert caplog.text == ""
    assert "the traceback of that rank tells why" in all_that_it_says(error)


@pytest.mark.parametrize(
    ("ranks", "error"),
    [(2, KeyboardInterrupt()), (2, SystemExit(1)), (1, ValueError("the pole fell off"))],
)
def test_interruptions_and_single_processes_keep_their_group(
    group: None, caplog: pytest.LogCaptureFixture, ranks: int, error: BaseException
) -> None:
    leave_on_failure(trainer(ranks), raised(error))
    assert torch.distributed.is_initialized()
    assert caplog.text == ""


def test_without_a_group_there_is_nothing_to_leave(caplog: pytest.LogCaptureFixture) -> None:
    leave_on_failure(trainer(), raised(ValueError("the pole fell off")))
    assert caplog.text == ""


def test_a_rank_leaves_before_its_process_ends(
    group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[Callable[[], None]] = []
    monkeypatch.setattr(leaving.atexit, "register", registered.append)
    leave_at_exit()
    assert torch.distributed.is_initialized()
    for leave in (*registered, *registered):  # it may have left already
        leave()
    assert not torch.distributed.is_initialized()
    leave_at_exit()
    assert len(registered) == 1


@pytest.mark.parametrize(("backend", "expected"), [("gloo", 0), ("nccl", 1)])
def test_launched_ranks_that_do_not_notice_are_ended_at_exit(
    group: None, monkeypatch: pytest.MonkeyPatch, backend: str, expected: int
) -> None:
    registered: list[tuple[Callable[..., None], Any]] = []
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(
        leaving.atexit, "register", lambda *given: registered.append((given[0], given[1:]))
    )
    asleep, done = (
        subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
        for seconds in (600, 0)
    )
    try:
        leave_on_failure(trainer(procs=[asleep, done]), raised(ValueError("the pole fell off")))
        assert len(registered) == expected
        if registered:
            monkeypatch.setattr(leaving, "_GRACE", 0.5)
            end, arguments = registered[0]
            end(*arguments)
            assert asleep.wait(10) != 0
            assert done.wait(10) == 0
    finally:
        for process in (asleep, done):
            process.kill()
            process.wait()


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "lightning_proppo")
