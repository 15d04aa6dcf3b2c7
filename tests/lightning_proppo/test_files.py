"""Files are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lightning_proppo.files import remove_unfinished, write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "a[1].txt"
    for content in (b"first", b"second"):
        write_whole(target, lambda file, content=content: file.write(content))
        assert target.read_bytes() == content
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_fails_leaves_the_file_before(
    step: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "kept"
    target.write_bytes(b"before")

    def fail(*args: Any) -> None:
        raise error("injected")

    if step != "write":
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(error, match="injected"):
        write_whole(target, fail if step == "write" else lambda file: file.write(b"after"))
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a[1].ckpt"
    others = [tmp_path / name for name in (".b.ckpt.7.tmp", ".a1.ckpt.7.tmp", "a[1].ckpt")]
    for path in [*others, tmp_path / ".a[1].ckpt.7.tmp"]:
        path.touch()
    remove_unfinished(target)
    assert sorted(tmp_path.iterdir()) == sorted(others)
