"""``evaluate``: acts in the real system with the policy of a checkpoint.

It asks two things of a module:

- The checkpoint says which class it holds, as a dotted path under ``"module_class"`` (put there in
  ``on_save_checkpoint``; for a module trained by ``fit`` that calls ``save_hyperparameters``,
  Lightning has noted it already).
- The class has a method ``evaluate_policy(episodes, seed)``, which returns
  ``{"returns": [...], "success": [...]}``, one entry for each episode: sums of the environment's
  rewards, and True, False, or None where the environment does not say. There may also be
  ``"costs"``, sums of the agent's own cost, and ``"early_ends"``: how each episode ended before its
  time, in words, or None. If it takes an argument ``progress``, it is given a function to call with
  1 after each episode.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import math
import pkgutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lightning_proppo.cli.program import PROGRAM, CommandError, first_line
from lightning_proppo.installed_lightning import pl

SUMMARY = "Play real episodes with the policy of a checkpoint and give their returns."


@dataclass(frozen=True)
class Evaluation:
    """What came of some episodes.

    Attributes:
        returns: the sum of the environment's rewards of each.
        success: whether each reached the goal; None: it was not reported.
        costs: the sum of the agent's costs of each; None: they are not known.
        early_ends: how each ended before its time, or None; None: that is not known.
    """

    returns: list[float]
    success: list[bool | None]
    costs: list[float] | None = None
    early_ends: list[str | None] | None = None

    def as_json(self) -> str:
        """Return one line, of what is known. What is no finite number becomes null."""
        found: dict[str, Any] = {
            name: [None if isinstance(one, float) and not math.isfinite(one) else one for one in of]
            for name, of in vars(self).items()
            if of is not None
        }
        return json.dumps(found, allow_nan=False)

    def as_text(self) -> str:
        """Return a table with a summary below it."""
        said = {True: "yes", False: "no", None: "-"}
        numbers = {"return": self.returns} | ({"cost": self.costs} if self.costs else {})
        ends = self.early_ends or [None] * len(self.returns)
        title = f"{'episode':>7}" + "".join(f"  {name:>10}" for name in numbers) + "  success"
        lines = [title + ("  early end" if any(ends) else "")]
        for index, (success, end) in enumerate(zip(self.success, ends, strict=True)):
            row = "".join(f"  {values[index]:>10.4g}" for values in numbers.values())
            lines.append(f"{index + 1:>7}{row}  {said[success]:<7}  {end or ''}".rstrip())
        lines.append("")
        lines += [f"{name:<7}  {_spread(values)}" for name, values in numbers.items()]
        lines.append(f"success  {_share(self.success)}")
        return "\n".join(lines)


def _spread(values: list[float]) -> str:
    # The standard deviation of one episode is not known; it is not zero.
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.4g} (mean), {spread:.4g} (standard deviation)"


def _share(success: list[bool | None]) -> str:
    reported = [one for one in success if one is not None]
    if not reported:
        return "not reported"
    text = f"{sum(reported)} of {len(reported)} ({sum(reported) / len(reported):.0%})"
    missing = len(success) - len(reported)
    return text + (f"; {missing} not reported" if missing else "")


def main(args: Sequence[str]) -> None:
    """Play episodes with a checkpoint's policy and write what came of them to stdout.

    Args:
        args: what follows the subcommand's name.

    Raises:
        CommandError: if the checkpoint cannot be evaluated.
    """
    options = _parser().parse_args(args)
    # Libraries greet on stdout, which belongs to the result.
    with contextlib.redirect_stdout(sys.stderr):
        module = load_module(Path(options.ckpt))
        result = _play(module, options.episodes, options.seed)
    sys.stdout.write((result.as_json() if options.json else result.as_text()) + "\n")
    sys.stdout.flush()


def load_module(path: Path) -> pl.LightningModule:
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
            f"{module_class.__qualname__} cannot be rebuilt from {path}: {first_line(error)}"
        ) from error
    return module.eval()


def _find_class(path: Path, checkpoint: dict[str, Any]) -> type[pl.LightningModule]:
    hyper_parameters = checkpoint.get("hyper_parameters") or {}
    name = checkpoint.get("module_class") or hyper_parameters.get("_class_path")
    if not isinstance(name, str):
        raise CommandError(
            f"{path} does not say what it holds: it has no key 'module_class'. Let the module's "
            "on_save_checkpoint put its class there, checkpoint['module_class'] = "
            "'my_package.MyModule'; in modules trained by 'fit', save_hyperparameters() does."
        )
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CommandError(
            f"{path} holds a {name}, which cannot be imported: {first_line(error)}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, pl.LightningModule)):
        raise CommandError(f"{path} holds a {name}, which is not a LightningModule.")
    return found


def _play(module: pl.LightningModule, episodes: int, seed: int) -> Evaluation:
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
    known = [key for key in ("returns", "success", "costs", "early_ends") if key in result]
    wrong = [key for key in known if len(result[key]) != episodes]
    if wrong:
        raise CommandError(
            f"{name} was asked for {episodes} episodes and gave "
            f"{', '.join(f'{len(result[key])} {key}' for key in wrong)}."
        )
    costs, ends = result.get("costs"), result.get("early_ends")
    return Evaluation(
        returns=[float(value) for value in result["returns"]],
        success=[None if value is None else bool(value) for value in result["success"]],
        costs=None if costs is None else [float(value) for value in costs],
        early_ends=None if ends is None else [None if end is None else str(end) for end in ends],
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} evaluate",
        description=SUMMARY,
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
        help='write one line, {"returns": [...], "success": [...]}, and "costs" and "early_ends" '
        "where the agent tells them, and nothing else, to stdout",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {value}")
    return value
