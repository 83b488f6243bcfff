"""The report of a comparison as text for people: verdict, whose fault, outputs, runtimes, where it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.report.console import line, outputs, show, table, verdict
from graphopt.report.text import clean, figure, plural, seconds
from graphopt.report.validated import LayerRow, Localization, NearbyNode, RuntimeRow, ValidationReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_MAX_LAYERS = 40


def render(report: ValidationReport, console: Console, *, verbose: bool = False) -> None:
    """Print a report.

    Args:
        report: what to print.
        console: where to, made with `markup=False`.
        verbose: leave nothing out.
    """
    verdict(report.verdict, report.reason or _proven(report), console)
    if report.fault:
        line(console, "fault", report.fault, "bold red")
        _text(report.explanation, console)
    if report.mapping:
        pairs = ", ".join(f"{clean(new)} = {clean(old)}" for new, old in report.mapping.items())
        line(console, "mapped", pairs, "dim")
    if report.localization is not None:
        _localization(report.localization, console)
    outputs(report.outputs, report.probes, console, verbose=verbose, said=report.reason)
    _metrics(report, console)
    if report.runtimes and (verbose or len(report.runtimes) > 2 or not _quiet(report.runtimes)):
        _runtimes(report.runtimes, console)
    _layers(report.layers, console, verbose=verbose)
    for warning in report.warnings:
        line(console, "warning", clean(warning), "yellow")
    if verbose:
        rows = table("", "")
        rows.add_row("time", ", ".join(f"{stage} {seconds(s)}" for stage, s in report.seconds.items()))
        rows.add_row("versions", ", ".join(f"{n} {v}" for n, v in report.versions.items()))
        show(console, rows)


def _proven(report: ValidationReport) -> str:
    if report.candidate == report.reference:
        return "the model computes the same on every runtime that was tried"
    if report.numerics == "LOSSY":
        return "the candidate is as close as asked for"
    return "they compute the same"


def _quiet(rows: tuple[RuntimeRow, ...]) -> bool:
    return all(r.reference_ok and r.candidate_ok and not r.note for r in rows)


def _runtimes(rows: tuple[RuntimeRow, ...], console: Console) -> None:
    result = table("runtime", "reference", "candidate", "fault", numbers=(1, 2))
    for row in rows:
        result.add_row(
            clean(row.runtime),
            _share(row.reference_used, row.reference_ok),
            _share(row.candidate_used, row.candidate_ok),
            _fault(row),
        )
    show(console, result)
    console.print(
        "  shares of what is allowed next to the reference with optimizations off; 1 is the limit",
        style="dim",
        markup=False,
        highlight=False,
    )
    for row in rows:
        if row.note:
            console.print(f"  {clean(row.runtime)}: {clean(row.note)}", markup=False, highlight=False)


def _fault(row: RuntimeRow) -> Text:
    from rich.text import Text

    if row.fault:
        return Text(row.fault, style="bold red")
    return Text("ok" if row.candidate_ok else "", style="green")


def _share(used: float | None, ok: bool) -> Text:
    from rich.text import Text

    if used is None:
        return Text("ok" if ok else "differs", style="" if ok else "bold red")
    return Text(figure(used), style="" if ok else "bold red")


def _metrics(report: ValidationReport, console: Console) -> None:
    if not report.metrics:
        return
    rows = table("metric", "reference", "candidate", "", numbers=(1, 2))
    for row in report.metrics:
        rows.add_row(
            clean(row.name), f"{row.before:#.4g}", f"{row.after:#.4g}", f"{row.after - row.before:+.2g}"
        )
    show(console, rows)


def _localization(found: Localization, console: Console) -> None:
    line(console, "where", _place(found), "bold red" if found.found else "bold yellow")
    if found.found:
        _text(found.reason, console)
    if not found.neighbourhood:
        return
    console.print()
    known = {t for node in found.neighbourhood for t in node.outputs} | set(found.agreed)
    for node in found.neighbourhood:
        _nearby(node, known, console)
    words = (
        f"{found.compared} of {found.matched} tensors with a counterpart were compared, in {found.runs} runs"
    )
    console.print(f"  {words}", markup=False, highlight=False, style="dim")


def _nearby(node: NearbyNode, known: set[str], console: Console) -> None:
    """A node, the tensors that it reads as far as they are computed near it, and what it computes."""
    state = {"agrees": "ok", "diverges": "off", "unknown": "?"}[node.state]
    by = f"  [{clean(node.made_by)}]" if node.made_by else ""
    head = f"{'>>>' if node.guilty else '':3} {state:3} {clean(node.op)} {clean(node.name)}".rstrip() + by
    console.print(
        f"  {head}", markup=False, highlight=False, soft_wrap=True, style="bold red" if node.guilty else ""
    )
    shown = [t for t in node.inputs if t in known]
    rest = len(node.inputs) - len(shown)
    lines = [f"from {clean(t)}" for t in shown or node.inputs]
    if rest and shown:
        lines.append(f"from {plural(rest, 'other')}")
    for text in (*lines, *(f"to   {clean(t)}" for t in node.outputs)):
        console.print(f"          {text}", markup=False, highlight=False, style="dim", soft_wrap=True)


def _place(found: Localization) -> str:
    """The node that is at fault, in a few words."""
    if not found.found:
        return clean(found.reason)
    body = f" in {clean(found.body)}" if found.body else ""
    by = f", made by {clean(found.made_by)}" if found.made_by else ""
    return f"{clean(found.op)} {clean(found.node)}".rstrip() + body + by


def _text(words: str, console: Console) -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(Padding(Text(clean(words)), (0, 0, 0, 2), expand=False))


def _layers(rows: tuple[LayerRow, ...], console: Console, *, verbose: bool) -> None:
    if not rows:
        return
    shown = rows if verbose or len(rows) <= _MAX_LAYERS else _thinned(rows)
    result = table("depth", "tensor", "op", "SQNR dB", "largest move", "of allowed", "", numbers=(0, 3, 4, 5))
    for row in shown:
        name = clean(row.tensor)
        if row.counterpart != row.tensor:
            name += f" = {clean(row.counterpart)}"
        result.add_row(
            str(row.depth),
            name,
            clean(row.op),
            "-" if row.sqnr_db is None else f"{row.sqnr_db:.0f}",
            figure(row.max_abs),
            figure(row.used),
            _share(None, row.ok),
        )
    show(console, result)
    if len(shown) < len(rows):
        console.print(
            f"  {len(rows) - len(shown)} more layers (-v lists them)",
            style="dim",
            markup=False,
            highlight=False,
        )


def _thinned(rows: tuple[LayerRow, ...]) -> list[LayerRow]:
    """Evenly spread rows, and the first that are off."""
    step = -(-len(rows) // (_MAX_LAYERS - 5))
    off = [i for i, row in enumerate(rows) if not row.ok][:5]
    keep = sorted({*range(0, len(rows), step), *off, len(rows) - 1})
    return [rows[i] for i in keep]
