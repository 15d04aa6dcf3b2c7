"""The command line of the Lightning that is installed; apart, because it imports slowly."""

from __future__ import annotations

from lightning_proppo.installed_lightning import pl

if pl.__name__ == "pytorch_lightning":
    from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
else:
    from lightning.pytorch.cli import (  # type: ignore[assignment]
        LightningArgumentParser,
        LightningCLI,
        SaveConfigCallback,
    )

__all__ = ["LightningArgumentParser", "LightningCLI", "SaveConfigCallback"]
