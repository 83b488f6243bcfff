"""Charts as self-contained SVG: bars and scatter plots, readable in light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
  .frame { fill: none; stroke: #888; stroke-width: 1 }
  .grid { stroke: #888; stroke-opacity: .25 }
  text { font: 12px system-ui, sans-serif; fill: #222 }
  .title { font-size: 14px; font-weight: 600 }
  .small { font-size: 11px }
  .a { fill: #2166ac } .b { fill: #b2182b } .line { fill: none; stroke: #2166ac; stroke-width: 1.5 }
  .guide { stroke: #888; stroke-dasharray: 4 4 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .a { fill: #67a9cf } .b { fill: #ef8a62 } .line { stroke: #67a9cf }
    .page { fill: #16181c }
  }
  .page { fill: #fff }
"""
_ROW = 18
_MARGIN = 16


@dataclass(frozen=True)
class Panel:
    """A piece of SVG and its size in pixels."""

    svg: str
    width: int
    height: int


def document(panels: Sequence[Panel], title: str) -> str:
    """One SVG document with the panels below one another."""
    width = max((p.width for p in panels), default=0) + 2 * _MARGIN
    height = sum(p.height + _MARGIN for p in panels) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
    ]
    top = _MARGIN
    for panel in panels:
        parts.append(f'<g transform="translate({_MARGIN},{top})">{panel.svg}</g>')
        top += panel.height + _MARGIN
    parts.append("</svg>\n")
    return "".join(parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span [low, high], about `count` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def bars(title: str, rows: Sequence[tuple[str, float]], unit: str, *, width: int = 760) -> Panel:
    """Horizontal bars, one row each.

    Args:
        title: above the chart.
        rows: label and value; values that are not finite get no bar.
        unit: of the values.
        width: of the chart, in pixels.
    """
    label = min(320, 16 + 7 * max((len(name) for name, _ in rows), default=0))
    top, room = 40, width - label - 70
    finite = [v for _, v in rows if math.isfinite(v)]
    low, high = min([0.0, *finite]), max([1e-12, *finite])
    scale = room / (high - low)

    def x(value: float) -> float:
        return label + (value - low) * scale

    height = top + _ROW * len(rows) + 24
    parts = [f'<text class="title" x="0" y="14">{escape(title)}</text>']
    for tick in ticks(low, high):
        at = f"{x(tick):.1f}"
        parts.append(f'<line class="grid" x1="{at}" x2="{at}" y1="{top - 8}" y2="{height - 20}"/>')
        parts.append(
            f'<text class="small" text-anchor="middle" x="{at}" y="{height - 6}">{_number(tick)}</text>'
        )
    for i, (name, value) in enumerate(rows):
        y = top + i * _ROW
        shown = name if len(name) <= 44 else f"...{name[-41:]}"
        parts.append(
            f'<text class="small" text-anchor="end" x="{label - 6}" y="{y + 11}">{escape(shown)}</text>'
        )
        if math.isfinite(value):
            left, right = sorted((x(0.0), x(value)))
            length = max(right - left, 0.5)
            parts.append(
                f'<rect class="a" x="{left:.1f}" y="{y + 2}" width="{length:.1f}" height="11">'
                f"<title>{escape(name)}: {_number(value)} {escape(unit)}</title></rect>"
            )
        parts.append(
            f'<text class="small" x="{max(x(value if math.isfinite(value) else 0), x(0)) + 4:.1f}" '
            f'y="{y + 11}">{_number(value)}</text>'
        )
    parts.append(f'<text class="small" text-anchor="end" x="{width}" y="14">{escape(unit)}</text>')
    return Panel("".join(parts), width, height)


def scatter(
    title: str,
    points: Sequence[tuple[float, float, str, bool]],
    x_label: str,
    y_label: str,
    *,
    guide: tuple[float, str] | None = None,
    joined: bool = True,
    width: int = 760,
    height: int = 320,
) -> Panel:
    """Points with labels; the marked ones (a Pareto front, say) joined by a line.

    Args:
        title: above the chart.
        points: x, y, label, and whether it is marked. A point whose y is infinite stands on the upper edge,
            as an arrow; other points that are not finite are left out.
        x_label, y_label: of the axes.
        guide: an x with a meaning of its own, and what it is called: a dashed line where it is in sight.
        joined: draw that line.
        width, height: of the chart, in pixels.
    """
    points = [p for p in points if math.isfinite(p[0]) and (math.isfinite(p[1]) or p[1] == math.inf)]
    left, top, right, bottom = 60, 52, width - 16, height - 44
    x0, x1 = _span([p[0] for p in points] or [0.0])
    y0, y1 = _span([p[1] for p in points if math.isfinite(p[1])] or [0.0], below=0.15, above=0.2)

    def at(px: float, py: float) -> tuple[float, float]:
        y = bottom - (py - y0) / (y1 - y0) * (bottom - top) if math.isfinite(py) else float(top)
        return left + (px - x0) / (x1 - x0) * (right - left), y

    parts = [
        f'<text class="title" x="0" y="14">{escape(title)}</text>',
        f'<text class="small" x="{left}" y="{top - 12}">{escape(y_label)}</text>',
        f'<rect class="frame" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>',
    ]
    for tick in ticks(x0, x1):
        px, _ = at(tick, y0)
        parts.append(f'<line class="grid" x1="{px:.1f}" x2="{px:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(
            f'<text class="small" text-anchor="middle" x="{px:.1f}" y="{bottom + 15}">{_number(tick)}</text>'
        )
    for tick in ticks(y0, y1):
        _, py = at(x0, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(
            f'<text class="small" text-anchor="end" x="{left - 6}" y="{py + 4:.1f}">{_number(tick)}</text>'
        )
    if guide is not None and x0 <= guide[0] <= x1:
        px, _ = at(guide[0], y0)
        parts.append(f'<line class="guide" x1="{px:.1f}" x2="{px:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="small" x="{px + 5:.1f}" y="{bottom - 6}">{escape(guide[1])}</text>')
    front = sorted((p[0], p[1]) for p in points if p[3])
    if joined and len(front) > 1:
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(*p) for p in front))
        parts.append(f'<polyline class="line" points="{path}"/>')
    # Points, and the labels that are there already: left, baseline, width.
    taken = [(a - 5, b + 4, 10.0) for a, b in (at(p[0], p[1]) for p in points)]
    for px, py, name, marked in points:
        a, b = at(px, py)
        parts.append(_point(a, b, "a" if marked else "b", f"{name}: {_number(px)}, {_number(py)}", py))
        # Beside the point, away from the nearer edge; where there is no room, the pointer must do.
        end, room = a > (left + right) / 2, 6.2 * len(name)
        start = a - 9 - room if end else a + 9
        for line in (b + 4, b - 9, b + 17, b - 22, b + 30):
            free = not any(abs(line - y) < 11 and start < x + w and x < start + room for x, y, w in taken)
            if name and free and top + 10 <= line <= bottom - 3 and left <= start <= right - room:
                taken.append((start, line, room))
                parts.append(
                    f'<text class="small" text-anchor="{"end" if end else "start"}" '
                    f'x="{a - 9 if end else a + 9:.1f}" y="{line:.1f}">{escape(name)}</text>'
                )
                break
    middle = (left + right) / 2
    parts.append(f'<text text-anchor="middle" x="{middle:.0f}" y="{height - 8}">{escape(x_label)}</text>')
    return Panel("".join(parts), width, height)


def curves(
    title: str,
    steps: Sequence[str],
    series: Sequence[tuple[str, Sequence[float]]],
    x_label: str,
    y_label: str,
    *,
    width: int = 760,
    height: int = 320,
) -> Panel:
    """Lines over the same steps, each with its name at its end.

    Args:
        title: above the chart.
        steps: what stands along the x axis, in equal distances.
        series: name, and one value per step; values that are not finite are left out.
        x_label, y_label: of the axes.
        width, height: of the chart, in pixels.
    """
    left, top, right, bottom = 60, 52, width - 240, height - 44
    y0, y1 = _span([v for _, row in series for v in row if math.isfinite(v)] or [0.0])

    def at(step: int, value: float) -> tuple[float, float]:
        share = (step + 0.5) / max(len(steps), 1)
        return left + share * (right - left), bottom - (value - y0) / (y1 - y0) * (bottom - top)

    parts = [
        f'<text class="title" x="0" y="14">{escape(title)}</text>',
        f'<text class="small" x="{left}" y="{top - 12}">{escape(y_label)}</text>',
        f'<rect class="frame" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>',
    ]
    for tick in ticks(y0, y1):
        _, y = at(0, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="small" text-anchor="end" x="{left - 6}" y="{y + 4:.1f}">{_number(tick)}</text>'
        )
    for n, step in enumerate(steps):
        x, _ = at(n, y0)
        parts.append(
            f'<text class="small" text-anchor="middle" x="{x:.1f}" y="{bottom + 15}">{escape(step)}</text>'
        )
    ends: list[tuple[float, float, str, int]] = []
    for n, (name, row) in enumerate(series):
        points = [(*at(i, v), v) for i, v in enumerate(row) if math.isfinite(v)]
        if not points:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        color = f"hsl({n * 360 // len(series)} 60% 50%)"
        parts.append(f'<polyline class="line" style="stroke: {color}" points="{path}"/>')
        for x, y, value in points:
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}">'
                f"<title>{escape(name)}: {_number(value)}</title></circle>"
            )
        ends.append((points[-1][1], points[-1][0], name, n))
    below = -math.inf
    for y, x, name, n in sorted(ends):
        below = max(y + 4, below + 13)
        shown = escape(name if len(name) <= 34 else f"...{name[-31:]}")
        color = f"hsl({n * 360 // len(series)} 60% 50%)"
        parts.append(f'<circle cx="{right + 10}" cy="{below - 4:.1f}" r="3" fill="{color}"/>')
        parts.append(f'<text class="small" x="{right + 17}" y="{below:.1f}">{shown}</text>')
        parts.append(f'<line class="guide" x1="{x:.1f}" y1="{y:.1f}" x2="{right + 8}" y2="{below - 4:.1f}"/>')
    middle = (left + right) / 2
    parts.append(f'<text text-anchor="middle" x="{middle:.0f}" y="{height - 8}">{escape(x_label)}</text>')
    return Panel("".join(parts), width, max(height, round(below) + 8 if ends else height))


def _point(a: float, b: float, color: str, says: str, value: float) -> str:
    """A dot, or an arrow upwards for what lies beyond the chart."""
    title = f"<title>{escape(says)}</title>"
    if math.isfinite(value):
        return f'<circle class="{color}" cx="{a:.1f}" cy="{b:.1f}" r="4">{title}</circle>'
    corners = f"{a:.1f},{b - 6:.1f} {a - 5:.1f},{b + 4:.1f} {a + 5:.1f},{b + 4:.1f}"
    return f'<polygon class="{color}" points="{corners}">{title}</polygon>'


def _span(values: Sequence[float], *, below: float = 0.08, above: float = 0.08) -> tuple[float, float]:
    """What an axis shows: all values, and some room on both sides."""
    low, high = min(values), max(values)
    extent = (high - low) or max(abs(high), 1.0)
    return low - below * extent, high + above * extent


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"
