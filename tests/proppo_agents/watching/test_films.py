"""Films of episodes: as long as they were, whole or not there, and refused where they cannot be."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RescaleAction
from PIL import Image

from proppo_agents.experience.episodes import Episode, collect_episode
from proppo_agents.watching import films
from proppo_agents.watching.films import Film, FilmError, can_write, film_episode, rendered

NAME = "proppo_envs:CartPoleSwingUp-v0"
has_moviepy = importlib.util.find_spec("moviepy") is not None


def policy(observation: torch.Tensor) -> torch.Tensor:
    return torch.full((1, 1), 0.25)


@pytest.fixture(scope="module")
def env() -> Iterator[gymnasium.Env[Any, Any]]:
    with gymnasium.make(NAME, render_mode="rgb_array", cost_width=0.3) as made:
        yield made


def film_of(count: int, fps: float) -> Film:
    rewards = torch.zeros(count - 1, dtype=torch.float64)
    # Each frame another grey, so that none is taken for the one before.
    frames = [np.full((4, 6, 3), 2 * index, dtype=np.uint8) for index in range(count)]
    return Film(Episode(rewards[:, None], rewards[:, None], rewards, False), frames, fps)


def test_filming_changes_nothing(env: gymnasium.Env[Any, Any]) -> None:
    film = film_episode(env, policy, seed=3)
    with gymnasium.make(NAME, cost_width=0.3) as plain:
        expected = collect_episode(plain, policy, seed=3)
    assert torch.equal(film.episode.observations, expected.observations)
    assert torch.equal(film.episode.rewards, expected.rewards)
    assert len(film.frames) == 26
    assert film.frames_per_second == 10
    assert not np.array_equal(film.frames[0], film.frames[-1])


class OneCanvas(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Draws all its pictures into one array."""

    def render(self) -> Any:
        picture = super().render()
        self.canvas = getattr(self, "canvas", np.empty_like(picture))
        self.canvas[:] = picture
        return self.canvas


def test_an_environment_may_draw_all_its_pictures_into_one_array(
    env: gymnasium.Env[Any, Any],
) -> None:
    expected = film_episode(env, policy, seed=3).frames
    found = film_episode(OneCanvas(env), policy, seed=3).frames
    assert np.array_equal(found, expected)


def test_the_environment_is_made_again_with_its_wrappers_and_options() -> None:
    with gymnasium.make(NAME, cost_width=0.3, max_episode_steps=7) as made:
        half = np.full(1, 0.5, dtype=np.float32)
        scaled: gymnasium.Env[Any, Any] = RescaleAction(made, -half, half)
        with rendered(scaled) as again:
            assert again.render_mode == "rgb_array"
            assert again.action_space == scaled.action_space
            cost_width = again.unwrapped.cost_width  # type: ignore[attr-defined]
            assert cost_width == 0.3
            assert len(film_episode(again, policy, 0).frames) == 8


def test_a_gif_lasts_as_long_as_the_episode(env: gymnasium.Env[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "new" / "film.gif"
    for _ in range(2):  # it is overwritten
        film_episode(env, policy, 0, path)
    assert [each.name for each in path.parent.iterdir()] == ["film.gif"]
    with Image.open(path) as image:
        assert image.format == "GIF"
        assert image.size == (600, 300)
        assert image.info["duration"] == 100
        assert image.n_frames >= 20  # frames that look alike are joined


@pytest.mark.parametrize(
    ("fps", "stride", "milliseconds"), [(10, 1, 100), (50, 1, 20), (60, 2, 30), (125, 3, 20)]
)
def test_a_gif_with_too_many_frames_leaves_some_out(
    fps: float, stride: int, milliseconds: int, tmp_path: Path
) -> None:
    path = tmp_path / "film.gif"
    path.write_bytes(film_of(61, fps).as_gif())
    with Image.open(path) as image:
        assert image.n_frames == len(range(0, 61, stride))
        # A GIF counts hundredths of a second.
        assert image.info["duration"] == milliseconds


def test_a_folder_holds_a_picture_of_each_frame(
    env: gymnasium.Env[Any, Any], tmp_path: Path
) -> None:
    film = film_episode(env, policy, 0, tmp_path / "frames")
    found = sorted((tmp_path / "frames").iterdir())
    assert [path.name for path in found] == [f"frame-{index:05d}.png" for index in range(26)]
    with Image.open(found[7]) as image:
        assert np.array_equal(np.asarray(image), film.frames[7])
    with pytest.raises(FilmError, match="frames must be a new or an empty folder"):
        film_episode(env, policy, 0, tmp_path / "frames")


@pytest.mark.skipif(not has_moviepy, reason="needs MoviePy")
def test_an_mp4_is_recorded(env: gymnasium.Env[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    for _ in range(2):
        film = film_episode(env, policy, 3, path)
    assert [each.name for each in tmp_path.iterdir()] == ["film.mp4"]
    assert path.read_bytes()[4:8] == b"ftyp"
    assert len(film.frames) == 26
    assert torch.equal(film.episode.actions, film_episode(env, policy, 3).episode.actions)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FilmError, match=r"\.mp4 needs moviepy.*\[video\].*take \.gif"):
        can_write(".mp4")
    with pytest.raises(FilmError, match=r"\.gif needs PIL.*\[render\]"):
        can_write(".gif")
    with pytest.raises(FilmError, match=r"must be an \.mp4, a \.gif.*got '\.avi'"):
        can_write(".avi")


def test_what_has_no_pictures_is_refused() -> None:
    class Blind(gymnasium.Env[Any, Any]):
        pass

    with pytest.raises(FilmError, match=r"not made by gymnasium\.make"):
        rendered(Blind())
    blind = Blind()
    blind.spec = gymnasium.spec("CartPole-v1")
    with pytest.raises(FilmError, match="has no render_mode 'rgb_array'"):
        rendered(blind)
