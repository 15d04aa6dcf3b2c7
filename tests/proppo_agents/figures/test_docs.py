"""docs/figures.md shows every figure, in pictures that are there and small."""

from __future__ import annotations

import re
from pathlib import Path

from proppo_agents.figures.command import EXPERIMENTS

DOCS = Path(__file__).resolve().parents[3] / "docs"
TEXT = (DOCS / "figures.md").read_text(encoding="utf-8")


def test_every_figure_is_shown() -> None:
    shown = re.findall(r"!\[[^]]+\]\(figures/figure-(\w+?)(?:-quick)?\.png\)", TEXT)
    assert shown == list(EXPERIMENTS)


def test_its_pictures_are_there_and_small_and_no_others() -> None:
    named = set(re.findall(r"\(figures/([\w-]+\.png)\)", TEXT))
    assert named == {path.name for path in (DOCS / "figures").iterdir()}
    assert all((DOCS / "figures" / name).stat().st_size < 300_000 for name in named)


def test_its_commands_name_figures_that_there_are() -> None:
    commands = re.findall(r"lightning-proppo figures ([^\n`(#]*)--out", TEXT)
    assert len(commands) >= 8
    named = {word for command in commands for word in command.split() if word != "--quick"}
    assert named == set(EXPERIMENTS)
