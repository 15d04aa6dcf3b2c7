"""What every test starts from, whatever ran before it: random state, one thread, no screen."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

# Before anything imports matplotlib or pygame: there may be no screen.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import hypothesis
import numpy as np
import pytest
import torch
from torch.distributions import Distribution

from lightning_proppo.callbacks import variance as variance_monitor
from lightning_proppo.installed_lightning import pl
from lightning_proppo.per_particle import fallback

# The same examples every time, so that a failure is one for everybody; a slow machine is none.
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("tests")


# What seed_everything leaves behind: the noise of later trainings would depend on it.
SEEDS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


@pytest.fixture(autouse=True)
def same_state() -> Iterator[None]:
    """Seed the global generators, and leave nothing behind for the next test."""
    _forget_seeds()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    # Sums in one order; the tensors here are too small to gain from threads.
    torch.set_num_threads(1)
    # PyTorch's compiler, once imported, turns this off for the whole process.
    Distribution.set_default_validate_args(True)
    # A warning that comes once comes in each test.
    fallback._warned.clear()
    variance_monitor._warned.clear()
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    _forget_seeds()


def _forget_seeds() -> None:
    for name in SEEDS:
        os.environ.pop(name, None)


@pytest.fixture
def pytorch_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    """What examples and documentation import by this name, where the other one is installed."""
    monkeypatch.setitem(sys.modules, "pytorch_lightning", pl)


@pytest.fixture(autouse=True)
def no_gpu_no_test(request: pytest.FixtureRequest) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
