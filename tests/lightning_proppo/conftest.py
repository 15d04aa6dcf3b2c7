"""Lightning, for what has to work with either of its two packages."""

from __future__ import annotations

from types import ModuleType

import pytest

from lightning_proppo import installed_lightning


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def pl(request: pytest.FixtureRequest) -> ModuleType:
    """Each package in turn that Trainer and LightningModule may come from."""
    package: ModuleType = pytest.importorskip(request.param)
    return package


@pytest.fixture
def one_pl() -> ModuleType:
    """The package that is used, where it does not matter which."""
    return installed_lightning.pl
