"""The report of a run as text for people: the verdict first, then what changed, by whom, and how far."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from graphopt.report.document import Culprit, OutputRow, PassReport, RunReport
from graphopt.report.text import change, clean, count, figure, plural, seconds, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_STYLES = {
    "proven": "bold green",
    "unproven": "bold yellow",
    "not verified": "bold yellow",
    "rolled back": "bold red",
    "over budget": "bold red",
    "failed": "bold red",
    "ok": "green",
    "found": "bold red",
    "right": "bold green",
    "undecided": "bold yellow",
    "not separable": "bold red",
}
_MAX_OUTPUTS = 12
_MAX_OPS = 12
_MAX_PROBES = 3
_INDENT = "  "
#: Columns that the table of outputs needs beside the types: a short name, and the figures.
_BESIDE_TYPE = 48


def render(report: RunReport, console: Console, *, explain: bool = False, verbose: bool = False) -> None:
    """Print a report.

    Args:
        report: what to print.
        console: where to, made with `markup=False`, since names from models are shown as they are; its
            width is respected, 80 columns are enough.
        explain: list the near misses of every pass.
        verbose: leave nothing out: all passes, all outputs, versions, times by stage.
    """
    from graphopt.report.accuracy import accuracy
    from graphopt.report.stages import stages

    verdict(report.verdict, report.verdict_reason or default_reason(report), console)
    for culprit in report.culprits:
        culprit_lines(culprit, console)
    _sizes(report, console)
    _interface(report, console)
    _passes(report, console, explain=explain, verbose=verbose)
    if verbose:
        _changes(report, console)
    if explain:
        _refusals(report, console)
    outputs(report.outputs, report.probes, console, verbose=verbose, said=report.verdict_reason)
    stages(report, console)
    accuracy(report, console, verbose=verbose)
    for warning in report.warnings:
        line(console, "warning", clean(warning), "yellow")
    if verbose:
        _details(report, console)
    _written(report, console)


def line(console: Console, head: str, text: str, style: str) -> None:
    """One line with a coloured head."""
    from rich.text import Text

    console.print(Text.assemble((head, style), ": " if text else "", text))


def table(*columns: str, numbers: Iterable[int] = (), title: str = "") -> Table:
    """A borderless table. Names fold rather than being cut off; `numbers` are right-aligned columns."""
    from rich.table import Table

    right = set(numbers)
    result = Table(
        box=None,
        padding=(0, 2, 0, 0),
        show_header=any(columns),
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="dim",
    )
    for i, column in enumerate(columns):
        if i in right:
            result.add_column(column, justify="right", no_wrap=True)
        else:
            result.add_column(column, overflow="fold")
    return result


def show(console: Console, what: Table) -> None:
    """Print a table, indented, after an empty line."""
    from rich.padding import Padding

    console.print()
    console.print(Padding(what, (0, 0, 0, 2), expand=False))


def verdict(word: str, reason: str, console: Console) -> None:
    """The first line of a report: the verdict and why."""
    line(console, word.upper(), clean(reason), _STYLES[word])


def default_reason(report: RunReport) -> str:
    """The verdict in a sentence, for reports that give none."""
    return {
        "proven": _proven(report),
        "unproven": "no runtime here can tell whether the result is right",
        "not verified": "the result was not compared with the input (--verify off)",
        "rolled back": _rolled_back(report.culprits),
        "over budget": "the result moves the numbers further than allowed",
        "failed": "the result is wrong; nothing was written",
    }[report.verdict]


def _proven(report: RunReport) -> str:
    if report.accuracy is None:
        return "the result computes the same as the input"
    if report.accuracy.budget:
        return "the result is as accurate as asked for"
    return "the result is as accurate as measured below; nothing was asked for"


def _rolled_back(culprits: Sequence[Culprit]) -> str:
    """How many rewrites and passes were left out; sites of a pass that is left out do not count as well."""
    crashed = {c.pass_name for c in culprits if c.trace}
    whole = {c.pass_name for c in culprits if not c.site} - crashed
    sites = sum(1 for c in culprits if c.site and c.pass_name not in crashed | whole)
    wrong = [plural(sites, "rewrite")] if sites else []
    wrong += [plural(len(whole), "pass", "passes")] if whole else []
    clauses = [f"{' and '.join(wrong)} made the result wrong"] if wrong else []
    clauses += [f"{plural(len(crashed), 'pass', 'passes')} crashed"] if crashed else []
    if sites + len(whole) + len(crashed) == 1:
        return f"{clauses[0]} and is not in it"
    return f"{', '.join(clauses)}: they are not in it"


def culprit_lines(culprit: Culprit, console: Console) -> None:
    """A rewrite that was rolled back, and why."""
    place = f" at {clean(culprit.site)}" if culprit.site else "the whole pass"
    together = f" (together with {', '.join(culprit.with_passes)})" if culprit.with_passes else ""
    line(console, f"culprit {culprit.pass_name}", f"{place.strip()}{together}".strip(), "bold red")
    inside = f"cd {shlex.quote(culprit.reproducer)} && " if culprit.reproducer else ""
    for text in (
        _rewrite(culprit),
        clean(culprit.why),
        f"reproducer: {culprit.reproducer}" if culprit.reproducer else "",
        f"see it again: {inside}{culprit.command}" if culprit.command else "",
    ):
        if text:  # unwrapped: paths and commands are there to be copied
            console.print(_INDENT + text, markup=False, highlight=False, soft_wrap=True)
    for row in culprit.trace.rstrip().splitlines():
        console.print(_INDENT + clean(row), markup=False, highlight=False, soft_wrap=True, style="dim")


def _rewrite(culprit: Culprit) -> str:
    """What the rewrite did there: `BatchNormalization into Conv: Conv, BatchNormalization -> Conv`."""
    ops = [", ".join(map(clean, names)) or "nothing" for names in (culprit.removed, culprit.added)]
    nodes = " -> ".join(ops) if culprit.removed or culprit.added else ""
    return ": ".join(text for text in (clean(culprit.rewrite), nodes) if text)


def _sizes(report: RunReport, console: Console) -> None:
    before, after = report.before, report.after
    rows = table("", "before", "after", "", numbers=(1, 2, 3))
    rows.add_row("nodes", *_pair(before.nodes, after.nodes))
    if (before.nodes, after.nodes) != (before.nodes_without_constants, after.nodes_without_constants):
        rows.add_row(
            "  without Constant", *_pair(before.nodes_without_constants, after.nodes_without_constants)
        )
    rows.add_row("initializers", *_pair(before.initializers, after.initializers))
    # Weights that became integers are no parameters any more: that is no loss, and not to look like one.
    lossy = report.accuracy is not None or any(p.numerics == "LOSSY" and p.rewrites for p in report.passes)
    rows.add_row("float parameters" if lossy else "parameters", *_pair(before.parameters, after.parameters))
    if report.output and report.input.bytes:
        what, old, new = "file", report.input.bytes, report.output.bytes
    else:
        what, old, new = "weights", before.bytes, after.bytes
    rows.add_row(what, size(old), size(new), change(old, new))
    for domain in sorted({*before.opsets, *after.opsets}):
        pair = before.opsets.get(domain, "-"), after.opsets.get(domain, "-")
        if pair[0] != pair[1]:
            rows.add_row(f"opset {domain or 'ai.onnx'}", *map(str, pair), "")
    if before.ir_version != after.ir_version:
        rows.add_row("IR version", str(before.ir_version), str(after.ir_version), "")
    show(console, rows)
    moved = {op: (before.ops.get(op, 0), after.ops.get(op, 0)) for op in {*before.ops, *after.ops}}
    changed = sorted(
        (op for op, (old, new) in moved.items() if old != new),
        key=lambda op: (moved[op][1] - moved[op][0], op),
    )
    if changed:
        shown = changed if len(changed) <= _MAX_OPS else changed[: _MAX_OPS - 3] + changed[-3:]
        items = [f"{clean(op)} {moved[op][0]} -> {moved[op][1]}" for op in shown]
        if len(changed) > len(shown):
            items.append(f"and {len(changed) - len(shown)} more")
        _indented(console, _pack(items, console.width - 2))


def _interface(report: RunReport, console: Console) -> None:
    if not report.interface:
        return
    rows = table("interface", "before", "after", "by")
    for port in report.interface:
        by = f"{port.pass_name}: {clean(port.why)}"
        rows.add_row(f"{port.kind} {clean(port.name)}", clean(port.before), clean(port.after), by)
    show(console, rows)


def _pack(items: Sequence[str], width: int) -> str:
    """Items separated by commas, on lines of `width`; none is broken in two."""
    lines = [items[0]]
    for item in items[1:]:
        if len(lines[-1]) + len(item) + 2 < width:
            lines[-1] += f", {item}"
        else:
            lines[-1] += ","
            lines.append(item)
    return "\n".join(lines)


def _indented(console: Console, text: str, style: str = "dim") -> None:
    from rich.padding import Padding
    from rich.text import Text

    console.print(Padding(Text(text, style=style), (0, 0, 0, 2), expand=False))


def _pair(before: int, after: int) -> tuple[str, str, str]:
    return count(before), count(after), change(before, after)


def _passes(report: RunReport, console: Console, *, explain: bool, verbose: bool) -> None:
    if not report.passes:
        return
    active = [p for p in report.passes if verbose or p.rewrites or p.rolled_back_sites or p.skipped]
    refused = sum(r.count for p in report.passes for r in p.refusals)
    if active:
        rows = table("pass", "numbers", "rewrites", "nodes", "refused", "time", numbers=(2, 3, 4, 5))
        for p in active:
            rows.add_row(
                clean(_name(p)),
                p.numerics,
                _rewrites(p),
                f"-{p.nodes_removed} +{p.nodes_added}" if p.nodes_removed or p.nodes_added else "",
                str(sum(r.count for r in p.refusals) or ""),
                seconds(p.seconds),
            )
        show(console, rows)
    idle = len(report.passes) - len(active)
    notes = [f"{plural(idle, 'other pass', 'other passes')} found nothing to do"] if idle and active else []
    if idle and not active:
        notes = ["no pass found anything to do"]
    if refused and not explain:
        notes.append(f"{plural(refused, 'near miss', 'near misses')} (--explain lists them)")
    if notes:
        _indented(console, "; ".join(notes))
    for p in report.passes:
        if p.remark:
            _indented(console, f"{p.name}: {clean(p.remark)}", style="")


def _name(p: PassReport) -> str:
    return p.name + (
        "{" + " ".join(f"{key}={value}" for key, value in p.options.items()) + "}" if p.options else ""
    )


def _rewrites(p: PassReport) -> str:
    if p.skipped:
        return f"skipped: {p.skipped}"
    if p.rolled_back_sites:
        return f"{p.rewrites:,} ({p.rolled_back_sites:,} rolled back)"
    return f"{p.rewrites:,}"


def _changes(report: RunReport, console: Console) -> None:
    rows = table("changed by", "at", "how")
    for p in report.passes:
        for made in p.changes:
            rows.add_row(p.name, clean(made.node), clean(made.why))
    if rows.row_count:
        show(console, rows)


def _refusals(report: RunReport, console: Console) -> None:
    rows = table("not rewritten by", "at", "because", "")
    for p in report.passes:
        for refusal in p.refusals:
            times = f"x{refusal.count}" if refusal.count > 1 else ""
            rows.add_row(p.name, clean(refusal.node), clean(refusal.reason), times)
    if rows.row_count:
        show(console, rows)
    else:
        _indented(console, "no near misses")


def outputs(
    rows: Sequence[OutputRow], probes: Sequence[str], console: Console, *, verbose: bool, said: str = ""
) -> None:
    """How far each output moved, and on which inputs that was found out.

    Args:
        rows: the outputs.
        probes: the inputs.
        console: where to.
        verbose: leave nothing out.
        said: what the report has said already; notes that are in it are not repeated.
    """
    if not rows:
        return
    shown = list(rows) if verbose else _worst_first(rows)
    result = table("output", "type", "largest move", "allowed", "SQNR dB", "", numbers=(2, 3, 4))
    for row in shown:
        result.add_row(
            clean(row.name),
            _type(row, width=max(24, console.width - _BESIDE_TYPE)),
            figure(row.max_abs),
            row.numerics if row.allowed is None else figure(row.allowed),
            "-" if row.sqnr_db is None else f"{row.sqnr_db:.0f}",
            _text(row.verdict),
        )
    show(console, result)
    for row in shown:
        if row.note and row.note not in said:
            _indented(console, f"{clean(row.name)}: {clean(row.note)}", style="")
    notes = []
    if len(shown) < len(rows):
        notes.append(f"{plural(len(rows) - len(shown), 'more output')} (-v lists them)")
    if probes:
        notes.append("compared on " + "; ".join(probes if verbose else probes[:_MAX_PROBES]))
        if not verbose and len(probes) > _MAX_PROBES:
            notes.append(f"and {len(probes) - _MAX_PROBES} more")
    if notes:
        _indented(console, "; ".join(map(clean, notes)))


def _type(row: OutputRow, width: int) -> str:
    """Element type and dims, broken between dims where it is wider than `width`."""
    if row.shape is None:
        return row.dtype
    dims = [f"{clean(dim)}," for dim in row.shape[:-1]] + [clean(dim) for dim in row.shape[-1:]]
    lines = [f"{row.dtype}["]
    for dim in dims:
        if len(lines[-1]) + len(dim) < width:
            lines[-1] += dim
        else:
            lines.append(f"  {dim}")
    return "\n".join(lines) + "]"


def _worst_first(rows: Sequence[OutputRow]) -> list[OutputRow]:
    """At most `_MAX_OUTPUTS` rows in their order; those that are not ok are all there."""
    if len(rows) <= _MAX_OUTPUTS:
        return list(rows)
    bad = [row for row in rows if row.verdict != "ok"]
    return bad or list(rows[:_MAX_OUTPUTS])


def _text(verdict: str) -> Text:
    from rich.text import Text

    return Text(verdict, style=_STYLES.get(verdict, "bold red" if verdict == "failed" else ""))


def _details(report: RunReport, console: Console) -> None:
    rows = table("", "")
    rows.add_row("target", report.target)
    if report.runtimes:
        rows.add_row("compared under", "; ".join(report.runtimes))
    rows.add_row("time", ", ".join(f"{stage} {seconds(s)}" for stage, s in report.seconds.items()))
    rows.add_row("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items()))
    show(console, rows)
    # Unwrapped: it is there to be copied.
    console.print(f"\n{_INDENT}pipeline: {clean(report.pipeline)}", markup=False, soft_wrap=True)


def _written(report: RunReport, console: Console) -> None:
    console.print()
    if report.output is None:
        console.print("nothing was written", markup=False, highlight=False)
        return
    console.print(
        f"written: {clean(report.output.path)} ({size(report.output.bytes)})",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for file in report.output.data_files:
        console.print(f"{_INDENT}external data: {clean(file)}", markup=False, highlight=False, soft_wrap=True)
