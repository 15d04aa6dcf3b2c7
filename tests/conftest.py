"""What every test starts from: the same random state, one thread, no screen."""

from __future__ import annotations

import os
import random
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

# The same examples every time, so that a failure is one for everybody; a slow machine is none.
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep sums in one order. The tensors here are too small to gain from threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_state() -> Iterator[None]:
    """Seed the global generators, and leave no default behind for the next test."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    # PyTorch's compiler, once imported, turns this off for the whole process.
    Distribution.set_default_validate_args(True)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture(autouse=True)
def no_gpu_no_test(request: pytest.FixtureRequest) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
