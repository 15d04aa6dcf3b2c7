"""Episodes on disk: real experience costs more than anything that is computed of it.

An episode is one file ``episode-NUMBER-DIGEST.npz`` (:func:`numpy.savez`) with the arrays
``observations`` [H + 1, D], ``actions`` [H, A], ``rewards`` [H] and ``success`` [], all that
:class:`~proppo_agents.experience.episodes.Episode` holds, and ``about``, a JSON text on where it
comes from. Nothing is pickled, and nothing is unpickled.

A file is there as a whole or not at all (:mod:`lightning_proppo.files`). Episodes are told apart by
the digest of their numbers, so that none is there twice.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_proppo.files import sync_folder, write_whole
from proppo_agents.experience.episodes import Episode

_ARRAYS = {"observations": 2, "actions": 2, "rewards": 1, "success": 0}
_OPTIONAL = {"terminated": 0}  # files of before do not have it
_NOT_REPORTED = np.array(-1, dtype=np.int8)
_NAME = re.compile(r"episode-(\d+)-([0-9a-f]{16})\.npz")


class EpisodeFileError(ValueError):
    """A file or a folder does not hold what it should."""


@dataclass(frozen=True)
class StoredEpisode:
    """An episode that was read from a file.

    Attributes:
        episode: what was seen and done.
        about: where it comes from, as given when it was written.
        path: of the file.
    """

    episode: Episode
    about: dict[str, Any]
    path: Path


class EpisodeFolder:
    """A folder that episodes are added to.

    Args:
        path: of the folder, which is made with the first episode.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return len(self._files())

    def add(self, episode: Episode, about: dict[str, Any] | None = None) -> Path:
        """Write an episode, unless the folder holds it, and return its file.

        When this returns, the file is on the disk.

        Args:
            episode: is written as it is, also if not all of it is finite.
            about: plain values on where it comes from.

        Raises:
            OSError: if it cannot be written.
        """
        digest = digest_of(episode)
        numbers = [0]
        for path in self._files():
            found = _NAME.fullmatch(path.name)
            if found is not None and found[2] == digest:
                return path
            if found is not None:
                numbers.append(int(found[1]))
        if not self.path.is_dir():
            self.path.mkdir(parents=True, exist_ok=True)
            sync_folder(self.path.parent)
        # Of two that write at once, both may take this number; the digest tells them apart.
        target = self.path / f"episode-{max(numbers) + 1:05d}-{digest}.npz"
        # No part of the digest, which files of before have in their names. It comes first: a
        # damaged file may lack the last arrays, and this one would not be missed.
        arrays: dict[str, Any] = {"terminated": np.array(episode.terminated), **_arrays(episode)}
        arrays["about"] = np.array(json.dumps(about or {}, default=str))
        write_whole(target, lambda file: np.savez(file, allow_pickle=False, **arrays))
        return target

    def last(self) -> StoredEpisode | None:
        """Return the episode of the last file; None if there is none.

        Raises:
            EpisodeFileError: if it cannot be read.
        """
        files = self._files()
        return read_episode(files[-1]) if files else None

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("*.npz")) if self.path.is_dir() else []


def read_episodes(source: Path) -> list[StoredEpisode]:
    """Return the episodes of a folder, in the order of their names, or that of one file.

    An episode that is there twice is returned once.

    Args:
        source: the folder or the file.

    Raises:
        EpisodeFileError: if there is none, or a file cannot be read.
    """
    if not source.exists():
        raise EpisodeFileError(f"{source} does not exist; expected a folder of episodes (*.npz).")
    paths = sorted(source.glob("*.npz")) if source.is_dir() else [source]
    if not paths:
        raise EpisodeFileError(f"{source} holds no episodes; expected files *.npz.")
    return without_doubles(read_episode(path) for path in paths)


def without_doubles(
    found: Iterable[StoredEpisode], known: Iterable[Episode] = ()
) -> list[StoredEpisode]:
    """Return episodes in their order, each once, without those that are known already."""
    seen = {digest_of(episode) for episode in known}
    chosen = []
    for each in found:
        digest = digest_of(each.episode)
        if digest not in seen:
            seen.add(digest)
            chosen.append(each)
    return chosen


def read_episode(path: Path) -> StoredEpisode:
    """Return the episode of a file.

    Raises:
        EpisodeFileError: if it is cut off or damaged, holds something else, or numbers that are
            not finite. The message names the file.
    """
    try:
        arrays = _read_arrays(path)
        about = json.loads(str(arrays.pop("about", np.array("{}"))))
        _check(arrays, about)
    # A damaged file can make NumPy, zipfile and zlib raise almost anything.
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise EpisodeFileError(
            f"{path} is not a whole episode: "
            f"{lines[0].rstrip('.') if lines else type(error).__name__}. Move it away to go on "
            "without it."
        ) from error
    tensors = {
        name: torch.from_numpy(np.array(arrays[name], dtype=np.float64))
        for name in ("observations", "actions", "rewards")
    }
    success = None if arrays["success"] == _NOT_REPORTED else bool(arrays["success"])
    terminated = bool(arrays.get("terminated", False))
    return StoredEpisode(Episode(**tensors, success=success, terminated=terminated), about, path)


def digest_of(episode: Episode) -> str:
    """Return what tells an episode from others: 16 hexadecimal digits made of its numbers."""
    return digest_of_arrays(_arrays(episode))


def digest_of_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return 16 hexadecimal digits made of the names, types, shapes and numbers of arrays."""
    sha = hashlib.sha256()
    for name, array in arrays.items():
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()[:16]


def _arrays(episode: Episode) -> dict[str, NDArray[Any]]:
    # Little-endian: a digest must not depend on the processor.
    found: dict[str, NDArray[Any]] = {
        name: np.ascontiguousarray(getattr(episode, name).detach().cpu().numpy(), dtype="<f8")
        for name in ("observations", "actions", "rewards")
    }
    success = episode.success
    return found | {"success": _NOT_REPORTED if success is None else np.array(bool(success))}


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    # Of another file NumPy would say how to read it unsafely.
    if not zipfile.is_zipfile(path):
        raise ValueError("it is cut off, or no .npz at all")
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _check(arrays: dict[str, NDArray[Any]], about: Any) -> None:
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise ValueError(f"it holds no {', '.join(missing)}.")
    # A name that is damaged must not pass for an array that is not there.
    unknown = sorted(arrays.keys() - _ARRAYS.keys() - _OPTIONAL.keys())
    if unknown:
        raise ValueError(f"it holds {', '.join(unknown)}, which is unknown here.")
    if not isinstance(about, dict):
        raise ValueError("about is no JSON object.")
    for name, axes in (_ARRAYS | _OPTIONAL).items():
        if name not in arrays:
            continue
        array = arrays[name]
        if array.ndim != axes or array.dtype.kind not in "fiub":
            raise ValueError(
                f"{name} must be numbers along {axes} axes; got {array.dtype} {list(array.shape)}."
            )
        wrong = int((~np.isfinite(array)).sum())
        if wrong:
            raise ValueError(f"{name} must be finite; got {wrong} NaN or infinite values.")
    steps = len(arrays["actions"])
    if not (steps >= 1 and len(arrays["observations"]) == steps + 1):
        raise ValueError(
            "there must be an action or more, and one observation more than actions; got "
            f"{len(arrays['observations'])} and {steps}."
        )
    if len(arrays["rewards"]) != steps:
        raise ValueError(f"rewards must be as many as actions, {steps}.")
