"""The errors that are this package's own, and the words they are made of.

Arguments that are wrong by themselves raise :class:`TypeError` or :class:`ValueError`; calls that
come in the wrong order, or on a tape that cannot answer them, raise :class:`PropagationError`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

# What to do where statistics of particles need several.
MORE_PARTICLES = (
    "Use more particles; where only the last batch is too small, give the DataLoader drop_last=True"
)


class PropagationError(RuntimeError):
    """A manager, tape or propagator was used in an order that cannot give a right gradient."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for a near miss among ``known``, else an empty string."""
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def add_note(error: BaseException, note: str) -> None:
    """Add a line, once, to what an error says. Python 3.10 knows no notes: the message gets it."""
    if note in getattr(error, "__notes__", ()) or note in str(error):
        return
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:
        error.args = (f"{error}\n{note}",)


def check_names(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise if a name in ``given`` is not in ``known``.

    Args:
        owner: what takes the options, for the message.
        given: the names that came.
        known: the names that are understood.

    Raises:
        TypeError: at the first unknown name, with a suggestion.
    """
    known = list(known)
    for name in given:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise TypeError(
                f"{owner} got an unknown option {name!r}; its options are: {listed}."
                f"{did_you_mean(name, known)}"
            )


def check_choice(name: str, given: object, known: Iterable[str]) -> None:
    """Raise unless an argument is one of the names that are known.

    Args:
        name: the argument's.
        given: what came.
        known: the names that are understood.

    Raises:
        ValueError: for anything else, with a suggestion.
    """
    known = list(known)
    if given not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(known)}; got {given!r}."
            f"{did_you_mean(str(given), known)}"
        )
