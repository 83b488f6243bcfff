"""The report of a gate as Markdown for the comment of a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator

from graphopt.report.gate_console import headline
from graphopt.report.gated import Check, GateReport
from graphopt.report.text import clean, size

_MARKS = {"passed": "✅ passed", "failed": "❌ failed", "error": "⚠️ not measured"}
# GitHub takes 65,536 characters in a comment; what is beyond is left out and said to be.
_LIMIT = 60_000
_DETAIL = 600
_CHANGES = 40


def markdown(report: GateReport) -> str:
    """The comment: verdict, table of checks with the ones that did not pass first, details to be unfolded."""
    blocks = list(_blocks(report))
    text = ""
    for i, block in enumerate(blocks):
        if len(text) + len(block) > _LIMIT:
            text += f"\n*{len(blocks) - i} more parts are left out: too long for a comment.*\n"
            break
        text += block
    return text


def _blocks(report: GateReport) -> Iterator[str]:
    passed = report.verdict == "passed"
    yield f"## {'✅' if passed else '❌'} Gate {report.verdict}: {text(headline(report))}\n\n"
    against = f", reference {code(report.reference.path)}" if report.reference is not None else ""
    yield f"{code(report.model.path)} ({size(report.model.bytes)}){against}, policy {code(report.policy)}\n\n"
    yield "| check | value | limit | verdict |\n|---|---|---|---|\n"
    rows = sorted(report.checks, key=lambda c: c.verdict == "passed")
    for check in rows:
        cells = code(check.name), text(check.value), text(check.limit), _MARKS[check.verdict]
        yield f"| {' | '.join(cells)} |\n"
    bad = [check for check in rows if check.verdict != "passed"]
    if bad:
        yield "\n### Why\n\n"
        for check in bad:
            yield _why(check, report.policy)
    if report.against is not None:
        yield from _changes(report)
    good = [check for check in rows if check.verdict == "passed" and check.detail]
    if good:
        body = "".join(f"- {code(check.name)}: {text(_short(check.detail))}\n" for check in good)
        yield _folded("Details of the checks that passed", body)
    for warning in report.warnings:
        yield f"\n> **Warning:** {text(warning)}\n"
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    if versions:
        yield f"\n<sub>{text(versions)}</sub>\n"


def _why(check: Check, policy: str) -> str:
    found = "not measured" if check.verdict == "error" else text(check.value)
    asked = f", asked for: {text(check.limit)}" if check.limit else ""
    detail = f" {text(_short(check.detail))}" if check.detail else ""
    place = f" ({code(f'{policy}:{check.line}')})" if check.line else ""
    return f"- **{text(check.what)}**: {found}{asked}.{detail}{place}\n"


def _changes(report: GateReport) -> Iterator[str]:
    assert report.against is not None
    since = code(report.against.file.path)
    if not report.changes:
        yield f"\nNothing changed since {since}.\n"
        return
    shown = report.changes[:_CHANGES]
    body = f"Since {since}:\n\n" + "".join(f"- {text(_short(change))}\n" for change in shown)
    if len(shown) < len(report.changes):
        body += f"- and {len(report.changes) - len(shown)} more\n"
    yield _folded(f"What changed ({len(report.changes)})", body)


def _folded(head: str, body: str) -> str:
    return f"\n<details>\n<summary>{text(head)}</summary>\n\n{body}\n</details>\n"


def _short(words: str) -> str:
    return words if len(words) <= _DETAIL else words[:_DETAIL] + " ..."


def text(words: str) -> str:
    """Plain text that Markdown shows as it is, also in a cell of a table."""
    line = " ".join(clean(words.replace("\n", " ")).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", line)
    return line.replace("@", "@\u200b")  # which keeps names from notifying people


def code(words: str) -> str:
    """A code span, also in a cell of a table; as many backticks around it as it needs."""
    line = " ".join(clean(words.replace("\n", " ")).split()).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else ""
