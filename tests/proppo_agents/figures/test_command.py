"""``lightning-proppo figures``: files, what it says, and the pictures' looks."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from tqdm import tqdm

from lightning_proppo.cli import CommandError
from proppo_agents.figures import (
    bookkeeping,
    derivative,
    landscape,
    memory,
    multi_path,
    timing,
    variance,
)
from proppo_agents.figures.command import EXPERIMENTS, main, run
from proppo_agents.figures.experiment import Experiment, silent_bar
from proppo_agents.figures.style import COLOURS, line_style

# As small as they can be: what matters here is what is made of the numbers.
TINY: dict[str, Any] = {
    "5": timing.Settings("batch", (2, 3), 2, repetitions=2),
    "6": timing.Settings("dimension", (2, 3), 2, repetitions=2),
    "7": bookkeeping.Settings(counts=(1000, 2000), repetitions=1),
    "8b": derivative.Settings(betas=31, particles=3),
    "8c": landscape.Settings(points=20),
    "11": multi_path.Settings(
        betas=(2.0, 2.5), paths=(1, 3), repetitions=4, particles=8, horizon=3
    ),
    "variance": variance.Settings(
        betas=(2.0, 3.0), estimators=variance.PAPERS, repetitions=2, particles=8
    ),
}


@pytest.fixture(autouse=True)
def no_memory_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second for each rollout."""
    monkeypatch.setattr(bookkeeping, "TRACED", 0)


def tiny(name: str) -> Experiment[Any]:
    experiment = EXPERIMENTS[name]
    return dataclasses.replace(experiment, quick=TINY.get(name, experiment.quick))


def test_the_figures_are_those_of_the_paper() -> None:
    assert list(EXPERIMENTS) == ["5", "6", "7", "8a", "8b", "8c", "11", "variance"]
    assert all(name == experiment.name for name, experiment in EXPERIMENTS.items())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_writes_a_picture_and_a_table(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny(name), tmp_path, quick=True)
    picture, table = (tmp_path / f"figure-{name}-quick{suffix}" for suffix in (".png", ".csv"))
    assert {path.name for path in tmp_path.iterdir()} == {picture.name, table.name}
    assert picture.stat().st_size < 300_000
    pixels = imread(picture)
    assert pixels.std() > 0.01
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert tuple(rows[0]) == tuple(EXPERIMENTS[name].fields)
    told = capsys.readouterr().out
    assert told.startswith(f"figure {name}: ")
    assert "quick: " in told
    assert str(picture) in told
    assert told.count("holds: ") + told.count("DOES NOT HOLD: ") >= 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_axes_are_labelled_and_lines_told_apart(name: str) -> None:
    experiment = tiny(name)
    rows = list(experiment.compute(experiment.quick, silent_bar()))
    figure = experiment.draw(rows, "the note")
    assert figure.get_supxlabel() == "the note"
    assert figure.get_suptitle()
    for axes in figure.axes:
        # Panels that share an axis say what it is once.
        assert axes.get_xlabel() or axes.get_ylabel()
    assert any(axes.get_xlabel() for axes in figure.axes)
    assert any(axes.get_ylabel() for axes in figure.axes)
    labels = [axes.get_legend_handles_labels()[1] for axes in figure.axes]
    if max(map(len, labels)) > 1:
        assert any(axes.get_legend() for axes in figure.axes)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_bar_comes_to_its_end(name: str) -> None:
    experiment = tiny(name)
    with tqdm(file=io.StringIO()) as bar:
        list(experiment.compute(experiment.quick, bar))
        assert bar.n == bar.total > 1


def test_every_line_has_a_look_of_its_own() -> None:
    names = [*multi_path.ESTIMATORS, "TPX", "RP, detached", "TP+mesh", "prototype RP"]
    looks = set()
    for name in names:
        style = line_style(name)
        face = style.get("markerfacecolor", style["color"])
        looks.add((style["color"], style["marker"], style["linestyle"], face))
    assert len(looks) == len(names)
    others = {(s["color"], s["marker"]) for s in (line_style(f"new {i}", i) for i in range(49))}
    assert len(others) == 49


def test_the_colours_differ_in_brightness_or_hue_for_the_colour_blind() -> None:
    """Simulated protanopia and deuteranopia (Viénot, Brettel and Mollon 1999), in linear RGB."""
    red_and_green = {"protanopia": (0.11238, 0.88762), "deuteranopia": (0.29275, 0.70725)}
    leak = {"protanopia": 0.00401, "deuteranopia": -0.02234}
    for name, (from_red, from_green) in red_and_green.items():
        seen = []
        for colour in COLOURS:
            red, green, blue = (value**2.2 for value in to_rgb(colour))
            yellow = from_red * red + from_green * green
            bluish = max(leak[name] * (red - green) + blue, 0.0)
            seen.append((yellow ** (1 / 2.2), bluish ** (1 / 2.2)))
        for one, other in itertools.combinations(seen, 2):
            assert math.dist(one, other) > 0.1, name


def test_a_seed_makes_a_figure_again(tmp_path: Path) -> None:
    for name in ("8b", "8c", "11"):
        tables = []
        for seed in (0, 0, 1):
            run(tiny(name), tmp_path, quick=True, seed=seed)
            tables.append((tmp_path / f"figure-{name}-quick.csv").read_text())
        assert tables[0] == tables[1] != tables[2]


def test_chosen_figures_are_computed_once_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["8a", "8c", "8a", "--quick", "--out", str(tmp_path / "new" / "folder")]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("figure ")]
    assert [line.split(":")[0] for line in told] == ["figure 8a", "figure 8c"]
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["8d", "--out", "x"], "must be one of 5, 6, 7, 8a, 8b, 8c, 11, variance; got '8d'"),
        (["varience", "--out", "x"], "Did you mean 'variance'?"),
        (["8a"], "--out"),
        (["8a", "--out", "x", "--threads", "0"], "at least 1"),
        (["8a", "--out", "x", "--quik"], "--quik"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_figure_without_memory_for_any_of_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    with pytest.raises(CommandError, match="no memory for figure 7: a rollout of 1,000 is left"):
        run(tiny("7"), tmp_path, quick=True)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_folders_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(CommandError, match="taken cannot be made"):
        main(["8a", "--out", str(tmp_path / "taken")])
