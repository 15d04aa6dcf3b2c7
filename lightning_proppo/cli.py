"""The command ``lightning-proppo``: Lightning's own subcommands, and ``evaluate``.

::

    lightning-proppo fit --config configs/pilco_cartpole.yaml
    lightning-proppo evaluate --ckpt runs/.../last.ckpt --episodes 10

``fit``, ``validate``, ``test`` and ``predict`` are those of
:class:`pytorch_lightning.cli.LightningCLI`. ``evaluate`` acts in the real system with the policy
of a checkpoint. It asks two things of a module:

- The checkpoint says which class it holds, as a dotted path under ``"module_class"`` (put there in
  ``on_save_checkpoint``; for a module trained by ``fit`` that calls ``save_hyperparameters``,
  Lightning has noted it already).
- The class has a method ``evaluate_policy(episodes, seed)``, which returns
  ``{"returns": [...], "success": [...]}``, one entry for each episode. If it takes an argument
  ``progress``, it is given a function to call with 1 after each episode.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import math
import os
import pkgutil
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningCLI, SaveConfigCallback
from pytorch_lightning.utilities import rank_zero_only
from tqdm import tqdm

PROGRAM = "lightning-proppo"
USER_ERROR = 2
PICTURES = {".png", ".svg", ".pdf"}
PICTURES_LISTED = 5

_DESCRIPTION = (
    "Train LightningModules whose gradients are propagated through stochastic rollouts, and act "
    "with what they learned. Besides the subcommands below there is evaluate, which plays real "
    "episodes with the policy of a checkpoint and gives their returns: "
    f"`{PROGRAM} evaluate --ckpt PATH`; its --help tells the options."
)


class CommandError(Exception):
    """What the user asked for cannot be done; told in one line, without a traceback."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        args: what follows the command's name; None: taken from ``sys.argv``.

    Returns:
        The exit status: 0, or 2 for an error of the user's. (Lightning's parser raises
        ``SystemExit`` with these.)
    """
    # A script's own folder is on the path, but that of an installed command is not where the
    # user's modules are. Last, so that a file there cannot stand in for an installed package.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    given = list(sys.argv[1:] if args is None else args)
    if given[:1] != ["evaluate"]:
        ProppoCLI(
            args=None if args is None else given,
            save_config_callback=SaveRunConfig,
            parser_kwargs={"prog": PROGRAM, "description": _DESCRIPTION},
        )
        return 0
    try:
        evaluate(_evaluate_parser().parse_args(given[1:]))
    except CommandError as error:
        sys.stderr.write(f"{PROGRAM} evaluate: error: {error}\n")
        return USER_ERROR
    return 0


# -- fit, validate, test, predict --------------------------------------------------------------


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration in the run's folder, if the run has one of its own."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it."""
        # Without a logger it would go into the working directory, where the next run finds it and
        # refuses to start.
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)


class ProppoCLI(LightningCLI):
    """Lightning's command line for any LightningModule; says after ``fit`` where things lie."""

    _started = 0.0

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
        """Note the time."""
        self._started = time.time()

    def after_fit(self) -> None:
        """Say where the log, the checkpoints and the plots of this run are."""
        # Lightning asks all ranks for this one: it is a collective.
        log_dir = self.trainer.log_dir
        evaluable = hasattr(self.model, "evaluate_policy")
        _report_run(self.trainer, log_dir, self._started, evaluable)


@rank_zero_only
def _report_run(trainer: Trainer, log_dir: Any, started: float, evaluable: bool) -> None:
    rows: list[tuple[str, str]] = []
    pictures: list[Path] = []
    checkpoints = _checkpoints(trainer)
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
        path = quote(checkpoints[-1].path)
        rows.append(("to evaluate", f"{_command(PROGRAM)} evaluate --ckpt {path}"))
    width = max(len(label) for label, _ in rows)
    lines = [f"  {label:<{width}}  {text}" for label, text in rows]
    title = f"Trained for {trainer.current_epoch} epochs, {trainer.global_step} steps."
    sys.stdout.write("\n".join(["", title, *lines, ""]))
    sys.stdout.flush()


@dataclass(frozen=True)
class _Checkpoint:
    kind: str
    path: str
    told: str = ""


def _checkpoints(trainer: Trainer) -> list[_Checkpoint]:
    """Return the checkpoint files of a run, the last one at the end."""
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


# -- evaluate ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """What came of some episodes.

    Attributes:
        returns: the sum of rewards of each.
        success: whether each reached the goal.
    """

    returns: list[float]
    success: list[bool]

    def as_json(self) -> str:
        """Return one line. A return that is no finite number becomes null."""
        returns = [value if math.isfinite(value) else None for value in self.returns]
        return json.dumps({"returns": returns, "success": self.success}, allow_nan=False)

    def as_text(self) -> str:
        """Return a table with a summary below it."""
        lines = [f"{'episode':>7}  {'return':>10}  success"]
        for episode, (value, success) in enumerate(zip(self.returns, self.success, strict=True), 1):
            lines.append(f"{episode:>7}  {value:>10.4g}  {'yes' if success else 'no'}")
        count = len(self.returns)
        mean = statistics.fmean(self.returns)
        # The standard deviation of one episode is not known; it is not zero.
        spread = statistics.stdev(self.returns) if count > 1 else math.nan
        lines.append("")
        lines.append(f"return   {mean:.4g} (mean), {spread:.4g} (standard deviation)")
        lines.append(f"success  {sum(self.success)} of {count} ({sum(self.success) / count:.0%})")
        return "\n".join(lines)


def evaluate(options: argparse.Namespace) -> None:
    """Play episodes with a checkpoint's policy and write what came of them to stdout.

    Args:
        options: ``ckpt``, ``episodes``, ``seed``, ``json``.

    Raises:
        CommandError: if the checkpoint cannot be evaluated.
    """
    # Libraries greet on stdout, which belongs to the result.
    with contextlib.redirect_stdout(sys.stderr):
        module = load_module(Path(options.ckpt))
        result = _play(module, options.episodes, options.seed)
    sys.stdout.write((result.as_json() if options.json else result.as_text()) + "\n")
    sys.stdout.flush()


def load_module(path: Path) -> LightningModule:
    """Return the module that a checkpoint holds, on the CPU, in evaluation mode.

    Nothing but tensors and plain values is unpickled.

    Args:
        path: of the checkpoint.

    Raises:
        CommandError: if it cannot be rebuilt.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CommandError(f"the checkpoint {path} {what}.")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        # Torch's own words would advise to read it unsafely.
        raise CommandError(
            f"{path} is not a checkpoint, or holds more than tensors and plain values, which is "
            "not read because it could run code."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CommandError(f"{path} is not a checkpoint of Lightning's: it has no state_dict.")
    module_class = _find_class(path, checkpoint)
    if not callable(getattr(module_class, "evaluate_policy", None)):
        raise CommandError(
            f"{module_class.__qualname__} cannot be evaluated: it has no method evaluate_policy."
        )
    # Earlier releases of Lightning do not know the argument; the file has just been found safe.
    known = inspect.signature(module_class.load_from_checkpoint).parameters
    safely: dict[str, Any] = {"weights_only": True} if "weights_only" in known else {}
    try:
        module = module_class.load_from_checkpoint(path, map_location="cpu", **safely)
    except Exception as error:
        raise CommandError(
            f"{module_class.__qualname__} cannot be rebuilt from {path}: {_first_line(error)}"
        ) from error
    return module.eval()


def _find_class(path: Path, checkpoint: dict[str, Any]) -> type[LightningModule]:
    hyper_parameters = checkpoint.get("hyper_parameters") or {}
    name = checkpoint.get("module_class") or hyper_parameters.get("_class_path")
    if not isinstance(name, str):
        raise CommandError(f"{path} does not say what it holds: it has no key 'module_class'.")
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CommandError(
            f"{path} holds a {name}, which cannot be imported: {_first_line(error)}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, LightningModule)):
        raise CommandError(f"{path} holds a {name}, which is not a LightningModule.")
    return found


def _play(module: LightningModule, episodes: int, seed: int) -> Evaluation:
    evaluate_policy: Any = module.evaluate_policy
    arguments: dict[str, Any] = {"episodes": episodes, "seed": seed}
    # disable=None: no bar where stderr is not a terminal.
    with tqdm(total=episodes, desc="episodes", file=sys.stderr, disable=None) as bar:
        if "progress" in inspect.signature(evaluate_policy).parameters:
            arguments["progress"] = bar.update
        result = evaluate_policy(**arguments)
        bar.update(episodes - bar.n)
    name = f"{type(module).__qualname__}.evaluate_policy"
    if not isinstance(result, dict) or not {"returns", "success"} <= result.keys():
        raise CommandError(f"{name} must return a dict with 'returns' and 'success'.")
    returns = [float(value) for value in result["returns"]]
    success = [bool(value) for value in result["success"]]
    if not len(returns) == len(success) == episodes:
        raise CommandError(
            f"{name} was asked for {episodes} episodes and gave {len(returns)} returns and "
            f"{len(success)} successes."
        )
    return Evaluation(returns, success)


def _evaluate_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} evaluate",
        description="Play real episodes with the policy of a checkpoint and give their returns.",
    )
    parser.add_argument("--ckpt", required=True, metavar="PATH", help="the checkpoint")
    parser.add_argument(
        "--episodes", type=_positive, default=10, metavar="N", help="how many (default: 10)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the episodes' noise (default: 0)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help='write one line, {"returns": [...], "success": [...]}, and nothing else, to stdout',
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
