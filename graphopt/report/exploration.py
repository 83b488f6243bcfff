"""What a search for a mixture of precisions measured: tables for the terminal, a chart as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt.budget import Exploration, Score, Tradeoff
from graphopt.report import plot
from graphopt.report.console import show, table
from graphopt.report.text import clean, size

if TYPE_CHECKING:
    from rich.console import Console

_MAX_ROWS = 20
_BAR = 12


def exploration(found: Exploration, console: Console, *, verbose: bool = False) -> None:
    """Print the sensitivity of every unit, and what can be had between all and nothing."""
    if found.units:
        rows = table("node", "op", "weights", "only this", "all but this", "", numbers=(2, 3, 4))
        shown = found.units if verbose else found.units[:_MAX_ROWS]
        top = max((_gain_db(found, u.spared) for u in shown), default=0.0)
        for unit in shown:
            gain = _gain_db(found, unit.spared)
            bar = "#" * round(_BAR * max(gain, 0.0) / top) if top > 0 and math.isfinite(gain) else ""
            rows.add_row(
                clean(unit.node),
                unit.op,
                f"{unit.weights:,}",
                "-" if unit.alone is None else f"{unit.alone.sqnr_db:.1f} dB",
                f"{gain:+.1f} dB",
                bar,
            )
        show(console, rows)
        words = (
            f"all changed: {found.base.sqnr_db:.1f} dB, cosine {found.base.cosine:.5f}; SQNR with only this "
            "node changed; gain with all but this node changed"
        )
        if len(shown) < len(found.units):
            words += f"; {len(found.units) - len(shown)} more nodes (-v lists them)"
        console.print("  " + words, style="dim", markup=False, highlight=False)
    if found.tradeoffs:
        _tradeoffs(found, console)


def _tradeoffs(found: Exploration, console: Console) -> None:
    names = sorted({name for t in found.tradeoffs for name in t.score.metrics})
    rows = table(
        "left float",
        "SQNR dB",
        "cosine",
        *names,
        "weights",
        "latency ratio",
        "",
        numbers=range(5 + len(names)),
    )
    front = pareto(found.tradeoffs)
    for point in found.tradeoffs:
        rows.add_row(
            f"{len(point.spared)} of {point.of}",
            "identical" if math.isinf(point.score.sqnr_db) else f"{point.score.sqnr_db:.1f}",
            f"{point.score.cosine:.5f}",
            *(f"{point.score.metrics.get(name, math.nan):#.4g}" for name in names),
            size(point.bytes),
            "-" if point.latency is None else f"{point.latency:.2f}",
            "" if point in front else "dominated",
        )
    show(console, rows)


def pareto(points: tuple[Tradeoff, ...]) -> list[Tradeoff]:
    """The points that no other beats in accuracy, size and latency at once."""

    def figures(p: Tradeoff) -> tuple[float, float, float]:
        return -p.score.sqnr_db, float(p.bytes), p.latency if p.latency is not None else 0.0

    def beaten(p: Tradeoff) -> bool:
        mine = figures(p)
        return any(
            all(b <= a for a, b in zip(mine, other, strict=True)) and other != mine
            for other in map(figures, points)
        )

    return [p for p in points if not beaten(p)]


def svg(found: Exploration, title: str) -> str:
    """The same as a chart of its own."""
    return plot.document(panels(found), title)


def panels(found: Exploration) -> list[plot.Panel]:
    """Charts: sensitivity per node, accuracy against latency, accuracy against size."""
    panels = []
    if found.units:
        rows = [(clean(u.node), _gain_db(found, u.spared)) for u in found.units[:40]]
        panels.append(plot.bars("What leaving one node in float gains", rows, "dB of SQNR"))
    timed = [t for t in found.tradeoffs if t.latency is not None]
    for heading, chosen, across, x_label, guide in (
        ("Accuracy against latency", timed, [t.latency or 0.0 for t in timed],
         "latency over the float model's", (1.0, "as in float")),
        ("Accuracy against size", found.tradeoffs, *_sizes(found.tradeoffs), None),
    ):  # fmt: skip
        if chosen:
            panels.append(_chart(heading, chosen, across, x_label, guide))
    return panels


def _sizes(points: Sequence[Tradeoff]) -> tuple[list[float], str]:
    """Sizes of the weights in a unit in which they are handy numbers, and the axis' label."""
    most = max((t.bytes for t in points), default=0)
    divisor, unit = next(((d, u) for d, u in ((1e9, "GB"), (1e6, "MB")) if most >= d), (1e3, "kB"))
    return [t.bytes / divisor for t in points], f"weights, {unit}"


def _chart(
    heading: str,
    chosen: Sequence[Tradeoff],
    across: Sequence[float],
    x_label: str,
    guide: tuple[float, str] | None,
) -> plot.Panel:
    """One figure against accuracy; joined is what no other point beats in these two."""

    def beaten(x: float, y: float) -> bool:
        return any(
            b >= y and a <= x and (a, b) != (x, y)
            for a, b in zip(across, (t.score.sqnr_db for t in chosen), strict=True)
        )

    points = [
        (x, t.score.sqnr_db, f"{len(t.spared)} of {t.of} in float", not beaten(x, t.score.sqnr_db))
        for x, t in zip(across, chosen, strict=True)
    ]
    return plot.scatter(heading, points, x_label, "SQNR, dB", guide=guide)


def _gain_db(found: Exploration, score: Score) -> float:
    return score.sqnr_db - found.base.sqnr_db
