"""What was logged before a checkpoint, kept so that a run that goes on from there lacks nothing."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from lightning_proppo.files import remove_unfinished, write_whole


class KeptLogs:
    """Has all that was logged on the disk before a checkpoint is, and finds it again.

    - Loggers write what they had in memory.
    - Lightning logs the values of a step, and of an epoch, after the checkpoint that is saved at
      its end. They are in the checkpoint, and are logged first by a run that goes on from it.
    - A ``CSVLogger`` deletes the file of an earlier run in its folder, and rewrites its own in
      place. Therefore the rows before a checkpoint are copied beside it, and a run that goes on
      from that checkpoint in the same folder begins with them.
    """

    def __init__(self) -> None:
        self._run = secrets.token_hex(4)  # tells the copies of this run from others in a folder
        self._rows: list[int] = []
        self._due: dict[str, Any] | None = None

    def keep(self, trainer: Any) -> dict[str, Any]:
        """Write everything to the disk, and return plain values for a checkpoint.

        All ranks have to call it.
        """
        due = _due(trainer)
        if not trainer.is_global_zero:
            return {}
        for logger in trainer.loggers:
            logger.save()
        rows = []
        for path, _ in _csv_files(trainer):
            content = path.read_bytes() if path.is_file() else b""
            rows.append(max(content.count(b"\n") - 1, 0))
            if content:
                remove_unfinished(self._copy(path))
                write_whole(self._copy(path), partial(_write, content))
        return {"run": self._run, "rows": rows, "due": due}

    def load(self, kept: Mapping[str, Any]) -> None:
        """Take what :meth:`keep` returned, for :meth:`go_on`."""
        self._run = kept.get("run", self._run)
        self._rows = list(kept.get("rows", ()))
        self._due = kept.get("due")

    def go_on(self, trainer: Any) -> None:
        """Begin with what was logged before the checkpoint, if one was loaded."""
        (rows, self._rows), (due, self._due) = (self._rows, []), (self._due, None)
        if not trainer.is_global_zero:
            return
        for (path, experiment), count in zip(_csv_files(trainer), rows, strict=False):
            copy = self._copy(path)
            if count and copy.is_file():
                header, *lines = copy.read_bytes().splitlines(keepends=True)
                write_whole(path, partial(_write, b"".join([header, *lines[:count]])))
                # Its columns, without which the logger would take the file for a new one.
                experiment.metrics_keys = header.decode().strip().split(",")
        if due is not None:
            for logger in trainer.loggers:
                logger.log_metrics(due["metrics"], step=due["step"])
                logger.save()

    def _copy(self, path: Path) -> Path:
        return path.with_name(f".{path.stem}-{self._run}{path.suffix}")


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _csv_files(trainer: Any) -> list[tuple[Path, Any]]:
    """Return the files of the Trainer's CSVLoggers, from either package, with what writes them."""
    return [
        (Path(logger.experiment.metrics_file_path), logger.experiment)
        for logger in trainer.loggers
        if any(base.__name__ == "CSVLogger" for base in type(logger).__mro__)
    ]


def _due(trainer: Any) -> dict[str, Any] | None:
    """Return what Lightning is about to log after a checkpoint that is saved now, if anything."""
    if not trainer.loggers or trainer._results is None:
        return None
    connector, loop = trainer._logger_connector, trainer.fit_loop
    batches, epochs = loop.epoch_loop.batch_progress.current, loop.epoch_progress.current
    step = loop.epoch_loop._batches_that_stepped
    if batches.processed > batches.completed:
        if loop._should_accumulate() or not connector.should_update_logs:
            return None
    elif epochs.processed > epochs.completed:
        step -= 1
    else:
        return None
    metrics = {
        name: value.item() if isinstance(value, Tensor) else value
        for name, value in connector.metrics["log"].items()
    }
    if not metrics:
        return None
    if "step" in metrics:
        step = int(metrics.pop("step"))
    else:
        metrics.setdefault("epoch", trainer.current_epoch)
    return {"step": step, "metrics": metrics}
