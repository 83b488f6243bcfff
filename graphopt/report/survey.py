"""What a pass does to each layer by itself: tables for the terminal, a chart as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt.budget import Effect, Survey
from graphopt.report import plot
from graphopt.report.console import show, table
from graphopt.report.text import clean, count, size

if TYPE_CHECKING:
    from rich.console import Console

_MAX_ROWS = 30
_MAX_BARS = 40
_MAX_CURVES = 8
_BAR = 10


def survey(found: Survey, console: Console, *, verbose: bool = False) -> None:
    """Print what every layer costs and saves, and the curves where an option was swept."""
    _layers(found, console, verbose=verbose)
    if found.sweep:
        _sweep(found, console, verbose=verbose)
    _said(f"measured: {found.measured}, on {found.measured_on}", console)
    if found.left_out:
        _said(f"left out, since it comes after: {found.left_out}", console)


def _layers(found: Survey, console: Console, *, verbose: bool) -> None:
    every = (*found.layers, found.together)
    names = sorted({name for e in every for name in e.score.metrics})
    zeros = any(e.packed_bytes > e.bytes for e in every)
    flops = any(e.flops for e in every)
    timed = any(e.latency is not None for e in found.layers)
    columns = ["only this layer", "op", "SQNR dB", *map(clean, names), "saves"]
    columns += [*_optional(zeros, "without zeros"), *_optional(flops, "less work")]
    columns += [*_optional(timed, "latency"), "ppm/kB", ""]
    rows = table(*columns, numbers=range(2, len(columns) - 1))
    shown = found.layers if verbose else found.layers[:_MAX_ROWS]
    costs = [e.cost_per_byte for e in shown if 0 < e.cost_per_byte < math.inf]
    span = min(costs, default=1.0), max(costs, default=1.0)
    for effect in (*shown, found.together):
        rows.add_row(
            _label(effect),
            effect.op,
            _sqnr(effect.score.sqnr_db),
            *(f"{effect.score.metrics.get(name, math.nan):#.4g}" for name in names),
            size(effect.bytes),
            *_optional(zeros, size(effect.packed_bytes)),
            *_optional(flops, _share(effect.flops, found.flops)),
            *_optional(timed, "-" if effect.latency is None else f"{effect.latency:.2f}"),
            _cost(effect.cost_per_byte),
            _bar(effect.cost_per_byte, *span) if effect.node else "",
        )
    show(console, rows)
    if len(shown) < len(found.layers):
        _said(f"{len(found.layers) - len(shown)} more layers (-v lists them)", console)
    before = ", ".join(f"{name} {value:#.4g}" for name, value in found.metrics.items())
    weights = f"{count(found.parameters)} parameters, {size(found.bytes)} of weights"
    _said(f"before: {weights}{'; ' if before else ''}{before}", console)
    words = "ppm/kB: error power, in millionths of the outputs', for each kB saved"
    _said(words + (", zeros not counted as stored" if zeros else ""), console)


def _sweep(found: Survey, console: Console, *, verbose: bool) -> None:
    rows = table(
        f"SQNR dB by {found.option}", *(s.value for s in found.sweep), numbers=range(1, 1 + len(found.sweep))
    )
    shown = found.layers if verbose else found.layers[:_MAX_ROWS]
    for effect in (*shown, found.together):
        rows.add_row(_label(effect), *(_sqnr(_at(s.layers, s.together, effect)) for s in found.sweep))
    rows.add_row("saves, whole pass", *(size(s.together.packed_bytes) for s in found.sweep))
    show(console, rows)


def svg(found: Survey, title: str) -> str:
    """The same as a chart of its own."""
    return plot.document(panels(found), title)


def swept(found: Survey) -> list[tuple[str, list[float]]]:
    """Each layer, and the whole pass, with its SQNR by the values of the option."""
    rows = (*found.layers, found.together)
    return [(_label(e), [_at(s.layers, s.together, e) for s in found.sweep]) for e in rows]


def panels(found: Survey) -> list[plot.Panel]:
    """Charts: noise of each layer, cost per byte saved, and curves."""
    shown = found.layers[:_MAX_BARS]
    panels = [
        plot.bars(
            f"What {found.measured} costs per kB saved, one layer at a time",
            [(_label(e), e.cost_per_byte * 1e9) for e in shown],
            "ppm of noise per kB",
        ),
        plot.bars(
            "What it saves" + (", without zeros" if any(e.packed_bytes > e.bytes for e in shown) else ""),
            [(_label(e), e.packed_bytes / 1e3) for e in shown],
            "kB",
        ),
        plot.scatter(
            "Cost against savings",
            [
                (e.packed_bytes / 1e3, e.score.sqnr_db, "", True)
                for e in shown
                if math.isfinite(e.score.sqnr_db)
            ],
            "saved, kB",
            "SQNR with only this layer changed, dB",
            joined=False,
        ),
    ]
    if found.sweep:
        worst = sorted(found.layers, key=lambda e: -e.noise)[:_MAX_CURVES]
        series = [
            (_label(e), [_at(s.layers, s.together, e) for s in found.sweep]) for e in (*worst, found.together)
        ]
        values = [s.value for s in found.sweep]
        panels.append(
            plot.curves(
                "The layers that cost most, and the whole pass", values, series, found.option, "SQNR, dB"
            )
        )
    return panels


def _at(layers: Sequence[Effect], together: Effect, like: Effect) -> float:
    """The SQNR of the layer `like` with another value of the option; NaN where it did not change."""
    if not like.node:
        return together.score.sqnr_db
    for effect in layers:
        if (effect.node, effect.body) == (like.node, like.body):
            return effect.score.sqnr_db
    return math.nan


def _label(effect: Effect) -> str:
    if not effect.node:
        return "whole pass"
    return clean(f"{effect.body}: {effect.node}" if effect.body else effect.node)


def _bar(cost: float, least: float, most: float) -> str:
    """A bar on a logarithmic scale: costs differ by orders of magnitude."""
    if not 0 < cost < math.inf:
        return ""
    return "#" * (
        1 + round((_BAR - 1) * math.log(cost / least) / math.log(most / least)) if most > least else 1
    )


def _optional(there: bool, text: str) -> tuple[str, ...]:
    return (text,) if there else ()


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole + 0.0:.1f}%".replace("-0.0%", "0.0%") if whole else "-"


def _sqnr(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "identical" if value == math.inf else f"{value:.1f}"


def _cost(per_byte: float) -> str:
    return f"{per_byte * 1e9:.3g}" if math.isfinite(per_byte) else "-"


def _said(text: str, console: Console) -> None:
    console.print(f"  {clean(text)}", style="dim", markup=False, highlight=False)
