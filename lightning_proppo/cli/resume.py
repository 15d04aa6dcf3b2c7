"""``resume``: goes on with a run that was broken off, in its own folder, from its last checkpoint.

It is ``fit`` with the configuration that the run has saved, its folder and that checkpoint. A run
that has no checkpoint yet begins anew.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from lightning_proppo.cli.program import PROGRAM, CommandError, first_line
from lightning_proppo.installed_lightning import pl

SUMMARY = "Go on with a run that was broken off, from its last checkpoint."

# Those that Lightning takes a run's folder from, and that lay out folders like it.
_LOGGERS = ("TensorBoardLogger", "CSVLogger")
_DEFAULT = f"{pl.__name__}.loggers.TensorBoardLogger"
_DEFAULT_NAME = "lightning_logs"


def fit_arguments(args: Sequence[str]) -> list[str]:
    """Return the arguments that ``fit`` goes on with.

    Args:
        args: what follows the subcommand's name: the run's folder, and more arguments for ``fit``.

    Raises:
        CommandError: if the folder is none of a run.
    """
    options, more = _parser().parse_known_args(args)
    run = Path(options.run)
    config = _configuration(run)
    settings = config.setdefault("trainer", {})
    settings["logger"] = _loggers_of(run, settings)
    arguments = ["fit", "--config", yaml.safe_dump(config, sort_keys=False)]
    if not any(each.split("=")[0] == "--ckpt_path" for each in more):
        last = last_checkpoint(run)
        if last is None:
            sys.stderr.write(f"{PROGRAM} resume: {run} has no checkpoint yet and begins anew.\n")
        else:
            sys.stderr.write(f"{PROGRAM} resume: {run} goes on from {last}.\n")
            arguments += ["--ckpt_path", str(last)]
    return [*arguments, *more]


def last_checkpoint(run: Path) -> Path | None:
    """Return the checkpoint below a folder that is farthest, the newest of several; None: none.

    Files that hold weights alone are left out, and those that cannot be read, with a warning.
    """
    found = []
    for path in sorted(run.rglob("*.ckpt")):
        try:
            # Nothing but the tensors' names and sizes is read of the file.
            checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
            if "optimizer_states" in checkpoint:
                found.append((int(checkpoint["global_step"]), path.stat().st_mtime_ns, path))
        # A damaged file can make torch and zipfile raise almost anything.
        except Exception as error:
            sys.stderr.write(f"{PROGRAM} resume: {path} is left out: {first_line(error)}\n")
    return max(found)[-1] if found else None


def _configuration(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    if not path.is_file():
        raise CommandError(
            f"{run} is not the folder of a run: it has no config.yaml, which 'fit' saves there (if "
            "the run has a logger)."
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CommandError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("trainer", {}), dict):
        raise CommandError(f"{path} does not hold a configuration.")
    return config


def _loggers_of(run: Path, settings: dict[str, Any]) -> Any:
    """Return the configuration of the loggers, so that they write into the run's folder."""
    loggers = settings.get("logger")
    if loggers is None or loggers is True:
        root = settings.get("default_root_dir") or "."
        loggers = {"class_path": _DEFAULT, "init_args": {"save_dir": str(root)}}
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        name = logger.get("class_path", "") if isinstance(logger, dict) else ""
        if name.rpartition(".")[2] in _LOGGERS:
            _lead_to(run, logger.setdefault("init_args", {}))
    return loggers


def _lead_to(run: Path, init: dict[str, Any]) -> None:
    parent = Path(init["save_dir"], init.get("name", _DEFAULT_NAME) or "")
    version = init.get("version")
    if version is None:
        numbered = re.fullmatch(r"version_(\d+)", run.resolve().name)
        version = int(numbered[1]) if numbered else run.resolve().name
    folder = parent / (version if isinstance(version, str) else f"version_{version}")
    if folder.resolve() == run.resolve():
        # As it was, since Lightning compares the names of folders with those of the checkpoint.
        init["version"] = version
    else:
        # It has been moved, or this is another working directory.
        where = run.resolve()
        init.update(save_dir=str(where.parent), name="", version=where.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} resume",
        description=SUMMARY
        + " More arguments are those of 'fit', e.g. --trainer.max_epochs=20 to go on for longer.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder of the run, with its config.yaml")
    return parser
