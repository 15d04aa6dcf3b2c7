"""Copies of the sources, and tests that run in them."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

# What takes longest to import is imported once, here; each run is a fork of this process. What is
# to be copied must not be among it.
import hypothesis  # noqa: F401
import pytest
import torch

# The package would choose between the two, but is not to be imported here.
try:
    import pytorch_lightning  # noqa: F401
except ModuleNotFoundError:
    import lightning.pytorch  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("lightning_proppo", "envs", "agents", "tests", "configs", "pyproject.toml")
PATHS = (".", "envs", "agents")
FAILED = re.compile(r"^(?:FAILED|ERROR) (?:tests/lightning_proppo/)?(?:\w+/)?(\S+)", re.MULTILINE)
ELSEWHERE = 99  # exit status where another lightning_proppo would be imported


def copy_to(folder: Path) -> None:
    """Copy what the tests need into a new folder."""
    folder.mkdir()
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=junk)
        else:
            shutil.copy(ROOT / name, folder / name)


class Run:
    """Test files that run in a copy, as far as the first failure.

    Args:
        tests: files below ``tests/lightning_proppo``, without ``test_`` and ``.py``.
        copy: the folder.
        limit: seconds until it is ended.

    Attributes:
        status: pytest's exit status, at the end; None after the time limit.
        told: what it wrote.
        seconds: how long it took.
    """

    def __init__(self, tests: Sequence[str], copy: Path, limit: float) -> None:
        self.tests, self.copy, self.limit = tests, copy, limit
        self.status: int | None = None
        self.told = ""
        self.seconds = 0.0
        self._report = copy / "report"
        sys.stdout.flush()
        sys.stderr.flush()
        self._start = time.monotonic()
        self._process = multiprocessing.get_context("fork").Process(target=self._run)
        self._process.start()

    @property
    def first_failure(self) -> str | None:
        """Return the name of the test that failed first."""
        found = FAILED.search(self.told)
        return None if found is None else found[1]

    @property
    def sentinel(self) -> int:
        """Return what is ready when the run has ended."""
        return self._process.sentinel

    @property
    def left(self) -> float:
        """Return how many seconds are left."""
        return max(self._start + self.limit - time.monotonic(), 0.0)

    def end(self, ready: bool) -> None:
        """Note how it ended, if it is ready; else end it."""
        if not ready and self._process.pid is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # its ranks, too
        self._process.join()
        if ready:
            self.status = self._process.exitcode
        self.seconds = time.monotonic() - self._start
        self.told = self._report.read_text(encoding="utf-8", errors="replace")

    def _run(self) -> None:
        os.setsid()
        with self._report.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(self.copy)
        paths = [str(self.copy / path) for path in PATHS]
        sys.path[:0] = paths
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        # Two versions of a file in one second, of one size, would be taken for one another.
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        torch.set_num_threads(1)
        found = importlib.util.find_spec("lightning_proppo")
        if found is None or not str(found.origin).startswith(str(self.copy)):
            sys.stdout.write(f"lightning_proppo would be imported from elsewhere: {found}\n")
            sys.stdout.flush()
            os._exit(ELSEWHERE)
        tests = Path("tests", "lightning_proppo")
        files = [str(path) for name in self.tests for path in tests.rglob(f"test_{name}.py")]
        # What is over ranks is slow, and there are no other tests of it.
        marks = [] if "ranks" in self.tests else ["-m", "not slow"]
        options = ["-x", "-q", "-rfE", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
        status = pytest.main([*options, *marks, *files])
        sys.stdout.flush()
        os._exit(int(status))


def finished(runs: Sequence[Run]) -> Iterator[Run]:
    """Iterate over runs in the order in which they end, or are ended by their limits."""
    going = list(runs)
    while going:
        ready = wait([run.sentinel for run in going], min(run.left for run in going))
        for run in [r for r in going if r.sentinel in ready or not r.left]:
            run.end(run.sentinel in ready)
            going.remove(run)
            yield run
