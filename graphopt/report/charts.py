"""Charts of measurements, in the style of `plot`: error along the depth, distributions, ratios, ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from graphopt.report.plot import Panel, ticks
from graphopt.report.text import clean, figure

_SERIES = 4


def _text(x: float, y: float, text: str, *, anchor: str = "start", style: str = "small") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{style}"{where} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _line(style: str, x1: float, x2: float, y1: float, y2: float, says: str = "") -> str:
    ends = f'x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"'
    return f'<line class="{style}" {ends}>{_says(says)}</line>'


def _rect(style: str, x: float, y: float, width: float, height: float, says: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{style}" {place}>{_says(says)}</rect>'


def _dot(style: str, x: float, y: float, radius: float, says: str = "") -> str:
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">{_says(says)}</circle>'


def _says(text: str) -> str:
    """What shows up under the pointer."""
    return f"<title>{escape(text)}</title>" if text else ""


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"...{name[3 - most :]}"


@dataclass(frozen=True)
class _Axes:
    """A frame with linear axes.

    Attributes:
        left, top, right, bottom: its edges in pixels.
        x0, x1, y0, y1: what these stand for.
    """

    left: float
    top: float
    right: float
    bottom: float
    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        """A value's place from left to right."""
        return self.left + (value - self.x0) / ((self.x1 - self.x0) or 1) * (self.right - self.left)

    def y(self, value: float) -> float:
        """A value's place; larger ones are higher."""
        return self.bottom - (value - self.y0) / ((self.y1 - self.y0) or 1) * (self.bottom - self.top)

    def frame(self, title: str, x_label: str, y_label: str) -> list[str]:
        """Title, labels and the box."""
        return [
            _text(0, 13, title, style="title"),
            _text(self.left, self.top - 8, y_label),
            _text((self.left + self.right) / 2, self.bottom + 32, x_label, anchor="middle"),
            _rect("frame", self.left, self.top, self.right - self.left, self.bottom - self.top),
        ]

    def x_ticks(self, count: int = 6) -> list[str]:
        """Grid lines with numbers below."""
        parts = []
        for tick in ticks(self.x0, self.x1, count):
            at = self.x(tick)
            parts.append(_line("grid", at, at, self.top, self.bottom))
            parts.append(_text(at, self.bottom + 15, f"{tick:.4g}", anchor="middle"))
        return parts

    def y_ticks(self, count: int = 5) -> list[str]:
        """Grid lines with numbers on the left."""
        parts = []
        for tick in ticks(self.y0, self.y1, count):
            at = self.y(tick)
            parts.append(_line("grid", self.left, self.right, at, at))
            parts.append(_text(self.left - 6, at + 4, f"{tick:.4g}", anchor="end"))
        return parts


@dataclass(frozen=True)
class DepthPoint:
    """One tensor: how deep it lies in the network, its SQNR in dB, its name, and whether it is in order."""

    depth: int
    sqnr_db: float
    label: str
    ok: bool = True


def depth(
    title: str,
    points: Sequence[DepthPoint],
    *,
    limit: float | None = None,
    width: int = 760,
    height: int = 300,
) -> Panel:
    """SQNR along the depth of the network; the least of every depth joined by a line.

    Args:
        title: above the chart.
        points: what is not a number is left out; what is infinite stands in a band on top, "identical".
        limit: the least SQNR that was asked for.
        width, height: of the chart, in pixels.
    """
    points = [p for p in points if not math.isnan(p.sqnr_db)]
    finite = [p.sqnr_db for p in points if math.isfinite(p.sqnr_db)]
    asked = [] if limit is None else [limit]
    low, high = min([0.0, *finite, *asked]), max([1.0, *finite, *asked])
    band = 22 if any(p.sqnr_db == math.inf for p in points) else 0
    deepest = max([1, *(p.depth for p in points)])
    axes = _Axes(58, 46 + band, width - 14, height - 44, 0, deepest, low, low + (high - low) * 1.06)
    parts = axes.frame(title, "depth: nodes on the longest path from an input", "SQNR, dB")
    parts += [*axes.x_ticks(), *axes.y_ticks()]
    edge = axes.top - band / 2
    if band:
        parts[1] = _text(axes.left, axes.top - band - 8, "SQNR, dB")
        parts.append(_text(axes.left - 6, edge + 4, "identical", anchor="end"))
    worst: dict[int, float] = {}
    for p in points:
        worst[p.depth] = min(worst.get(p.depth, math.inf), p.sqnr_db)

    def at(value: float) -> float:
        return axes.y(value) if math.isfinite(value) else edge if value > 0 else axes.bottom

    line = " ".join(f"{axes.x(d):.1f},{at(v):.1f}" for d, v in sorted(worst.items()))
    if line:
        parts.append(f'<polyline class="line" points="{line}"/>')
    for p in points:
        x, y = axes.x(p.depth), at(p.sqnr_db)
        value = "identical" if p.sqnr_db == math.inf else f"{p.sqnr_db:.1f} dB"
        says = f"{clean(p.label)}: {value}, depth {p.depth}{'' if p.ok else ', diverges'}"
        if p.ok:
            parts.append(_dot("a", x, y, 2.6, says))
        else:
            corners = f"{x:.1f},{y + 6:.1f} {x - 5.5:.1f},{y - 4:.1f} {x + 5.5:.1f},{y - 4:.1f}"
            parts.append(f'<polygon class="failed" points="{corners}">{_says(says)}</polygon>')
    if limit is not None:
        parts.append(
            _line("limit", axes.left, axes.right, axes.y(limit), axes.y(limit), f"limit {limit:g} dB")
        )
    return Panel("".join(parts), width, height)


def shares(title: str, rows: Sequence[tuple[str, float, bool]], *, width: int = 620) -> Panel:
    """How much of its allowance each output uses, on a logarithmic scale; the limit is 1.

    Args:
        title: above the chart.
        rows: name, share, in order; a share of 0 has no bar.
        width: of the chart, in pixels.
    """
    shown = [v for _, v, _ in rows if 0 < v < math.inf]
    low = math.floor(math.log10(min([0.01, *shown])))
    high = math.ceil(math.log10(max([1.0, *shown])) + 0.01)
    label = min(260.0, 16 + 6.6 * max((len(name) for name, _, _ in rows), default=0))
    axes = _Axes(label, 40, width - 60, 44 + 20 * len(rows), low, high, 0, 1)
    parts = [_text(0, 13, title, style="title")]
    for power in range(low, high + 1, max(1, (high - low) // 6)):
        parts.append(_line("grid", axes.x(power), axes.x(power), axes.top - 4, axes.bottom))
        parts.append(_text(axes.x(power), axes.bottom + 15, f"{10.0**power:g}", anchor="middle"))
    for i, (name, share, ok) in enumerate(rows):
        y = axes.top + 20 * i
        parts.append(_text(label - 6, y + 12, _short(name, 38), anchor="end"))
        end = axes.left if not share > 0 else axes.right if share == math.inf else axes.x(math.log10(share))
        if share > 0:
            says = f"{name}: {figure(share)} of what is allowed"
            parts.append(_rect("a" if ok else "failed", axes.left, y + 2, max(end - axes.left, 1), 13, says))
        parts.append(_text(end + 5, y + 12, figure(share)))
    parts.append(_line("limit", axes.x(0), axes.x(0), axes.top - 6, axes.bottom))
    parts.append(_text(axes.x(0), axes.top - 9, "limit", anchor="middle"))
    return Panel("".join(parts), width, round(axes.bottom + 24))


@dataclass(frozen=True)
class Band:
    """A range on a histogram: what it is called, its ends, and whether it is the one that is used."""

    label: str
    low: float
    high: float
    used: bool = True


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Sequence[int],
    bands: Sequence[Band],
    *,
    zeros: int = 0,
    width: int = 380,
    height: int = 170,
) -> Panel:
    """Counts on a logarithmic scale, and ranges over it; what lies outside the range in use is shaded.

    Args:
        title: above the chart.
        edges: of the bins, one more than counts.
        counts: values per bin; zeros are counted apart.
        bands: ranges.
        zeros: values that are zero: a line of their own.
        width, height: of the chart, in pixels.
    """
    low, high = min(edges, default=0.0), max(edges, default=1.0)
    used = next((b for b in bands if b.used), None)
    if used is not None:
        low, high = min(low, used.low), max(high, used.high)
    top = math.log10(1 + max([1, zeros, *counts]))
    pad = (high - low) * 0.02 or 0.5
    axes = _Axes(44, 36, width - 8, height - 26, low - pad, high + pad, 0, top * 1.05)
    parts = [_text(0, 13, _short(title, 46), style="title"), _text(axes.left, axes.top - 6, "values")]
    parts += axes.x_ticks(5)
    for power in range(0, math.floor(top) + 1, max(1, math.floor(top) // 4)):
        word = f"{10**power:,}" if power < 4 else f"1e{power}"
        parts.append(_text(axes.left - 5, axes.y(math.log10(1 + 10**power)) + 4, word, anchor="end"))
    for a, b, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            x, y = axes.x(a), axes.y(math.log10(1 + count))
            says = f"{a:.4g} to {b:.4g}: {count:,}"
            parts.append(_rect("a", x, y, max(axes.x(b) - x - 0.4, 0.8), axes.bottom - y, says))
    if zeros:
        y = axes.y(math.log10(1 + zeros))
        parts.append(_line("l2 whisker", axes.x(0), axes.x(0), y, axes.bottom, f"zeros: {zeros:,}"))
    if used is not None:
        for a, b in ((axes.x0, used.low), (used.high, axes.x1)):
            if axes.x(b) - axes.x(a) > 0.5:
                width_ = axes.x(b) - axes.x(a)
                parts.append(_rect("outside", axes.x(a), axes.top, width_, axes.bottom - axes.top))
    for band in sorted(bands, key=lambda b: b.used):
        says = f"{band.label}: {band.low:.4g} to {band.high:.4g}"
        style = "range" if band.used else "range other"
        parts += [
            _line(style, axes.x(end), axes.x(end), axes.top, axes.bottom, says)
            for end in (band.low, band.high)
            if axes.x0 <= end <= axes.x1
        ]
    parts.append(_line("frame", axes.left, axes.right, axes.bottom, axes.bottom))
    return Panel("".join(parts), width, height)


def distributions(
    title: str,
    series: Sequence[tuple[str, Sequence[float]]],
    unit: str,
    *,
    width: int = 620,
    height: int = 250,
) -> Panel:
    """Cumulative distributions from equally spaced quantiles: a curve further left is faster.

    Args:
        title: above the chart.
        series: name, and quantiles from 0% to 100%; fewer than two are left out.
        unit: of the values.
        width, height: of the chart, in pixels.
    """
    series = [(name, q) for name, q in series if len(q) > 1]
    if not series:
        return Panel("", 0, 0)
    # The slowest runs would squeeze everything else to the left.
    low = min(min(q) for _, q in series)
    high = max(max(q[round(0.98 * (len(q) - 1))], q[round(0.5 * (len(q) - 1))] * 1.05) for _, q in series)
    pad = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    axes = _Axes(44, 46, width - 150, height - 44, low - pad, high + pad, 0, 100)
    parts = axes.frame(title, unit, "% of runs at most this long")
    parts += [*axes.x_ticks(), *axes.y_ticks(4)]
    for n, (name, quantiles) in enumerate(series):
        style, last = n % _SERIES + 1, len(quantiles) - 1
        median = quantiles[round(last / 2)]
        says = f"{name}: median {median:.4g} {unit}"
        line = " ".join(
            f"{axes.x(min(v, axes.x1)):.1f},{axes.y(100 * i / last):.1f}" for i, v in enumerate(quantiles)
        )
        parts.append(f'<polyline class="curve l{style}" points="{line}">{_says(says)}</polyline>')
        parts.append(_dot(f"s{style}", axes.x(median), axes.y(50), 3.5, says))
        x, y = axes.right + 10, axes.top + 16 + 34 * n
        parts.append(_line(f"curve l{style}", x, x + 24, y, y))
        parts.append(_text(x + 29, y + 4, _short(name, 15)))
        parts.append(_text(x + 29, y + 17, f"{median:.4g} {unit}"))
    return Panel("".join(parts), width, height)


@dataclass(frozen=True)
class Interval:
    """A ratio with its interval, and what it means in words."""

    label: str
    ratio: float
    low: float
    high: float
    words: str


def ratios(title: str, rows: Sequence[Interval], *, width: int = 620) -> Panel:
    """Ratios with their intervals around 1: left of it is faster."""
    rows = [r for r in rows if all(map(math.isfinite, (r.ratio, r.low, r.high)))]
    if not rows:
        return Panel("", 0, 0)
    reach = max(0.03, *(abs(v - 1) for r in rows for v in (r.low, r.high, r.ratio)))
    low = max(0.0, min(1 - 0.25 * reach, *(r.low for r in rows)) - 0.12 * reach)
    high = max(1 + 0.25 * reach, *(r.high for r in rows)) + 0.12 * reach
    label = min(240.0, 16 + 6.6 * max(len(r.label) for r in rows))
    axes = _Axes(label, 40, width - 150, 40 + 28 * len(rows), low, high, 0, 1)
    parts = [_text(0, 13, title, style="title"), *axes.x_ticks()]
    parts.append(_line("guide", axes.x(1), axes.x(1), axes.top - 6, axes.bottom))
    parts.append(_text(axes.x(1), axes.top - 9, "as fast", anchor="middle"))
    for i, r in enumerate(rows):
        y = axes.top + 28 * i + 14
        says = f"{r.label}: {r.ratio:.4g}, from {r.low:.4g} to {r.high:.4g}: {r.words}"
        a, b = axes.x(r.low), axes.x(r.high)
        parts.append(_text(label - 8, y + 4, _short(r.label, 36), anchor="end"))
        parts.append(_line("l1 whisker", a, max(b, a + 1), y, y, says))
        parts += [_line("l1 whisker", end, end, y - 5, y + 5) for end in (a, b)]
        parts.append(_dot("a", axes.x(r.ratio), y, 4.5, says))
        parts.append(_text(axes.right + 8, y + 4, f"{r.ratio:.3f}, {r.words}"))
    return Panel("".join(parts), width, round(axes.bottom + 24))


def inline(panel: Panel, title: str) -> str:
    """A panel as SVG for a page, which brings the styles; `title` is its name for those who do not see it."""
    if not panel.svg:
        return ""
    return (
        f'<svg class="chart" role="img" viewBox="-2 -2 {panel.width + 4} {panel.height + 4}" '
        f'width="{panel.width}" height="{panel.height}" aria-label="{escape(title)}">{panel.svg}</svg>'
    )
