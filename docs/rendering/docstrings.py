"""A griffe extension: our docstrings' reStructuredText roles and directives as Markdown.

What mkdocstrings hands to Markdown are docstrings in Google's style, whose formulas and references
are written as Sphinx has them. Formulas become those of pymdownx.arithmatex, which
``mathematics.py`` turns into MathML; references become links to where the reference has them.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any

import griffe

_MATH_ROLE = re.compile(r":math:`([^`]+)`")
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`([^`]+)`")
# The directive's line, and what is indented by more than it or empty.
_MATH_BLOCK = re.compile(
    r"^(?P<indent>[ ]*)\.\. math::(?P<first>[^\n]*)\n(?P<rest>(?:[ ]*\n|(?P=indent)[ ]+[^\n]*\n)*)",
    re.MULTILINE,
)
# A paragraph that ends in two colons, and the indented block after it.
_LITERAL = re.compile(
    r"^(?P<indent>[ ]*)(?P<text>(?!\.\. )[^\n]*)::\n\n"
    r"(?P<code>(?:[ ]*\n|(?P=indent)[ ]{2,}[^\n]*\n)+)",
    re.MULTILINE,
)


def to_markdown(text: str, resolve: Callable[[str], str]) -> str:
    """Return a docstring with its formulas, references and literal blocks as Markdown.

    Args:
        text: the docstring, without its indentation.
        resolve: what a reference names, as seen from where it stands -> its full path.
    """

    def block(found: re.Match[str]) -> str:
        lines = [found["first"], *found["rest"].splitlines()]
        formula = " ".join(line.strip() for line in lines if line.strip())
        return f"{found['indent']}\\[{formula}\\]\n\n"

    def literal(found: re.Match[str]) -> str:
        indent, said = found["indent"], found["text"].strip()
        lines = found["code"].rstrip().splitlines()
        least = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        code = "\n".join(indent + line[least:] for line in lines)
        before = f"{indent}{said}:\n\n" if said else ""
        return f"{before}{indent}```python\n{code}\n{indent}```\n\n"

    def reference(found: re.Match[str]) -> str:
        named = found[1]
        shown = named.lstrip("~").rpartition(".")[2] if named.startswith("~") else named
        path = resolve(named.lstrip("~"))
        return f'<autoref identifier="{path}" optional><code>{html.escape(shown)}</code></autoref>'

    text = _MATH_BLOCK.sub(block, text + "\n")
    text = _LITERAL.sub(literal, text)
    text = _MATH_ROLE.sub(r"\\(\1\\)", text)
    return _ROLE.sub(reference, text).rstrip("\n")


class Docstrings(griffe.Extension):
    """Converts every docstring once its package has been loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Convert the docstrings of a package and of all that is in it."""
        del kwargs
        _convert(pkg)


def _convert(thing: griffe.Object) -> None:
    if thing.docstring is not None:
        thing.docstring.value = to_markdown(thing.docstring.value, lambda name: _path(thing, name))
    for member in thing.members.values():
        if not member.is_alias:
            _convert(member)


def _path(thing: griffe.Object, name: str) -> str:
    """Return the full path of what a docstring names: of a member, or in its scope."""
    first, _, rest = name.partition(".")
    if name in thing.members:
        return f"{thing.path}.{name}"
    try:
        found = thing.resolve(first)
    except griffe.NameResolutionError:
        return name
    return f"{found}.{rest}" if rest else found
