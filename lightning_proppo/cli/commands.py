"""Subcommands that other packages bring, found through an entry-point group.

::

    [project.entry-points."lightning_proppo.commands"]
    figures = "proppo_agents.figures.command:main"

Such a ``main(args)`` takes what follows the subcommand's name and returns an exit status, or None
for 0. It may raise :class:`~lightning_proppo.cli.program.CommandError`, which is told in one line.
The first line of its docstring is its help.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint

from lightning_proppo.cli.program import CommandError, first_line

GROUP = "lightning_proppo.commands"

Command = Callable[[Sequence[str]], int | None]


def found() -> dict[str, EntryPoint]:
    """Return the subcommands that installed packages bring, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def load(point: EntryPoint) -> Command:
    """Return a subcommand's function.

    Raises:
        CommandError: if it cannot be imported.
    """
    try:
        command: Command = point.load()
    except (ImportError, AttributeError) as error:
        raise CommandError(f"{point.value} cannot be imported: {first_line(error)}") from error
    return command


def summary(point: EntryPoint) -> str:
    """Return what a subcommand does, in a line, or that it cannot be imported."""
    try:
        return (inspect.getdoc(load(point)) or point.value).splitlines()[0]
    except CommandError as error:
        return str(error)
