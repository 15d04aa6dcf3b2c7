"""What an error says, with its notes."""

from __future__ import annotations


def all_that_it_says(error: BaseException) -> str:
    """Return the message and the notes, which Python 3.10 has in the message."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])
