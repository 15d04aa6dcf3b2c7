"""``fit``, ``validate``, ``test`` and ``predict``: Lightning's command line, and a report."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, NoReturn

from lightning_proppo.cli.hints import hint
from lightning_proppo.cli.installed import (
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from lightning_proppo.cli.program import PROGRAM, USER_ERROR
from lightning_proppo.installed_lightning import pl, rank_zero_only

PICTURES = {".png", ".svg", ".pdf"}
PICTURES_LISTED = 5


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration in the run's folder, if the run has one of its own."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save it."""
        # Without a logger it would go into the working directory, where the next run finds it and
        # refuses to start.
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class ProppoCLI(LightningCLI):
    """Lightning's command line for any LightningModule; says after ``fit`` where things lie.

    A module may have saved its best state itself: its attribute ``best_checkpoint`` is that file.
    """

    _started = 0.0
    _new_folders: tuple[Path, ...] = ()

    def __init__(self, *args: Any, **options: Any) -> None:
        """Run the command; a run that is refused before its first epoch leaves no folder."""
        try:
            super().__init__(*args, **options)
        except BaseException:
            self._remove_folders_without_a_run()
            raise

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that suggests names for misspelt ones."""
        parser = super().init_parser(**kwargs)
        tell = parser.error

        def error(message: str, ex: Exception | None = None) -> NoReturn:
            # A subcommand's keys are complained of by the parser of all subcommands.
            parsers = [parser, *getattr(self, "_subcommand_parsers", {}).values()]
            options = dict.fromkeys(
                name for each in parsers for name in each._option_string_actions
            )
            tell(message + hint(message, options), ex)

        parser.error = error  # type: ignore[method-assign]
        return parser

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it was given.

        Lightning puts the checkpoint's hyperparameters above it, without regard to classes: those
        of a module with parts are refused, and no option can be changed for a run that goes on.
        """

    def instantiate_classes(self) -> None:
        """Make model and trainer; a value that one of them refuses is the user's error."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            # The parser's own switch for developers.
            if os.environ.get("JSONARGPARSE_DEBUG"):
                raise
            sys.stderr.write(f"{PROGRAM} {self.subcommand}: error: {error}\n")
            raise SystemExit(USER_ERROR) from error

    def before_fit(self) -> None:
        """Note the time, and which folders the loggers are going to make."""
        self._started = time.time()
        found = [getattr(logger, "log_dir", None) for logger in self.trainer.loggers]
        folders = dict.fromkeys(Path(each) for each in found if isinstance(each, str | Path))
        self._new_folders = tuple(each for each in folders if not each.exists())

    def after_fit(self) -> None:
        """Say where the log, the checkpoints and the plots of this run are."""
        # Lightning asks all ranks for this one: it is a collective.
        log_dir = self.trainer.log_dir
        evaluable = hasattr(self.model, "evaluate_policy")
        _report_run(self.trainer, log_dir, self._started, evaluable)

    def _remove_folders_without_a_run(self) -> None:
        if not self._new_folders or not self.trainer.is_global_zero:
            return
        # Of what processes did that were spawned this one knows nothing.
        spawned = type(self.trainer.strategy.launcher).__name__ == "_MultiProcessingLauncher"
        if not spawned and self.trainer.fit_loop.epoch_progress.current.ready == 0:
            for folder in self._new_folders:
                shutil.rmtree(folder, ignore_errors=True)


@rank_zero_only
def _report_run(trainer: pl.Trainer, log_dir: Any, started: float, evaluable: bool) -> None:
    rows: list[tuple[str, str]] = []
    pictures: list[Path] = []
    checkpoints = _checkpoints(trainer)
    best = [found for found in checkpoints if found.kind == "best"]
    if trainer.loggers and isinstance(log_dir, str | Path) and Path(log_dir).is_dir():
        rows.append(("log directory", str(log_dir)))
        if any(Path(log_dir).glob("events.out.tfevents.*")):
            rows.append(
                ("to look at it", f"{_command('tensorboard')} --logdir {quote(str(log_dir))}")
            )
        pictures = _pictures_since(Path(log_dir), started)
    rows += [(f"{found.kind} checkpoint", found.path + found.told) for found in checkpoints]
    if not checkpoints:
        rows.append(("checkpoint", "none was saved"))
    rows += [("plot", str(path)) for path in pictures[:PICTURES_LISTED]]
    if len(pictures) > PICTURES_LISTED:
        rows.append(("", f"... and {len(pictures) - PICTURES_LISTED} more"))
    if evaluable and checkpoints:
        path = quote((best or checkpoints)[-1].path)
        rows.append(("to evaluate", f"{_command(PROGRAM)} evaluate --ckpt {path}"))
    width = max(len(label) for label, _ in rows)
    lines = [f"  {label:<{width}}  {text}" for label, text in rows]
    title = f"Trained for {_count(trainer.current_epoch, 'epoch')}, "
    title += f"{_count(trainer.global_step, 'step')}."
    sys.stdout.write("\n".join(["", title, *lines, ""]))
    sys.stdout.flush()


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@dataclass(frozen=True)
class _Checkpoint:
    kind: str
    path: str
    told: str = ""


def _checkpoints(trainer: pl.Trainer) -> list[_Checkpoint]:
    """Return the checkpoint files of a run."""
    files: list[_Checkpoint] = []
    for callback in trainer.checkpoint_callbacks:
        best = str(getattr(callback, "best_model_path", ""))
        last = str(getattr(callback, "last_model_path", ""))
        monitor = getattr(callback, "monitor", None)
        if best and monitor:
            score = getattr(callback, "best_model_score", None)
            told = f" ({monitor} = {float(score):.4g})" if score is not None else ""
            files.append(_Checkpoint("best", _shortest(best), told))
        elif best and not last:
            # Without a quantity to monitor, Lightning calls the latest one the best.
            last = best
        if last:
            files.append(_Checkpoint("last", _shortest(last)))
    # What a module itself calls the best goes before what others do.
    own = getattr(trainer.lightning_module, "best_checkpoint", None)
    if own is not None and Path(own).is_file():
        files.append(_Checkpoint("best", _shortest(str(own))))
    return files


def _command(name: str) -> str:
    """Return how to call a command of this environment, which need not be on the path."""
    beside = Path(sys.executable).parent / name
    if shutil.which(name) is None and beside.is_file():
        return _shortest(str(beside))
    return name


def _shortest(path: str) -> str:
    """Return a path relative to the working directory where it lies inside, else as it is."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return path


def _pictures_since(folder: Path, started: float) -> list[Path]:
    """Return the pictures below ``folder`` written since ``started``, the latest first."""
    # Some file systems keep whole seconds only.
    found = [
        (path.stat().st_mtime, path)
        for path in folder.rglob("*")
        if path.suffix in PICTURES and path.stat().st_mtime >= started - 1.0
    ]
    return [path for _, path in sorted(found, reverse=True)]
