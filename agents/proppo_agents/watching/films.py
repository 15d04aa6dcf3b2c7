"""Episodes as films: an mp4, a GIF, or a picture for each frame."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import RecordVideo, RenderCollection
from numpy.typing import NDArray

from proppo_agents.experience.episodes import Episode, PolicyFunction, collect_episode

# What a format is written with, and how to have it.
_NEEDS = {
    ".mp4": ("moviepy", 'pip install "lightning-proppo[video]"'),
    ".gif": ("PIL", 'pip install "lightning-proppo[render]"'),
    "": ("PIL", 'pip install "lightning-proppo[render]"'),
}
# Browsers slow a GIF down whose frames are shorter (s).
_SHORTEST_FRAME = 0.02


class FilmError(ValueError):
    """An episode cannot be filmed here."""


@dataclass(frozen=True)
class Film:
    """An episode, and what it looked like.

    Attributes:
        episode: of H steps.
        frames: H + 1 pictures [height, width, 3], uint8.
        frames_per_second: at which it lasts as long as it did.
    """

    episode: Episode
    frames: list[NDArray[np.uint8]]
    frames_per_second: float

    def as_gif(self) -> bytes:
        """Return a GIF that goes on and on. Of very many frames a second some are left out."""
        from PIL import Image

        stride = math.ceil(round(_SHORTEST_FRAME * self.frames_per_second, 6))
        first, *others = [Image.fromarray(frame) for frame in self.frames[:: max(stride, 1)]]
        buffer = io.BytesIO()
        first.save(
            buffer,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=1000 * max(stride, 1) / self.frames_per_second,
            loop=0,
        )
        return buffer.getvalue()


def can_write(suffix: str) -> None:
    """Check that there is what a format needs.

    Args:
        suffix: ``".mp4"``, ``".gif"``, or nothing for a folder of PNGs.

    Raises:
        FilmError: if there is no such format, or its library is not installed.
    """
    if suffix not in _NEEDS:
        raise FilmError(
            "a film must be an .mp4, a .gif, or a name without a dot, for a folder of pictures; "
            f"got {suffix!r}."
        )
    library, install = _NEEDS[suffix]
    if importlib.util.find_spec(library) is None:
        other = "; or take .gif" if suffix == ".mp4" else ""
        raise FilmError(
            f"{suffix or 'PNG'} needs {library}, which is not installed: {install}{other}."
        )


def rendered(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Return another environment of the same kind and wrappers, which renders pictures.

    Raises:
        FilmError: if it was not made by ``gymnasium.make``, or has no pictures.
    """
    spec = env.spec
    if spec is None:
        raise FilmError(
            "the environment cannot be made a second time, to be filmed, because it was not made "
            "by gymnasium.make."
        )
    modes = env.metadata.get("render_modes", [])
    if "rgb_array" not in modes:
        raise FilmError(f"{spec.id} cannot be filmed: it has no render_mode 'rgb_array'.")
    return gymnasium.make(spec, render_mode="rgb_array")


def film_episode(
    env: gymnasium.Env[Any, Any], policy: PolicyFunction | None, seed: int, path: Path | None = None
) -> Film:
    """Act for one episode, film it, and write the film.

    An mp4 is written by Gymnasium's RecordVideo. Files are there as a whole or not at all.

    Args:
        env: with ``render_mode="rgb_array"``; see :func:`rendered`. It is left open.
        policy: acts; None: random actions.
        seed: of the episode.
        path: an .mp4 or .gif, which is overwritten, or a folder for PNGs, which must not hold
            anything; None: nothing is written.

    Raises:
        FilmError: if it cannot be written.
        gymnasium.error.DependencyNotInstalled: if the environment lacks what it draws with.
    """
    if path is not None:
        can_write(path.suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
    env = _CopiedPictures(env)
    fps = float(env.metadata.get("render_fps") or 30)
    if path is not None and path.suffix == ".mp4":
        return _record(env, policy, seed, path, fps)
    collection: Any = RenderCollection(env)
    episode = collect_episode(collection, policy, seed)
    film = Film(episode, list(collection.render()), fps)
    if path is not None and path.suffix == ".gif":
        unfinished = path.with_name(f".{path.name}.tmp")
        unfinished.write_bytes(film.as_gif())
        os.replace(unfinished, path)
    elif path is not None:
        _write_pictures(film, path)
    return film


class _CopiedPictures(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gymnasium's collectors keep the pictures that they get, and an environment may reuse its."""

    def render(self) -> Any:
        """Return a picture of one's own."""
        return np.array(super().render())


def _record(
    env: gymnasium.Env[Any, Any], policy: PolicyFunction | None, seed: int, path: Path, fps: float
) -> Film:
    # In a folder of its own: RecordVideo names the file itself, and warns of others beside it.
    with tempfile.TemporaryDirectory(prefix=".film-", dir=path.parent) as folder:
        recorder: Any = RecordVideo(
            env,
            video_folder=str(Path(folder) / "video"),
            episode_trigger=lambda episode: True,
            fps=round(fps),
        )
        episode = collect_episode(recorder, policy, seed)
        frames = list(recorder.recorded_frames)
        # Not close(), which would close the environment.
        recorder.stop_recording()
        [written] = Path(folder).rglob("*.mp4")
        os.replace(written, path)
    return Film(episode, frames, fps)


def _write_pictures(film: Film, folder: Path) -> None:
    from PIL import Image

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FilmError(f"{folder} must be a new or an empty folder, for a picture of each frame.")
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(film.frames):
        Image.fromarray(frame).save(folder / f"frame-{index:05d}.png")
