"""An MkDocs hook: formulas as MathML, which browsers show without scripts or fonts of others."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes, with generic: true.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)

_SIZED_ANGLE = re.compile(r"\\[bB]igg?[lr]?\s*(\\[lr]angle)")
_NAME = re.compile(r"(<mi>(?:exp|log|max|min)</mi>)(?!<mo)")


def to_mathml(tex: str, display: str) -> str:
    """Return a formula as MathML.

    Args:
        tex: LaTeX; with several lines, or columns, as in ``aligned``.
        display: ``"block"`` or ``"inline"``.
    """
    # Angle brackets stretch by themselves, and the converter knows no sizes of theirs.
    tex = _SIZED_ANGLE.sub(r"\1", tex)
    if ("&" in tex or r"\\" in tex) and r"\begin" not in tex:
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    made = str(convert(tex, display=display))
    # A function's name stands off from what it is applied to.
    return _NAME.sub(r'\1<mspace width="0.17em"/>', made)


def on_page_content(content: str, **kwargs: Any) -> str:
    """Replace the formulas of a page."""
    del kwargs

    def replace(found: re.Match[str]) -> str:
        block = found["tag"] == "div"
        formula = to_mathml(html.unescape(found["tex"]), "block" if block else "inline")
        return f'<div class="formula">{formula}</div>' if block else formula

    return _FORMULA.sub(replace, content)
