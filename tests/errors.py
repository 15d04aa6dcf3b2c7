"""What an error says, and that it is the one that is meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest


def all_that_it_says(error: BaseException) -> str:
    """Return the message and the notes, which Python 3.10 has in the message."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def assert_refused(error: type[Exception], words: Sequence[str], act: Callable[[], Any]) -> None:
    """Do it; one exception of exactly this type, which hides no other, has all of these words."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        act()
    message = str(caught.value)
    assert type(caught.value) is error, f"{type(caught.value).__name__}: {message}"
    assert caught.value.__context__ is None, f"it hides another one: {message}"
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
