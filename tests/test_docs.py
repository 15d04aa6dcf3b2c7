"""What the documentation says works: its code runs, its links lead somewhere, its names exist."""

from __future__ import annotations

import importlib
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import pytest

import lightning_proppo.propagators
import proppo_agents
import proppo_envs

from .scripts import load_script

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PACKAGES = ("lightning_proppo", "envs", "agents")
# The README's code is run by test_readme.py.
LINKING = [ROOT / "README.md", *PAGES]

SNIPPET = re.compile(r'--8<-- "([^":]+)(?::([\w-]+))?"')
BLOCK = re.compile(
    r"(?P<skip><!-- no-run: .+? -->\n)?^```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
# What the pages that show fragments take for granted.
PRELUDE = """
import pytorch_lightning as pl
import torch
from lightning_proppo import PropagationCallback, PropagationManager
from proppo_agents import *
"""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def blocks_of(page: Path) -> Iterator[tuple[int, str]]:
    """The lines and the texts of a page's blocks of Python that are to be run."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        if found["skip"] is None:
            yield text.count("\n", 0, found.start("code")), SNIPPET.sub(included, found["code"])


def included(found: re.Match[str]) -> str:
    text = (ROOT / found[1]).read_text(encoding="utf-8")
    if found[2] is None:
        return text
    start, end = (
        re.compile(rf"^.*--8<-- \[{kind}:{found[2]}\].*\n", re.MULTILINE)
        for kind in ("start", "end")
    )
    begins, ends = start.search(text), end.search(text)
    assert begins is not None, found[0]
    assert ends is not None, found[0]
    return text[begins.end() : ends.start()]


@pytest.mark.usefixtures("pytorch_lightning")
@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks_of(page))], ids=name_of)
def test_its_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Examples are imported by their names, as from their own folder.
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    # A module that can be found, as classes are asked for theirs.
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    exec(PRELUDE, vars(module))
    # One after the other, as a reader would type them.
    for line, code in blocks_of(page):
        exec(compile("\n" * line + code, str(page), "exec", dont_inherit=True), vars(module))
    plt.close("all")


def test_few_blocks_are_not_run() -> None:
    skipped = [
        name_of(page)
        for page in PAGES
        for found in BLOCK.finditer(page.read_text(encoding="utf-8"))
        if found["skip"] is not None
    ]
    assert len(skipped) <= 8, skipped


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and GitHub name them."""
    text = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    found = set()
    for heading in re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading.replace("`", ""))
        slug = re.sub(r"[^\w\s-]", "", plain.encode("ascii", "ignore").decode()).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", slug))
    return found


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_its_links_lead_somewhere(page: Path) -> None:
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        if not aim.exists() or (anchor and anchor not in anchors_of(aim)):
            lost.append(target)
    assert lost == []


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_the_files_that_it_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.])(?:benchmarks|configs|docs|examples|tests)/[\w/.-]+\w", text)
    assert [name for name in sorted(set(named)) if not (ROOT / name).exists()] == []


def test_the_site_has_every_page_in_its_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"^ +- (?:[\w ]+: )?([\w/-]+\.md)$", text, flags=re.MULTILINE))
    assert listed == {page.relative_to(DOCS).as_posix() for page in PAGES}


def referenced() -> list[str]:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    return sorted(
        {name for text in texts for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)}
        | {name for text in texts for name in re.findall(r"\]\[([a-z_]+\.[\w.]+)\]", text)}
    )


def found(path: str) -> Any:
    """What a full path names: a module, or what is in one."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            thing = getattr(thing, part)
        return thing
    raise ModuleNotFoundError(path)


@pytest.mark.parametrize("name", referenced())
def test_the_reference_names_what_exists(name: str) -> None:
    assert found(name).__doc__


@pytest.mark.parametrize(
    "package",
    [lightning_proppo, lightning_proppo.propagators, proppo_envs, proppo_agents],
    ids=lambda package: package.__name__,
)
def test_the_reference_has_all_that_is_public(package: Any) -> None:
    shown = [found(name) for name in referenced()]
    modules = {
        thing.__name__
        for thing in shown
        if hasattr(thing, "__path__") or hasattr(thing, "__file__")
    }
    missing = [
        name
        for name in package.__all__
        if not any(thing is getattr(package, name) for thing in shown)
        and getattr(getattr(package, name), "__module__", None) not in modules
        and not isinstance(getattr(package, name), str)
    ]
    assert missing == []


@pytest.mark.parametrize("page", ["choosing.md", "limits.md"])
def test_its_figures_are_those_that_were_measured(page: str) -> None:
    measured = "".join(
        (DOCS / name).read_text(encoding="utf-8")
        for name in ("estimators.md", "speed.md", "figures.md")
    )
    text = without_code((DOCS / page).read_text(encoding="utf-8"))
    figures = re.findall(r"(?<![\w.])-?\d+\.\d+(?:e-?\d+)?(?: ± [\d.e-]+)?", text)
    assert [figure for figure in figures if figure not in measured] == []


def test_the_diagrams_are_those_that_are_drawn() -> None:
    drawing = load_script(DOCS / "diagrams" / "draw.py")
    for name, draw in drawing.DIAGRAMS.items():
        assert (DOCS / "diagrams" / f"{name}.svg").read_text(encoding="utf-8") == draw().svg()


def test_docstrings_become_markdown() -> None:
    pytest.importorskip("griffe", reason="make docs installs it")
    convert = load_script(DOCS / "rendering" / "docstrings.py").to_markdown
    text = r"""Of :math:`x_i`, :class:`~a.b.Box`.

    .. math:: \frac1P \sum_i x_i, \qquad
              c_{ij}

Like so::

    box(1)

The end.
"""
    assert convert(text, lambda name: f"full.{name}") == (
        r"""Of \(x_i\), <autoref identifier="full.a.b.Box" optional><code>Box</code></autoref>.

    \[\frac1P \sum_i x_i, \qquad c_{ij}\]

Like so:

```python
box(1)
```

The end."""
    )


def test_every_formula_can_be_shown() -> None:
    for tool in ("griffe", "latex2mathml"):
        pytest.importorskip(tool, reason="make docs installs it")
    to_markdown = load_script(DOCS / "rendering" / "docstrings.py").to_markdown
    to_mathml = load_script(DOCS / "rendering" / "mathematics.py").to_mathml
    formulas: set[str] = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        text = to_markdown(path.read_text(encoding="utf-8"), lambda name: name)
        formulas.update(re.findall(r"^ *\\\[(.+)\\\]$", text, flags=re.MULTILINE))
        formulas.update(re.findall(r"\\\((.+?)\\\)", text))
    for page in PAGES:
        text = without_code(page.read_text(encoding="utf-8"))
        formulas.update(re.findall(r"\$\$(.+?)\$\$", text, flags=re.DOTALL))
        formulas.update(re.findall(r"(?<!\$)\$([^$\n]+)\$(?!\$)", text))
    assert len(formulas) > 100
    # What the converter does not know it leaves as it is.
    assert [formula for formula in formulas if "\\" in to_mathml(formula, "inline")] == []
