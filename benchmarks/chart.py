"""Draws a line chart as SVG: a logarithmic x axis, ratios on the y axis, a line for each series, every point marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 46, 48
COLOURS = ("#1f6feb", "#d1570a", "#2a7d46")

Points = Sequence[tuple[float, float]]


def draw_chart(title: str, x_title: str, y_title: str, series: Mapping[str, Points], *, top: float = 0.0) -> str:
    """The chart. ``top`` is the least value that the y axis reaches."""
    xs = [x for points in series.values() for x, _ in points]
    highest = max(top, max(y for points in series.values() for _, y in points))
    step = _step(highest)
    ceiling = math.ceil(highest / step - 1e-9) * step
    low, high = math.log10(min(xs)), math.log10(max(xs))

    def across(x: float) -> float:
        return LEFT + (math.log10(x) - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - y / ceiling * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold" fill="#1f2328">{escape(title)}</text>',
    ]
    for number in range(round(ceiling / step) + 1):
        y = number * step
        out.append(
            f'<line x1="{LEFT}" y1="{up(y):.1f}" x2="{WIDTH - RIGHT}" y2="{up(y):.1f}" stroke="#d8dee4" stroke-width="1"/>'
            f'<text x="{LEFT - 6}" y="{up(y) + 4:.1f}" font-size="11" text-anchor="end" fill="#57606a">{y:g}</text>'
        )
    out += [
        f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 16}" font-size="11" text-anchor="middle" fill="#57606a">'
        f"{_short(x)}</text>"
        for x in sorted(set(xs))
    ]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    out.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 10}" font-size="12" text-anchor="middle" fill="#1f2328">'
        f"{escape(x_title)}</text>"
        f'<text x="14" y="{middle:.0f}" font-size="12" text-anchor="middle" fill="#1f2328" '
        f'transform="rotate(-90 14 {middle:.0f})">{escape(y_title)}</text>'
    )
    key_x = float(LEFT)
    for (name, points), colour in zip(series.items(), COLOURS, strict=False):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [
            f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.5" fill="{colour}"><title>{name}, {_short(x)}: {y:.3g}'
            "</title></circle>"
            for x, y in points
        ]
        out.append(
            f'<rect x="{key_x:.0f}" y="30" width="12" height="3" fill="{colour}"/>'
            f'<text x="{key_x + 16:.0f}" y="35" font-size="11" fill="#1f2328">{escape(name)}</text>'
        )
        key_x += 34 + 6.2 * len(name)
    return "\n".join([*out, "</svg>", ""])


def _step(highest: float) -> float:
    """A round number that divides the axis into at most seven parts."""
    exponent = 10.0 ** math.floor(math.log10(highest))
    return next(size * exponent for size in (0.1, 0.25, 0.5, 1, 2) if highest / (size * exponent) <= 7)


def _short(x: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if x >= size:
            return f"{x / size:g}{letter}"
    return f"{x:g}"
