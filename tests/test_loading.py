"""Nothing of ours unpickles arbitrary objects, which could run code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("lightning_proppo", "envs", "agents", "benchmarks")
PICKLING = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# The user says so, or it is refused.
SAID_BY_THE_USER = "weights_only is not False"


def unsafe(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what could unpickle objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            if {alias.name.partition(".")[0] for alias in node.names} & PICKLING:
                yield node
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").partition(".")[0] in PICKLING:
                yield node
            # So that calls are seen by their names below.
            if node.module in ("torch", "numpy", "yaml") and any(
                alias.name in ("load", "unsafe_load", "full_load") for alias in node.names
            ):
                yield node
        elif isinstance(node, ast.Call) and not is_safe(node):
            yield node


def is_safe(call: ast.Call) -> bool:
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    name = ast.unparse(call.func)
    if name == "torch.load":
        return given.get("weights_only") in ("True", SAID_BY_THE_USER)
    if name in ("np.load", "numpy.load", "np.savez", "np.save"):
        return given.get("allow_pickle") == "False"
    return name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.package")


def test_nothing_of_ours_unpickles() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in unsafe(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.stmt, ast.expr))
    ]
    assert not found


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("import pickle", True),
        ("import numpy, pickle.whatever", True),
        ("from joblib import load", True),
        ("from torch import load", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=weights_only)", True),
        ("torch.load(path, map_location='cpu', weights_only=True)", False),
        ("np.load(path)", True),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path, allow_pickle=False)", False),
        ("yaml.load(text)", True),
        ("yaml.safe_load(text)", False),
        ("json.load(file)", False),
    ],
)
def test_this_test_sees_every_kind(source: str, refused: bool) -> None:
    assert bool(list(unsafe(ast.parse(source)))) is refused
