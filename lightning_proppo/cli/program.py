"""What the parts of the command line share."""

from __future__ import annotations

PROGRAM = "lightning-proppo"
USER_ERROR = 2


class CommandError(Exception):
    """What the user asked for cannot be done; told in one line, without a traceback."""


def first_line(error: BaseException) -> str:
    """Return an error's first line, or its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
