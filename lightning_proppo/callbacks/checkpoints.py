"""Checkpoints that no kill can spoil, and that run nothing when they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_proppo.files import remove_unfinished, write_whole
from lightning_proppo.installed_lightning import pl


class CheckpointError(ValueError):
    """A checkpoint is damaged, or holds more than tensors and plain values."""


class WholeCheckpointIO(pl.plugins.TorchCheckpointIO):
    """Writes a checkpoint as a whole or not at all, and unpickles tensors and plain values only.

    Lightning writes into the system's folder for temporary files and moves the file. From another
    file system a move is a copy, and what is killed meanwhile leaves half a checkpoint, in place
    of the one that was there. Nor is it said to be on the disk.

    Files elsewhere (``s3://...``) are written and read as Lightning does it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; when this returns, it is on the disk.

        Args:
            checkpoint: what is written.
            path: of the file. Its folder is made.
            storage_options: must be None, as in Lightning's.
        """
        if storage_options is not None or _elsewhere(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(target)
        write_whole(target, lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return a checkpoint, with its tensors on the CPU as far as nothing else is said.

        Args:
            path: of the file.
            map_location: see :func:`torch.load`.
            weights_only: whether tensors and plain values alone are unpickled; None: they are.

        Raises:
            FileNotFoundError: if there is none.
            CheckpointError: if it cannot be read so.
        """
        if _elsewhere(path):
            elsewhere: dict[str, Any] = super().load_checkpoint(
                path, map_location, weights_only=weights_only is not False
            )
            return elsewhere
        where = "cpu" if map_location is None else map_location
        if not Path(path).exists():
            raise FileNotFoundError(f"there is no checkpoint {path}.")
        try:
            found: dict[str, Any] = torch.load(path, where, weights_only=weights_only is not False)
        # A damaged file can make torch and zipfile raise almost anything.
        except Exception as error:
            # Torch's own words would advise to read it unsafely.
            raise CheckpointError(
                f"{path} is not a whole checkpoint, or holds more than tensors and plain values, "
                "which is not unpickled because it could run code. If you know that it is your "
                "own: Trainer.fit(..., weights_only=False), in Lightning from 2.6 on."
            ) from error
        return found


def write_whole_checkpoints(strategy: Any) -> None:
    """Let a Trainer's strategy write and load by :class:`WholeCheckpointIO`.

    One that has another than Lightning's usual way keeps it.
    """
    # By its name: there is one in each package of Lightning's.
    if type(strategy.checkpoint_io).__name__ == "TorchCheckpointIO":
        strategy.checkpoint_io = WholeCheckpointIO()


def _elsewhere(path: Any) -> bool:
    return "://" in str(path)
