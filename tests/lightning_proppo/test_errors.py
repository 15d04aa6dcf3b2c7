from __future__ import annotations

import sys

import pytest

from lightning_proppo.errors import add_note

from ..errors import all_that_it_says


@pytest.mark.parametrize("version", [(3, 10), (3, 11)])
def test_a_note_is_part_of_what_an_error_says(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int]
) -> None:
    if sys.version_info < version:
        pytest.skip("this Python has no notes")
    monkeypatch.setattr(sys, "version_info", (*version, 0))
    error = RuntimeError("it failed")
    add_note(error, "Try again.")
    add_note(error, "Or do not.")
    assert all_that_it_says(error) == "it failed\nTry again.\nOr do not."
    assert ("Try again." in str(error)) == (version == (3, 10))
