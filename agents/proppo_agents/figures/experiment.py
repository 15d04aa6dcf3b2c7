"""What an experiment is: settings, a table, a picture, and what the paper says about it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from matplotlib.figure import Figure
from tqdm import tqdm

Row = dict[str, Any]
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Claim:
    """A statement of the paper's, beside what was measured.

    Attributes:
        text: the statement.
        holds: whether the measurement agrees with it.
        measured: the numbers.
    """

    text: str
    holds: bool
    measured: str

    def __str__(self) -> str:
        """Return it in one line."""
        return f"{'holds' if self.holds else 'DOES NOT HOLD'}: {self.text} ({self.measured})"


def everything_fits(settings: Settings) -> tuple[Settings, list[str]]:
    """Return the settings as they are."""
    return settings, []


@dataclass(frozen=True)
class Experiment(Generic[Settings]):
    """One figure.

    Attributes:
        name: as the command line knows it.
        title: of the picture.
        fields: the columns of the table.
        full: the settings of the paper, or near them.
        quick: settings that take seconds.
        compute: yields the table's rows; moves the bar on, which is one step long for each of an
            own number of steps (``bar.reset(total)``).
        draw: of rows and a line that says how they were made.
        claims: what the paper says, checked against the rows.
        fit: leaves out of the settings what this machine has no memory for, and says so.
    """

    name: str
    title: str
    fields: Sequence[str]
    full: Settings
    quick: Settings
    compute: Callable[[Settings, tqdm], Iterable[Row]]
    draw: Callable[[list[Row], str], Figure]
    claims: Callable[[list[Row]], list[Claim]]
    fit: Callable[[Settings], tuple[Settings, list[str]]] = everything_fits


def silent_bar() -> tqdm:
    """Return a progress bar that nobody sees."""
    return tqdm(disable=True)


def write_table(path: Path, fields: Sequence[str], rows: Iterable[Row]) -> None:
    """Write rows as CSV, with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
