"""Files that are there as a whole or not at all."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any


def write_whole(target: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under another name, bring it to the disk, and rename it.

    Whatever ends the process, a file of that name is the one before or the new one.

    Args:
        target: the file, in a folder that exists.
        write: writes the content to the open file.

    Raises:
        OSError: if it cannot be written; so does whatever ``write`` raises go on.
    """
    # In the same folder: a rename from another file system is a copy, which can be cut off.
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def remove_unfinished(target: Path) -> None:
    """Remove what writes of a file that were killed have left; nobody may be writing it now."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; some systems cannot, and are left alone."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
