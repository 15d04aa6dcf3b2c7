"""The command ``lightning-proppo``.

::

    lightning-proppo fit --config configs/pilco_cartpole.yaml
    lightning-proppo resume runs/pilco_cartpole/version_0
    lightning-proppo evaluate --ckpt runs/.../last.ckpt --episodes 10
    lightning-proppo figures 8a --out figures

``fit``, ``validate``, ``test`` and ``predict`` are those of
:class:`pytorch_lightning.cli.LightningCLI` (:mod:`~lightning_proppo.cli.training`); ``resume`` and
``evaluate`` are in :mod:`~lightning_proppo.cli.resume` and :mod:`~lightning_proppo.cli.evaluate`;
all others are found through an entry-point group
(:mod:`~lightning_proppo.cli.commands`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import EntryPoint

from jsonargparse import DefaultHelpFormatter

from lightning_proppo.cli import commands, evaluate, resume
from lightning_proppo.cli.evaluate import Evaluation, load_module
from lightning_proppo.cli.installed import LightningCLI
from lightning_proppo.cli.program import PROGRAM, USER_ERROR, CommandError
from lightning_proppo.cli.training import ProppoCLI, SaveRunConfig
from lightning_proppo.errors import did_you_mean

__all__ = ["CommandError", "Evaluation", "ProppoCLI", "SaveRunConfig", "load_module", "main"]


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
    name = given[0] if given else ""
    own = [*LightningCLI.subcommands(), "resume", "evaluate"]
    others = {key: point for key, point in commands.found().items() if key not in own}
    try:
        if name == "evaluate":
            evaluate.main(given[1:])
            return 0
        if name in others:
            return commands.load(others[name])(given[1:]) or 0
        if name == "resume":
            given = resume.fit_arguments(given[1:])
            # The command's own are still in sys.argv, where Lightning's launchers look for them.
            warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    except CommandError as error:
        sys.stderr.write(f"{PROGRAM} {name}: error: {error}\n")
        return USER_ERROR
    if name == "--version":
        sys.stdout.write(f"{PROGRAM} {importlib.metadata.version(PROGRAM)}\n")
        return 0
    known = [*own, *others]
    if name and not name.startswith("-") and name not in known:
        sys.stderr.write(
            f"{PROGRAM}: error: there is no subcommand {name!r}; choose one of "
            f"{', '.join(known)}.{did_you_mean(name, known)}\n"
        )
        return USER_ERROR
    ProppoCLI(
        args=None if args is None and name != "resume" else given,
        # A run that goes on keeps the configuration that it began with.
        save_config_callback=None if name == "resume" else SaveRunConfig,
        parser_kwargs={
            "prog": PROGRAM,
            # What others bring must be imported to be described.
            "description": _description(others if name in ("-h", "--help") else {}),
            "formatter_class": _HelpFormatter,
        },
    )
    return 0


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines."""


def _description(others: dict[str, EntryPoint]) -> str:
    lines = {"resume": resume.SUMMARY, "evaluate": evaluate.SUMMARY}
    lines |= {name: commands.summary(point) for name, point in others.items()}
    table = "\n".join(f"  {name:<18}  {line}" for name, line in lines.items())
    return (
        "Train LightningModules whose gradients are propagated through stochastic rollouts, and\n"
        "act with what they learned. Besides Lightning's subcommands, further below, there are\n"
        f"these (each has its own --help):\n\n{table}"
    )
