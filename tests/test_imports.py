"""The packages' imports point one way; and what libraries do not do."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "lightning_proppo": ROOT / "lightning_proppo",
    "proppo_envs": ROOT / "envs" / "proppo_envs",
    "proppo_agents": ROOT / "agents" / "proppo_agents",
}
MAY_IMPORT = {
    "lightning_proppo": {"lightning_proppo"},
    "proppo_envs": {"proppo_envs"},
    "proppo_agents": {"lightning_proppo", "proppo_envs", "proppo_agents"},
}
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}
# Where it is chosen under which of these names Lightning is imported.
CHOOSING = ("lightning_proppo.installed_lightning", "lightning_proppo.cli.installed")
OUTERMOST = ("lightning_proppo.callbacks", "lightning_proppo.cli", "lightning_proppo.__main__")
MATHEMATICS = ("lightning_proppo.mathematics",)
ENVIRONMENTS_MATHEMATICS = tuple(
    f"proppo_envs.{name}"
    for name in (
        "cart_double_pole_physics",
        "cartpole_physics",
        "checks",
        "costs",
        "integration",
        "measurement",
        "success",
    )
)
AGENTS_PARTS = tuple(
    f"proppo_agents.{name}"
    for name in (
        "arguments",
        "costs",
        "dynamics",
        "encodings",
        "experience.episodes",
        "experience.files",
        "experience.trials",
        "export",
        "initial_state",
        "parts",
        "policies",
        "regression",
        "rollouts",
        "worlds",
    )
)
ROLLOUTS = ("propagators", "engine.tape", "engine.handover", "manager")
# What a layer must not import, but for the sake of types.
FORBIDDEN = {
    "lightning_proppo.containers": ("engine", "propagators", "manager"),
    "lightning_proppo.initializers": ("engine", "propagators", "manager"),
    "lightning_proppo.engine.cuts": ("engine.graph", "containers", *ROLLOUTS),
    "lightning_proppo.engine.graph": ("engine.cuts", "containers", *ROLLOUTS),
    "lightning_proppo.engine.backward_pass": ("containers", *ROLLOUTS),
    "lightning_proppo.engine.traversal": ROLLOUTS,
    "lightning_proppo.engine.costs": ROLLOUTS,
    "lightning_proppo.engine.tape": ("propagators", "engine.handover", "manager"),
    "lightning_proppo.engine.handover": ("propagators", "manager"),
    "lightning_proppo.per_particle": ("containers", "initializers", *ROLLOUTS),
    "lightning_proppo.comparison": ("containers", "initializers", *ROLLOUTS),
    "lightning_proppo.propagators": ("engine.costs", "engine.handover", "manager"),
}


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        is_package = self.path.name == "__init__.py"
        return self.name if is_package else self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        name: with dots, and whatever was asked of it: ``from a import b`` gives ``a.b``.
        types_only: whether it stands under ``if TYPE_CHECKING``.
        at_load: whether importing the file runs it.
        line: where.
    """

    name: str
    types_only: bool
    at_load: bool
    line: int


def modules() -> list[Module]:
    found = []
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
            found.append(Module(".".join((package, *parts)), path, tree))
    return found


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(tree: ast.AST, package: str) -> Iterator[Import]:
    """Every import below ``tree``, in functions and branches too."""

    def walk(node: ast.AST, types_only: bool, at_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, types_only, at_load, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join((*above, base) if base else above)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", types_only, at_load, node.lineno)
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            for child in node.body:
                yield from walk(child, True, at_load)
            for child in node.orelse:
                yield from walk(child, types_only, at_load)
        else:
            inside = at_load and not isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
            )
            for child in ast.iter_child_nodes(node):
                yield from walk(child, types_only, inside)

    return walk(tree, False, True)


def lies_in(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def told(module: Module, found: Import) -> str:
    return f"{module.path.relative_to(ROOT)}:{found.line} imports {found.name}"


def importing(modules: Iterable[Module], *names: str) -> list[str]:
    """Say where these modules import anything of these names."""
    return [
        told(module, found)
        for module in modules
        for found in imports(module.tree, module.package)
        if lies_in(found.name, *names)
    ]


@pytest.fixture(scope="module")
def ours() -> list[Module]:
    found = modules()
    assert {module.name.partition(".")[0] for module in found} == set(FOLDERS)
    return found


def within(ours: list[Module], *packages: str, besides: tuple[str, ...] = ()) -> list[Module]:
    found = [module for module in ours if lies_in(module.name, *packages)]
    assert found
    return [module for module in found if not lies_in(module.name, *besides)]


def test_packages_import_each_other_one_way(ours: list[Module]) -> None:
    for package, allowed in MAY_IMPORT.items():
        assert importing(within(ours, package), *(set(FOLDERS) - allowed)) == []


def test_no_library_imports_tests_or_benchmarks(ours: list[Module]) -> None:
    assert importing(ours, "tests", "benchmarks", "pytest", "hypothesis") == []


def test_only_callbacks_and_command_line_know_lightning(ours: list[Module]) -> None:
    others = within(ours, "lightning_proppo", besides=(*OUTERMOST, *CHOOSING))
    assert importing(others, *LIGHTNING, *CHOOSING) == []


def test_one_place_decides_what_lightning_is_called(ours: list[Module]) -> None:
    names = {module.name for module in ours}
    assert names >= set(CHOOSING)
    others = within(ours, *FOLDERS, besides=CHOOSING)
    assert importing(others, *LIGHTNING) == []


def test_parts_of_agents_know_no_lightning(ours: list[Module]) -> None:
    assert {module.name for module in ours} >= set(AGENTS_PARTS)
    parts = within(ours, *AGENTS_PARTS)
    assert importing(parts, *LIGHTNING, *CHOOSING, "proppo_agents.pilco") == []


def test_acting_needs_no_gaussian_processes(ours: list[Module]) -> None:
    acting = within(ours, "proppo_agents.policies", "proppo_agents.encodings")
    learning = ("gpytorch", "proppo_agents.regression", "proppo_agents.dynamics")
    assert importing(acting, *learning) == []


def test_nothing_within_imports_callbacks_or_command_line(ours: list[Module]) -> None:
    # But for the package itself, which gives the callbacks their public names.
    inner = [
        module
        for module in within(ours, "lightning_proppo", besides=OUTERMOST)
        if module.name != "lightning_proppo"
    ]
    assert importing(inner, *OUTERMOST) == []


@pytest.mark.parametrize("mathematics", [MATHEMATICS, ENVIRONMENTS_MATHEMATICS])
def test_mathematics_knows_nothing_else_of_ours(
    mathematics: tuple[str, ...], ours: list[Module]
) -> None:
    allowed = {"torch", "numpy", *sys.stdlib_module_names}
    assert set(mathematics) <= {module.name for module in ours}
    wrong = [
        told(module, found)
        for module in ours
        if module.name in mathematics
        for found in imports(module.tree, module.package)
        if found.name.partition(".")[0] not in allowed and not lies_in(found.name, *mathematics)
    ]
    assert not wrong


def test_simulators_and_screens_are_imported_only_when_asked_for(ours: list[Module]) -> None:
    wrong = [
        told(module, found)
        for module in ours
        for found in imports(module.tree, module.package)
        if found.at_load and lies_in(found.name, "mujoco", "pygame", "gymnasium.envs")
    ]
    assert not wrong


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_layers_import_downwards(layer: str, ours: list[Module]) -> None:
    above = [f"lightning_proppo.{name}" for name in (*FORBIDDEN[layer], "callbacks", "cli")]
    wrong = [
        told(module, found)
        for module in within(ours, layer)
        for found in imports(module.tree, module.package)
        # A type may be named from above; nothing of it is there when the code runs.
        if lies_in(found.name, *above) and not found.types_only
    ]
    assert not wrong


def test_there_is_no_cycle(ours: list[Module]) -> None:
    names = {module.name for module in ours}
    edges: dict[str, set[str]] = {}
    for module in ours:
        needed = edges.setdefault(module.name, set())
        for found in imports(module.tree, module.package):
            if found.types_only or not found.at_load:
                continue
            # ``from a import b``: b is a module, or a name in a.
            target = found.name if found.name in names else found.name.rpartition(".")[0]
            if target in names and target != module.name:
                needed.add(target)
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(error.args[1])}")


def test_libraries_do_not_use_pyplot(ours: list[Module]) -> None:
    # It chooses a backend, and keeps every figure, for the whole process.
    assert importing(ours, "matplotlib.pyplot", "pylab") == []


def test_libraries_do_not_print(ours: list[Module]) -> None:
    wrong = [
        f"{module.path.relative_to(ROOT)}:{node.lineno}"
        for module in ours
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "builtins.print")
    ]
    assert not wrong


def test_libraries_do_not_assert(ours: list[Module]) -> None:
    # python -O removes assertions: what users must not do is refused by an exception.
    wrong = [
        f"{module.path.relative_to(ROOT)}:{node.lineno}"
        for module in ours
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Assert)
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import lightning", Import("lightning", False, True, 1)),
        ("import lightning.pytorch as pl", Import("lightning.pytorch", False, True, 1)),
        ("from a.b import c", Import("a.b.c", False, True, 1)),
        ("from . import d", Import("pack.sub.d", False, True, 1)),
        ("from .d import e", Import("pack.sub.d.e", False, True, 1)),
        ("from ..d import e", Import("pack.d.e", False, True, 1)),
        ("def f():\n    import a", Import("a", False, False, 2)),
        ("try:\n    import a\nexcept ImportError: pass", Import("a", False, True, 2)),
        ("if TYPE_CHECKING:\n    import a", Import("a", True, True, 2)),
        ("if not TYPE_CHECKING:\n    import a", Import("a", False, True, 2)),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import a", Import("a", False, True, 4)),
    ],
)
def test_these_tests_see_every_kind_of_import(source: str, expected: Import) -> None:
    assert list(imports(ast.parse(source), "pack.sub")) == [expected]
