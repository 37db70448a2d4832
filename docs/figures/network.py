"""Draws the network: `python docs/figures/network.py` writes network.svg beside itself.

Plain SVG by hand, so that the same program writes the same bytes everywhere and a test can compare them.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1000, 470
ITEM, SEMANTIC, SHARED = "#dbe7f5", "#dff0d8", "#f2f2f2"

BOXES = {  # name: x, y, width, height, colour, lines of text
    "sequence": (20, 205, 120, 60, SHARED, ["item sequence", "s_v  [B, L]"]),
    "semantic": (180, 40, 130, 60, SEMANTIC, ["Module 1", "s_c = sem[s_v]"]),
    "E_c": (350, 40, 190, 60, SEMANTIC, ["E_c: embedding, GRU, MLP", "H_c  ->  z_c  [B, k]"]),
    "M_c": (590, 40, 170, 60, SEMANTIC, ["M_c: z_c A_c + a_c", "trunk  W_c, b_c"]),
    "H_v": (180, 140, 130, 60, ITEM, ["E_v: embedding", "H_v  [B, L, d]"]),
    "D": (350, 140, 190, 60, ITEM, ["Module 4: codebook D", "nearest entry q, decoder"]),
    "z_v": (350, 235, 190, 50, ITEM, ["E_v: GRU, MLP", "z_v  [B, k]"]),
    "M_v": (590, 140, 170, 60, ITEM, ["M_v: z_v A_v + a_v", "clip to +-delta"]),
    "layers": (810, 80, 170, 90, "#fbe5d0", ["P dynamic layers", "W = W_c + clip(W_v)", "b = b_c + clip(b_v)"]),
    "backbone": (350, 330, 190, 60, SHARED, ["backbone", "state x  [B, d]"]),
    "u": (810, 235, 170, 50, SHARED, ["user vector u  [B, d]"]),
    "target": (590, 400, 170, 50, SHARED, ["t(v)  [B, T, d]"]),
    "logit": (810, 400, 170, 50, SHARED, ["logit = <u, t(v)>"]),
    "items": (20, 400, 120, 50, SHARED, ["candidates", "v  [B, T]"]),
}
ARROWS = [  # points of each path; the last one has the head
    [(80, 205), (80, 70), (180, 70)],
    [(310, 70), (350, 70)],
    [(540, 70), (590, 70)],
    [(140, 225), (160, 225), (160, 170), (180, 170)],
    [(310, 170), (350, 170)],
    [(445, 200), (445, 235)],
    [(540, 260), (565, 260), (565, 170), (590, 170)],
    [(760, 70), (785, 70), (785, 105), (810, 105)],
    [(760, 170), (785, 170), (785, 145), (810, 145)],
    [(140, 245), (160, 245), (160, 360), (350, 360)],
    [(540, 360), (785, 360), (785, 200), (845, 200), (845, 170)],
    [(895, 170), (895, 235)],
    [(895, 285), (895, 400)],
    [(140, 425), (590, 425)],
    [(760, 425), (810, 425)],
]
LABELS = [
    (445, 124, "L_align ties H_c to q; D starts as E_c's embedding table"),
    (664, 352, "one state for all candidates"),
]
DASHED = [[(445, 100), (445, 112)], [(445, 130), (445, 140)]]


def path(points: list[tuple[int, int]], extra: str) -> str:
    """A line through points."""
    return (
        f'<path d="M {" L ".join(f"{x} {y}" for x, y in points)}" fill="none" stroke="#444" stroke-width="1.4"{extra}/>'
    )


def network() -> str:
    """The figure as SVG text."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="13" role="img">',
        "<title>SOLID: two encoders generate the last layers of a sequential recommender</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M 0 0 L 8 4 L 0 8 z" fill="#444"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    parts += [path(points, ' marker-end="url(#head)"') for points in ARROWS]
    parts += [path(points, ' stroke-dasharray="3 3"') for points in DASHED]
    for x, y, width, height, colour, lines in BOXES.values():
        parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{colour}" stroke="#777"/>')
        first = y + height / 2 - 9 * (len(lines) - 1) + 5
        for place, line in enumerate(lines):
            text = f'<text x="{x + width / 2:g}" y="{first + 18 * place:g}" text-anchor="middle">{escape(line)}</text>'
            parts.append(text)
    for x, y, line in LABELS:
        parts.append(f'<text x="{x}" y="{y}" text-anchor="middle" font-size="12" fill="#555">{escape(line)}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(network(), encoding="utf-8")
