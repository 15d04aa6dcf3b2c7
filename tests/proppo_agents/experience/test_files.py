"""Episodes on disk: nothing is lost, doubled, half written, or read from what is no episode."""

from __future__ import annotations

import json
import os
import pickle
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from proppo_agents.experience.episodes import Episode
from proppo_agents.experience.files import (
    EpisodeFileError,
    EpisodeFolder,
    digest_of,
    read_episode,
    read_episodes,
    without_doubles,
)


def episode(seed: int = 0, steps: int = 5) -> Episode:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(steps + 1, 6, generator=generator, dtype=torch.float64)
    success = (False, True, None)[seed % 3]
    return Episode(drawn[:, :4], drawn[1:, 4:5], drawn[1:, 5], success, terminated=seed % 2 == 0)


def same(first: Episode, second: Episode) -> bool:
    ends = (first.success is second.success, first.terminated is second.terminated)
    return all(ends) and all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("observations", "actions", "rewards")
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return EpisodeFolder(tmp_path).add(episode(), {"seed": 3})


def test_what_is_read_is_what_was_written(written: Path) -> None:
    for seed in (1, 2):
        path = EpisodeFolder(written.parent).add(episode(seed))
        assert same(read_episode(path).episode, episode(seed))
    found = read_episode(written)
    assert same(found.episode, episode())
    assert found.about == {"seed": 3}
    assert found.episode.observations.dtype == torch.float64


def test_a_file_of_before_does_not_say_whether_it_was_terminated(written: Path) -> None:
    with np.load(written) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "terminated"}
    np.savez(written, **arrays)
    assert same(read_episode(written).episode, replace(episode(), terminated=False))


def test_a_folder_keeps_the_order_and_goes_on_counting(tmp_path: Path) -> None:
    for seed in (5, 3):
        EpisodeFolder(tmp_path / "data").add(episode(seed))
    EpisodeFolder(tmp_path / "data").add(episode(4))
    found = read_episodes(tmp_path / "data")
    assert [each.path.name[:14] for each in found] == [f"episode-0000{i}-" for i in (1, 2, 3)]
    assert all(same(f.episode, episode(s)) for f, s in zip(found, (5, 3, 4), strict=True))
    assert len(EpisodeFolder(tmp_path / "data")) == 3
    assert len(EpisodeFolder(tmp_path / "none")) == 0


def test_an_episode_is_there_once(tmp_path: Path) -> None:
    folder = EpisodeFolder(tmp_path)
    assert folder.add(episode(1)) == folder.add(episode(1))
    assert len(folder) == 1
    (tmp_path / "copy.npz").write_bytes(folder.add(episode(1)).read_bytes())
    assert len(read_episodes(tmp_path)) == 1


def test_episodes_differ_by_every_number() -> None:
    first = episode()
    others = [
        replace(first, success=not first.success),
        replace(first, success=None),
        replace(first, rewards=first.rewards + 1e-12),
        replace(first, actions=first.actions.reshape(1, 5)),
        episode(1),
    ]
    assert len({digest_of(each) for each in [first, *others]}) == 6
    assert digest_of(first) == digest_of(episode())


def test_known_episodes_are_left_out(tmp_path: Path) -> None:
    for seed in range(3):
        EpisodeFolder(tmp_path).add(episode(seed))
    [left] = without_doubles(read_episodes(tmp_path), [episode(2), episode(0)])
    assert same(left.episode, episode(1))


@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_named(written: Path, keep: float) -> None:
    whole = written.read_bytes()
    written.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(EpisodeFileError, match=re.escape(f"{written} is not a whole episode")):
        read_episodes(written.parent)


def test_no_byte_can_change_unnoticed(written: Path) -> None:
    whole = written.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        written.write_bytes(damaged)
        # It may read where it is a byte that the format does not use, such as a time.
        with suppress(EpisodeFileError):
            assert same(read_episode(written).episode, episode())


class Trap:
    def __reduce__(self) -> Any:
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rewards": None}, "it holds no rewards"),
        ({"rewards": np.zeros(4)}, "rewards must be as many as actions, 5"),
        ({"rewards": np.full(5, np.nan)}, "rewards must be finite; got 5 NaN"),
        ({"actions": np.zeros(5)}, "actions must be numbers along 2 axes"),
        ({"actions": np.full((5, 1), "a")}, "actions must be numbers along 2 axes"),
        ({"observations": np.zeros((5, 4))}, "one observation more than actions; got 5 and 5"),
        ({"actions": np.array([[Trap()]] * 5, dtype=object)}, "allow_pickle=False"),
        ({"about": np.array("[]")}, "about is no JSON object"),
        ({"about": np.array("{")}, "Expecting property name"),
    ],
)
def test_files_that_hold_something_else_are_named(
    changes: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = vars(episode()) | {"about": np.array("{}")} | changes
    path = tmp_path / "mine.npz"
    np.savez(path, **{k: np.asarray(v) for k, v in arrays.items() if v is not None})
    with pytest.raises(EpisodeFileError, match=f"(?s)mine.npz is not a whole episode.*{told}"):
        read_episode(path)
    assert not (tmp_path / "sprung").exists()


def test_pickles_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pickled.npz"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(
        EpisodeFileError, match=r"pickled\.npz is not .* no \.npz at all\. Move it away"
    ):
        read_episode(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(EpisodeFileError, match=r"no \.npz at all"):
        read_episode(tmp_path / "array.npy")
    assert not (tmp_path / "sprung").exists()


def test_nobody_has_to_use_this_package(written: Path) -> None:
    with np.load(written, allow_pickle=False) as found:
        assert found["observations"].shape == (6, 4)
        assert found["success"].dtype == bool
        assert json.loads(str(found["about"])) == {"seed": 3}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EpisodeFileError, match="nowhere does not exist"):
        read_episodes(tmp_path / "nowhere")
    with pytest.raises(EpisodeFileError, match="holds no episodes"):
        read_episodes(tmp_path)


@pytest.mark.parametrize("step", ["savez", "fsync", "replace"])
def test_a_write_that_fails_leaves_nothing_that_looks_like_an_episode(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = EpisodeFolder(tmp_path)
    folder.add(episode(0))

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np if step == "savez" else os, step, full)
        with pytest.raises(OSError, match="No space left"):
            folder.add(episode(1))
    assert len(list(tmp_path.iterdir())) == 1
    folder.add(episode(1))
    assert len(read_episodes(tmp_path)) == 2


def test_what_a_killed_process_leaves_is_no_episode(written: Path) -> None:
    (written.parent / f".{written.stem}-77.tmp").write_bytes(written.read_bytes()[:100])
    assert len(read_episodes(written.parent)) == 1


def test_the_disk_has_the_file_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def noted(*args: Any, name: str = name, real: Any = real) -> Any:
            done.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, noted)
    EpisodeFolder(tmp_path).add(episode())
    assert done == ["fsync", "replace", "fsync"]
