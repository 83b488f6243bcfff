"""The part of a report on results that move the numbers: what they lose and gain, what stayed float."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from graphopt.report.console import show, table
from graphopt.report.document import AccuracyReport, FloatNode, LatencyReport, RunReport, SparsityReport
from graphopt.report.text import clean, plural, size

if TYPE_CHECKING:
    from rich.console import Console

_MAX_REASONS = 8


def accuracy(report: RunReport, console: Console, *, verbose: bool = False) -> None:
    """Print accuracy, latency, and what stayed in float; nothing for results that compute the same."""
    if report.accuracy is not None:
        _accuracy(report.accuracy, console)
    if report.latency is not None:
        _latency(report.latency, console)
    if report.sparsity is not None:
        _sparsity(report.sparsity, console, verbose=verbose)
    if report.left_float:
        _left_float(report.left_float, console, verbose=verbose)


def _accuracy(found: AccuracyReport, console: Console) -> None:
    rows = table("accuracy", "before", "after", "", numbers=(1, 2), title="")
    for row in found.metrics:
        rows.add_row(
            clean(row.name), f"{row.before:#.4g}", f"{row.after:#.4g}", f"{row.after - row.before:+.2g}"
        )
    sqnr = "identical" if math.isinf(found.sqnr_db) else f"{found.sqnr_db:.1f} dB"
    rows.add_row("SQNR (worst output)", "", sqnr, "")
    rows.add_row("cosine (worst output)", "", f"{found.cosine:.6f}", "")
    show(console, rows)
    words = f"measured on {clean(found.measured_on)}"
    if found.budget:
        words += f"; asked for: {', '.join(found.budget)}"
    console.print("  " + words, style="dim", markup=False, highlight=False)


def _latency(found: LatencyReport, console: Console) -> None:
    rows = table("latency", "before", "after", "ratio", "", numbers=(1, 2, 3))
    rows.add_row(
        found.provider.removesuffix("ExecutionProvider"),
        *_times(found.before_ms, found.after_ms),
        f"{found.ratio:.2f}",
        f"{found.verdict} (99%: {found.low:.2f} to {found.high:.2f}; paired runs, one thread)",
    )
    show(console, rows)


def _sparsity(found: SparsityReport, console: Console, *, verbose: bool) -> None:
    share = f"{found.zeros / found.weights:.1%} of {found.weights:,} weights are zero"
    rows = table("sparsity", "", "as stored", "with zeros packed", numbers=(2, 3))
    rows.add_row("all weights", share, size(found.bytes), f"about {size(found.packed_bytes)}")
    for tensor in found.tensors if verbose else ():
        rows.add_row(clean(tensor.name), f"{tensor.zeros / tensor.weights:.1%} of {tensor.weights:,}", "", "")
    show(console, rows)


def _times(*milliseconds: float) -> list[str]:
    """Times in one unit, the larger one's, with three digits."""
    factor, unit = next(
        ((f, u) for f, u in ((1e3, "µs"), (1.0, "ms")) if max(milliseconds) * f < 1000), (1e-3, "s")
    )
    values = [ms * factor for ms in milliseconds]
    return [f"{v:.{2 if v < 10 else 1 if v < 100 else 0}f} {unit}" for v in values]


def _left_float(nodes: tuple[FloatNode, ...], console: Console, *, verbose: bool) -> None:
    groups: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        groups.setdefault((node.op, node.reason), []).append(node.node)
    rows = table("stayed float", "which", "because")
    shown = list(groups.items()) if verbose else list(groups.items())[:_MAX_REASONS]
    for (op, reason), names in shown:
        which = ", ".join(map(clean, names if verbose else names[:3]))
        if not verbose and len(names) > 3:
            which += f" and {len(names) - 3} more"
        rows.add_row(f"{len(names)} {op}", which, clean(reason))
    show(console, rows)
    if len(shown) < len(groups):
        rest = Counter(op for (op, _), names in list(groups.items())[len(shown) :] for _ in names)
        words = ", ".join(f"{n} {op}" for op, n in rest.items())
        more = plural(len(groups) - len(shown), "more reason")
        console.print(f"  {more} ({words}); -v lists them", style="dim", markup=False, highlight=False)
