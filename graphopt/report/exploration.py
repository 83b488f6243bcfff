"""What a search for a mixture of precisions measured: tables for the terminal, a chart as SVG."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from graphopt.budget import Exploration, Score, Tradeoff
from graphopt.report import plot
from graphopt.report.console import show, table
from graphopt.report.text import clean, size

if TYPE_CHECKING:
    from rich.console import Console

_MAX_ROWS = 20


def exploration(found: Exploration, console: Console, *, verbose: bool = False) -> None:
    """Print the sensitivity of every unit, and what can be had between all and nothing."""
    if found.units:
        rows = table("node", "op", "weights", "alone changed", "alone left", "", numbers=(2, 3, 4))
        shown = found.units if verbose else found.units[:_MAX_ROWS]
        top = max((_gain_db(found, u.spared) for u in shown), default=0.0)
        for unit in shown:
            gain = _gain_db(found, unit.spared)
            bar = "#" * round(20 * max(gain, 0.0) / top) if top > 0 and math.isfinite(gain) else ""
            rows.add_row(
                clean(unit.node),
                unit.op,
                f"{unit.weights:,}",
                "-" if unit.alone is None else f"{unit.alone.sqnr_db:.1f} dB",
                f"{gain:+.1f} dB",
                bar,
            )
        show(console, rows)
        words = f"all changed: {found.base.sqnr_db:.1f} dB, cosine {found.base.cosine:.5f}"
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
            *(f"{point.score.metrics.get(name, math.nan):.4g}" for name in names),
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
    """The same as a chart: sensitivity per node, accuracy against latency, accuracy against size."""
    panels = []
    if found.units:
        rows = [(clean(u.node), _gain_db(found, u.spared)) for u in found.units[:40]]
        panels.append(plot.bars("What leaving one node in float gains", rows, "dB of SQNR"))
    front = pareto(found.tradeoffs)
    timed = [t for t in found.tradeoffs if t.latency is not None]
    if timed:
        points = [(t.latency or 0.0, t.score.sqnr_db, f"{len(t.spared)} float", t in front) for t in timed]
        panels.append(plot.scatter("Accuracy against latency", points, "latency ratio", "SQNR, dB"))
    if found.tradeoffs:
        sizes = [
            (t.bytes / 1e6, t.score.sqnr_db, f"{len(t.spared)} float", t in front) for t in found.tradeoffs
        ]
        panels.append(plot.scatter("Accuracy against size", sizes, "weights, MB", "SQNR, dB"))
    return plot.document(panels, title)


def _gain_db(found: Exploration, score: Score) -> float:
    return score.sqnr_db - found.base.sqnr_db
