"""The states of the global generators: exchanged, kept and brought back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_proppo.generators import current, isolated, packed, restore, seeded, unpacked

CPU = torch.device("cpu")


def drawn() -> list[Any]:
    return [
        torch.rand(2).tolist(),
        np.random.standard_normal(3).tolist(),
        random.gauss(0.0, 1.0),
        random.random(),
    ]


@pytest.mark.parametrize("normals", [0, 1])
def test_a_checkpoint_brings_them_back(normals: int, tmp_path: Path) -> None:
    # After one normal number, a second one waits.
    for _ in range(normals):
        np.random.standard_normal()
        random.gauss(0.0, 1.0)
    torch.save(packed(current(CPU)), tmp_path / "states")
    expected = drawn()
    drawn()
    restore(unpacked(torch.load(tmp_path / "states", weights_only=True)), CPU)
    assert drawn() == expected


def test_one_row_of_several_ranks_is_enough() -> None:
    rows = [packed(seeded(seed, CPU)) for seed in (1, 2)]
    stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    restore(seeded(2, CPU), CPU)
    expected = drawn()
    restore(unpacked({name: row[1] for name, row in stacked.items()}), CPU)
    assert drawn() == expected


def test_seeds_differ_and_repeat() -> None:
    found = []
    for seed in (1, 2, 1, 2**62):
        restore(seeded(seed, CPU), CPU)
        found.append(drawn())
    assert found[0] == found[2]
    for i in range(4):
        assert found[0][i] != found[1][i]
        assert found[0][i] != found[3][i]


def draw_and_fail(expected: list[Any]) -> None:
    with isolated(3, CPU):
        assert drawn() == expected
        raise ValueError("injected")


def test_a_block_leaves_them_as_they_were() -> None:
    states = current(CPU)
    expected = drawn()
    restore(states, CPU)
    with isolated(3, CPU):
        first = drawn()
    with pytest.raises(ValueError, match="injected"):
        draw_and_fail(first)
    assert drawn() == expected
