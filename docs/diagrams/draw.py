"""Draws the diagrams of docs/concepts.md: `python docs/diagrams/draw.py`.

Plain SVG, so that text stays text. Blue is what happens forward, orange what happens backward.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent

INK, QUIET, PAPER = "#1f2937", "#6b7280", "#ffffff"
BLUE, PALE_BLUE = "#3949ab", "#e8eaf6"
ORANGE, PALE_ORANGE = "#d9480f", "#fff0e6"
PALE = "#f3f4f6"


class Drawing:
    """Shapes on a white sheet, whose coordinates are pixels."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        lines: list[str],
        stroke: str = INK,
        fill: str = PAPER,
        size: float = 14,
        dashed: bool = False,
    ) -> None:
        """Draw a box with centred lines; a line in backquotes is code."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="1.5"{dash}/>'
        )
        first = y + height / 2 - (len(lines) - 1) * size * 0.68
        for i, line in enumerate(lines):
            self.text(x + width / 2, first + i * size * 1.36, line, size=size, middle=True)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 14,
        colour: str = INK,
        anchor: str = "middle",
        bold: bool = False,
        middle: bool = False,
    ) -> None:
        """Write a line; in backquotes it is code."""
        code = words.startswith("`")
        family = "ui-monospace, 'DejaVu Sans Mono', monospace" if code else "sans-serif"
        shown = size * 0.92 if code else size
        baseline = ' dominant-baseline="central"' if middle else ""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" font-family="{family}" font-size="{shown:g}" fill="{colour}" '
            f'text-anchor="{anchor}"{baseline}{weight}>{escape(words.strip("`"))}</text>'
        )

    def arrow(
        self, points: list[tuple[float, float]], colour: str = BLUE, dashed: bool = False
    ) -> None:
        """Draw an arrow along straight lines."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        marker = "blue" if colour == BLUE else "orange" if colour == ORANGE else "ink"
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dash} '
            f'marker-end="url(#{marker})"/>'
        )

    def svg(self) -> str:
        """Return the file's text."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{colour}"/>'
            "</marker>"
            for name, colour in (("blue", BLUE), ("orange", ORANGE), ("ink", INK))
        )
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<defs>{heads}</defs>\n"
            f'<rect width="{self.width}" height="{self.height}" rx="8" fill="{PAPER}"/>\n'
            f"{body}\n</svg>\n"
        )


def propagation() -> Drawing:
    """What a rollout leaves on the tape, and what goes back over it."""
    d = Drawing(900, 392, "A rollout, its tape, and the pass over it")
    d.text(
        20, 32, "Forward: your code runs, and each call leaves a node", anchor="start", bold=True
    )
    d.text(
        20,
        52,
        "manager.sample cuts PyTorch's graph: what lies between is a segment",
        13,
        QUIET,
        anchor="start",
    )
    top, tape = 80, 205
    d.box(20, top, 60, 50, ["x₀"])
    d.box(105, top, 75, 50, ["dynamics", "θ"], QUIET, PALE, 13)
    d.box(205, top, 75, 50, ["x₁"], BLUE, PALE_BLUE)
    d.box(345, top, 75, 50, ["cost c₁"], BLUE, PALE_BLUE)
    d.box(440, top, 65, 50, ["dynamics", "θ"], QUIET, PALE, 12)
    d.box(530, top, 75, 50, ["x₂"], BLUE, PALE_BLUE)
    d.box(665, top, 75, 50, ["cost c₂"], BLUE, PALE_BLUE)
    d.box(775, top, 105, 50, ["`manager.loss`"], INK, PAPER)
    middle = top + 25
    for a, b in ((80, 105), (180, 205), (280, 345), (505, 530), (605, 665), (740, 775)):
        d.arrow([(a, middle), (b, middle)])
    d.arrow([(310, middle), (310, top - 12), (472, top - 12), (472, top)])
    d.text(20, tape - 18, "The tape", anchor="start", bold=True)
    nodes = (
        (20, 110, "terminal node", []),
        (187, 110, "node of x₁", ["loc, scale, noise"]),
        (327, 110, "node of c₁", ["costs [P, 1]"]),
        (512, 110, "node of x₂", ["loc, scale, noise"]),
        (647, 110, "node of c₂", ["costs [P, 1]"]),
    )
    for x, width, name, holds in nodes:
        d.box(
            x,
            tape,
            width,
            56,
            [name, *holds],
            BLUE if holds else QUIET,
            PALE_BLUE if holds else PALE,
            13,
        )
    for x in (242, 382, 567, 702):
        d.arrow([(x, top + 50), (x, tape)], BLUE, dashed=True)
    low = 298
    d.arrow([(702, tape + 56), (702, low), (580, low), (580, tape + 58)], ORANGE)
    d.text(641, low + 18, "L = c₂", 13, ORANGE)
    d.arrow([(554, tape + 56), (554, low), (400, low), (400, tape + 58)], ORANGE)
    d.text(477, low + 18, "L = c₂", 13, ORANGE)
    d.arrow([(370, tape + 56), (370, low), (260, low), (260, tape + 58)], ORANGE)
    d.text(315, low + 18, "L = c₁ + c₂", 13, ORANGE)
    d.arrow([(226, tape + 56), (226, low), (75, low), (75, tape + 58)], ORANGE)
    d.text(150, low + 18, "what is left", 13, ORANGE)
    d.text(
        20,
        352,
        "Backward: one node after the other, from the last to the first, each with the "
        "messages in its mailbox",
        anchor="start",
        bold=True,
    )
    d.text(
        20,
        372,
        "L is what each particle pays from here on, [P, 1]. Gradients go by the segments "
        "between the nodes, as far as to parameters and to earlier samples.",
        13,
        QUIET,
        anchor="start",
    )
    return d


def node() -> Drawing:
    """What happens at the node of one sample, for total propagation."""
    d = Drawing(900, 425, "Total propagation at the node of one sample")
    d.box(215, 70, 470, 300, [], BLUE, PALE_BLUE)
    d.text(450, 60, "the node of a sample x = loc + scale · ε", bold=True)
    # From later nodes.
    d.text(790, 100, "later nodes", 14, QUIET)
    d.arrow([(880, 135), (650, 135)], ORANGE)
    d.text(790, 125, "message: L [P, 1]", 13, ORANGE)
    d.arrow([(880, 265), (650, 265)], ORANGE)
    d.text(790, 237, "cotangent of x,", 13, ORANGE)
    d.text(790, 254, "gathered at the cut", 13, ORANGE)
    d.box(520, 110, 130, 50, ["baseline", "L - b"], ORANGE, PAPER, 13)
    d.box(520, 240, 130, 50, ["x, cut", "dC/dx [P, D]"], ORANGE, PAPER, 13)
    d.box(370, 100, 125, 70, ["LR's way", "(L - b) ∇log p", "to loc and scale"], ORANGE, PAPER, 13)
    d.box(370, 230, 125, 70, ["RP's way", "dC/dx to loc,", "ε dC/dx to scale"], ORANGE, PAPER, 13)
    d.arrow([(520, 135), (497, 135)], ORANGE)
    d.arrow([(520, 265), (497, 265)], ORANGE)
    d.box(
        235,
        150,
        110,
        100,
        ["mix", "k LR", "+ (1 - k) RP", "k by variances"],
        ORANGE,
        PALE_ORANGE,
        13,
    )
    d.arrow([(370, 135), (355, 135), (355, 180), (347, 180)], ORANGE)
    d.arrow([(370, 265), (355, 265), (355, 220), (347, 220)], ORANGE)
    d.text(450, 342, "kept from the forward pass: loc and scale with their graph, ε", 13, QUIET)
    # To earlier ones.
    d.text(105, 100, "earlier nodes", 14, QUIET)
    d.arrow([(235, 185), (20, 185)], ORANGE)
    d.text(112, 157, "gradient, pulled back", 13, ORANGE)
    d.text(112, 174, "to parameters θ", 13, ORANGE)
    d.arrow([(235, 225), (20, 225)], ORANGE)
    d.text(112, 243, "and to the earlier", 13, ORANGE)
    d.text(112, 260, "sample's cut", 13, ORANGE)
    d.arrow([(670, 135), (670, 318), (20, 318)], ORANGE, dashed=True)
    d.text(112, 336, "message: L, as it came", 13, ORANGE)
    d.text(
        450,
        405,
        "RP alone is the lower way, LR alone the upper one. Variances are over the "
        "particles, which is why a loss to differentiate cannot do it.",
        13,
        QUIET,
    )
    return d


def handover() -> Drawing:
    """A rollout as one autograd node."""
    d = Drawing(900, 340, "A rollout is one autograd node")
    d.box(235, 60, 400, 190, [], BLUE, PALE_BLUE)
    d.text(435, 48, "one node of PyTorch's graph", bold=True)
    for i, name in enumerate(("x₁", "c₁", "x₂", "c₂", "…")):
        d.box(258 + i * 73, 105, 58, 44, [name], BLUE, PAPER)
    d.text(435, 88, "the tape, closed by manager.loss", 13, QUIET)
    d.arrow([(608, 178), (262, 178)], ORANGE)
    d.text(435, 200, "backward(): the propagators run here, segment by", 13, ORANGE)
    d.text(435, 218, "segment, and return one gradient for each parameter", 13, ORANGE)
    for i, name in enumerate(("θ policy", "θ model", "…")):
        y = 72 + i * 62
        d.box(30, y, 105, 44, [name], INK, PALE)
        d.arrow([(135, y + 16), (233, y + 16)], BLUE)
        d.arrow([(235, y + 30), (137, y + 30)], ORANGE)
    d.box(700, 105, 70, 54, ["loss", "[ ]"], INK, PALE)
    d.arrow([(635, 122), (698, 122)], BLUE)
    d.arrow([(700, 144), (637, 144)], ORANGE)
    d.arrow([(770, 122), (878, 122)], BLUE)
    d.arrow([(880, 144), (772, 144)], ORANGE)
    d.text(828, 112, "w · loss + …", 13, BLUE)
    d.text(828, 163, "incoming", 13, ORANGE)
    d.text(828, 179, "gradient", 13, ORANGE)
    d.text(82, 283, "one arrival each:", 13, QUIET)
    d.text(82, 301, "DDP, hooks, clipping", 13, QUIET)
    d.text(82, 319, "work as always", 13, QUIET)
    d.text(790, 283, "an ordinary scalar:", 13, QUIET)
    d.text(790, 301, "sums, loss scaling and", 13, QUIET)
    d.text(790, 319, "accumulation multiply it", 13, QUIET)
    return d


DIAGRAMS = {"propagation": propagation, "node": node, "handover": handover}


def main() -> None:
    """Write the diagrams beside this file."""
    for name, draw in DIAGRAMS.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
