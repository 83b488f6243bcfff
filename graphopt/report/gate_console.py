"""The report of a gate as text for people: the verdict first, then what failed and why, then every check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.report.console import line, show, table
from graphopt.report.gated import Check, GateReport
from graphopt.report.text import clean, plural, seconds, size

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"passed": "green", "failed": "bold red", "error": "bold red"}
_CHANGES = 12
_INDENT = "  "


def render(report: GateReport, console: Console, *, verbose: bool = False) -> None:
    """Print a report.

    Args:
        report: what to print.
        console: where to, made with `markup=False`.
        verbose: leave nothing out: details of the checks that passed, all changes, times and versions.
    """
    word = "passed" if report.verdict == "passed" else "failed"
    line(console, word.upper(), headline(report), "bold green" if word == "passed" else "bold red")
    for check in report.checks:
        if check.verdict != "passed":
            _failure(check, report.policy, console)
    _checks(report, console, verbose=verbose)
    _changes(report, console, verbose=verbose)
    for warning in report.warnings:
        line(console, "warning", clean(warning), "yellow")
    if verbose:
        _details(report, console)


def headline(report: GateReport) -> str:
    """How many checks of which policy passed, failed, or could not be carried out."""
    counts = [
        f"{n} {words}"
        for n, words in (
            (sum(c.verdict == "failed" for c in report.checks), "failed"),
            (sum(c.verdict == "error" for c in report.checks), "could not be measured"),
        )
        if n
    ]
    of = f"{plural(len(report.checks), 'check')} of {clean(report.name)}"
    return f"{of}: {', '.join(counts)}" if counts else f"all {of}" if len(report.checks) > 1 else of


def _failure(check: Check, policy: str, console: Console) -> None:
    from rich.text import Text

    found = "not measured" if check.verdict == "error" else clean(check.value)
    asked = f", asked for: {clean(check.limit)}" if check.limit else ""
    said = f": {clean(check.what)}: {found}{asked}"
    head = Text.assemble((f"{check.verdict} {clean(check.name)}", _STYLES[check.verdict]), said)
    console.print(head, soft_wrap=True)
    if check.detail:
        console.print(_INDENT + clean(check.detail), soft_wrap=True)
    place = f"{policy}:{check.line}" if check.line else policy
    console.print(_INDENT + clean(place), soft_wrap=True, style="dim")


def _checks(report: GateReport, console: Console, *, verbose: bool) -> None:
    from rich.text import Text

    rows = table(
        "check", "value", "limit", "", *(["time"] if verbose else []), numbers=[4] if verbose else []
    )
    for check in report.checks:
        verdict = Text(check.verdict, style=_STYLES[check.verdict])
        words = map(clean, (check.name, check.value, check.limit))
        rows.add_row(*words, verdict, *([seconds(check.seconds)] if verbose else []))
    show(console, rows)
    told = [check for check in report.checks if verbose and check.verdict == "passed" and check.detail]
    if told:
        console.print()
    for check in told:
        console.print(f"{_INDENT}{clean(check.name)}: {clean(check.detail)}", soft_wrap=True, style="dim")


def _changes(report: GateReport, console: Console, *, verbose: bool) -> None:
    if report.against is None:
        return
    console.print()
    since = f"since {clean(report.against.file.path)}"
    if not report.changes:
        console.print(f"nothing changed {since}", soft_wrap=True)
        return
    console.print(f"changed {since}:", soft_wrap=True)
    shown = report.changes if verbose else report.changes[:_CHANGES]
    for text in shown:
        console.print(_INDENT + clean(text), soft_wrap=True)
    if len(shown) < len(report.changes):
        console.print(f"{_INDENT}and {len(report.changes) - len(shown)} more (-v lists them)", style="dim")


def _details(report: GateReport, console: Console) -> None:
    rows = table("", "")
    rows.add_row("model", f"{clean(report.model.path)} ({size(report.model.bytes)})")
    if report.reference is not None:
        rows.add_row("reference", f"{clean(report.reference.path)} ({size(report.reference.bytes)})")
    rows.add_row("policy", clean(report.policy))
    rows.add_row("time", ", ".join(f"{stage} {seconds(s)}" for stage, s in report.seconds.items()))
    rows.add_row("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items()))
    show(console, rows)
