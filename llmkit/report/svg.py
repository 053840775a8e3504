"""Line charts as inline SVG text: no script, no font, no file from elsewhere."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 760, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 36
MAX_POINTS = 1500
"""More points than pixels make a page heavy and no clearer."""


@dataclass(frozen=True)
class Line:
    """One curve: (x, y) in order of x; `style` is a CSS class of the page."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]


def chart(lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """The curves over shared axes; "" where none has two finite points."""
    kept = [Line(line.name, line.style, _thin(line.points)) for line in lines]
    kept = [line for line in kept if line.points]
    if not any(len(line.points) > 1 for line in kept):
        return ""
    xs = [x for line in kept for x, _ in line.points]
    ys = [y for line in kept for _, y in line.points]
    x_low, x_high = min(xs), max(xs)
    y_ticks = ticks(min(ys), max(ys))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        up = (y - y_low) / ((y_high - y_low) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    names = ", ".join(line.name for line in kept)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(f"{y_label}: {names}")}">']
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_label(tick)}</text>')
    for tick in ticks(x_low, x_high):
        if x_low <= tick <= x_high:
            x, _ = place(tick, y_low)
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_label(tick)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{html.escape(x_label)}</text>')
    for line in kept:
        placed = [place(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="{line.style}" points="{path}"/>')
        if len(placed) <= 40:
            parts += [f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in placed]
    parts.append("</svg>")
    keys = "".join(f'<span class="{line.style}">{html.escape(line.name)}</span>' for line in kept)
    return f"<figure>{''.join(parts)}<figcaption>{html.escape(y_label)}: {keys}</figcaption></figure>"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that enclose [low, high], about `count` of them."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, last + 1)]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The finite points, means of neighbours where there are very many."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    stride = -(-len(finite) // MAX_POINTS)
    if stride <= 1:
        return finite
    groups = [finite[i : i + stride] for i in range(0, len(finite), stride)]
    return [(group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups]


def _label(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 0.001:
        return f"{value:.2g}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:,.4g}"
