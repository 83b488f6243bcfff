"""The report of `graphopt bench` as text for people: the comparison first, then times, then operators."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from graphopt.report.console import line, show, table
from graphopt.report.text import clean, plural, size
from graphopt.report.timed import BenchReport, OpTime, PairedRatio

if TYPE_CHECKING:
    from rich.console import Console

_STYLES: Final = {"faster": "bold green", "slower": "bold red", "no difference": "bold yellow"}
_MAX_OPS: Final = 12
_VERY_WIDE: Final = 0.05


def timing(report: BenchReport, console: Console, *, verbose: bool = False) -> None:
    """Print a report. `verbose` leaves nothing out: all operators, percentiles, settings, versions."""
    for ratio in report.ratios:
        line(console, _head(ratio), sentence(ratio), _STYLES[ratio.verdict])
    _times(report, console, verbose=verbose)
    for t in report.timings:
        if t.note:
            line(console, f"note on {t.label}", clean(t.note), "yellow")
    for note in report.notes:
        line(console, "note", clean(note), "yellow")
    _ops(report, console, verbose=verbose)
    _conditions(report, console, verbose=verbose)


def _head(ratio: PairedRatio) -> str:
    if ratio.verdict == "no difference":
        return f"NO DIFFERENCE between {ratio.a} and {ratio.b}"
    return f"{ratio.b} IS {ratio.verdict.upper()}"


def sentence(ratio: PairedRatio) -> str:
    """What a comparison came to, in one sentence."""
    sure = f"{ratio.confidence:.0%}: {interval(ratio)}"
    if ratio.verdict != "no difference":
        by = abs(1 - ratio.ratio)
        return f"it takes x{ratio.ratio:.3f} of {ratio.a}'s time, {by:.1%} {_less(ratio)} ({sure})"
    if ratio.equivalent:
        return f"less than {ratio.min_effect:.1%} either way ({sure})"
    if ratio.low <= 1 <= ratio.high:
        blind = f"less than {ratio.resolution:.1%} could not be told from noise"
        more = "; measure for longer" if ratio.resolution > _VERY_WIDE else ""
        return f"what there is may be noise ({sure}); {blind}{more}"
    return f"{abs(1 - ratio.ratio):.1%} is below the {ratio.min_effect:.1%} that count ({sure})"


def _less(ratio: PairedRatio) -> str:
    return "less" if ratio.ratio < 1 else "more"


def interval(ratio: PairedRatio) -> str:
    """The interval of a ratio: "0.981 to 1.004"."""
    if ratio.high > 1e3:
        return "anything"
    return f"{ratio.low:.3f} to {ratio.high:.3f}"


def _times(report: BenchReport, console: Console, *, verbose: bool) -> None:
    names = ["", "model", "median", "mean", "p90", "p99", "ratio", "runs", "open", "memory"]
    rows = table(*names, numbers=range(2, len(names)))
    ratios = {r.b: r for r in report.ratios}
    unit = _unit(max((t.p99_ms for t in report.timings), default=1.0))
    for t in report.timings:
        rows.add_row(
            t.label,
            clean(PurePath(t.file.path).name or "in memory"),
            *(_ms(v, unit) for v in (t.p50_ms, t.mean_ms, t.p90_ms)),
            _ms(t.p99_ms, unit),
            f"{ratios[t.label].ratio:.3f}" if t.label in ratios else "",
            f"{t.runs:,}",
            _ms(t.create_ms, _unit(t.create_ms)) if t.create_ms is not None else "-",
            size(t.peak_bytes) if t.peak_bytes is not None else "-",
        )
    show(console, rows)
    if verbose:
        for t in report.timings:
            words = (
                f"{t.label}: fastest {_ms(t.min_ms, unit)}, p95 {_ms(t.p95_ms, unit)}; "
                f"{plural(t.sessions, 'session')}, {plural(t.warm_up, 'run')} to warm up, "
                f"{t.disturbed:.1%} of the timed runs interrupted, "
                f"{'steady' if t.steady else 'not steady'}"
            )
            console.print(f"  {words}", style="dim", markup=False, highlight=False)


def _unit(ms: float) -> tuple[float, str]:
    return (1e3, "µs") if ms < 1 else (1.0, "ms") if ms < 1e3 else (1e-3, "s")


def _ms(ms: float, unit: tuple[float, str]) -> str:
    value = ms * unit[0]
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit[1]}"


def _ops(report: BenchReport, console: Console, *, verbose: bool) -> None:
    """Time by operator, one column per model, the largest of the first two's differences first."""
    profiled = [t for t in report.timings if t.ops]
    if not profiled:
        return
    keys = sorted({(o.op, o.provider) for t in profiled for o in t.ops})
    found = {(t.label, o.op, o.provider): o for t in profiled for o in t.ops}
    several = len({provider for _, provider in keys}) > 1
    two = profiled[:2] if len(profiled) > 1 else []

    def weight(key: tuple[str, str]) -> float:
        return max(o.ms for t in profiled if (o := found.get((t.label, *key))) is not None)

    keys.sort(key=weight, reverse=True)
    shown = keys if verbose else keys[:_MAX_OPS]
    columns = ["operator", *(["provider"] if several else [])]
    for t in profiled:
        columns += [f"{t.label} nodes", "per run", "share"]
    columns += [f"{two[1].label} - {two[0].label}"] if two else []
    first = 2 if several else 1
    rows = table(*columns, numbers=range(first, len(columns)))
    unit = _unit(max(map(weight, keys)))
    for op, provider in shown:
        cells = [clean(op), *([provider.removesuffix("ExecutionProvider")] if several else [])]
        entries = [found.get((t.label, op, provider)) for t in profiled]
        for entry in entries:
            cells += _op_cells(entry, unit)
        if two:
            cells.append(_difference(entries[0], entries[1], unit))
        rows.add_row(*cells)
    show(console, rows)
    if len(shown) < len(keys):
        rest = plural(len(keys) - len(shown), "more operator")
        console.print(f"  {rest}; -v lists them", style="dim", markup=False, highlight=False)


def _op_cells(entry: OpTime | None, unit: tuple[float, str]) -> list[str]:
    if entry is None:
        return ["", "", ""]
    return [f"{entry.nodes:.4g}", _ms(entry.ms, unit), f"{entry.share:.1%}"]


def _difference(a: OpTime | None, b: OpTime | None, unit: tuple[float, str]) -> str:
    change = (b.ms if b else 0.0) - (a.ms if a else 0.0)
    sign = "-" if change < 0 else "+"
    return f"{sign}{_ms(abs(change), unit)}"


def _conditions(report: BenchReport, console: Console, *, verbose: bool) -> None:
    threads = plural(report.threads, "thread")
    words = [
        report.provider.removesuffix("ExecutionProvider"),
        f"optimizations {report.optimizations}",
        threads,
    ]
    if report.affinity:
        words.append(f"bound to {', '.join(map(str, report.affinity))}")
    words += [f"{k} {v}" for k, v in report.settings.items()]
    console.print()
    out = [", ".join(words), *(f"inputs: {clean(i)}" for i in report.inputs)]
    if verbose:
        out += [f"machine: {report.machine}", ", ".join(f"{k} {v}" for k, v in report.versions.items())]
    for text in out:
        console.print(f"  {text}", style="dim", markup=False, highlight=False)
