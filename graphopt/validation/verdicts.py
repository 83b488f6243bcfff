"""From what was found under each runtime to a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from graphopt.report.validated import RuntimeRow, ValidationReport
from graphopt.runtime.session import CPU
from graphopt.validation import explain
from graphopt.validation.alignment import Alignment
from graphopt.validation.compare import OutputVerdict
from graphopt.validation.oracles import Finding, Miss, NoRun


def judged(report: ValidationReport, findings: Sequence[Finding], *, alone: bool) -> ValidationReport:
    """The verdict over all runtimes: of the first one, in the order of trust, that shows a failure."""
    undecided: tuple[Finding, Miss] | None = None
    for finding in findings:
        counting = [m for m in finding.misses if m.counts]
        if counting:
            miss = max(counting, key=lambda m: explain.badness(m.verdict))
            return replace(
                report,
                verdict="failed",
                fault=miss.fault,
                reason=explain.reason(finding, miss, counting, report.probes),
                explanation=explain.sentence(finding, miss, alone=alone),
            )
        for miss in finding.misses:
            # A provider that was asked for, and on which neither runs, was not compared on.
            if miss.undecided or (miss.shared and miss.probe is None and finding.runtime.provider != CPU):
                undecided = undecided or (finding, miss)
    if undecided is not None:
        return replace(report, verdict="unproven", reason=explain.undecided(*undecided, report.probes))
    return report


def reordered(report: ValidationReport, aligned: Alignment) -> ValidationReport:
    """A candidate whose inputs or outputs have changed places: callers that go by position get others."""
    what = "; ".join(aligned.reordered)
    if report.verdict == "failed":
        return replace(report, reason=f"{what}; {report.reason}")
    return replace(report, verdict="failed", fault="candidate", reason=what, explanation=explain.REORDERED)


def to_localize(findings: Sequence[Finding]) -> tuple[Finding, Miss] | tuple[None, None]:
    """The worst difference under the first runtime that shows one that counts, else any."""
    for counts in (True, False):
        for finding in findings:
            misses = [m for m in finding.misses if m.counts or not counts]
            if misses:
                return finding, max(misses, key=lambda m: explain.badness(m.verdict))
    return None, None


def is_shared(finding: Finding) -> bool:
    """The runtime changes the reference in the same way as the candidate."""
    return any(m.shared for m in finding.misses)


def runtime_row(finding: Finding) -> RuntimeRow:
    """The report's row for a runtime."""
    runtime = finding.runtime
    optimizations: Literal["off", "on"] = "off" if runtime.optimize == "none" else "on"
    notes = []
    for who, rows in (("the reference", finding.reference), ("the candidate", finding.candidate)):
        if isinstance(rows, NoRun) and not (who == "the candidate" and rows is finding.reference):
            notes.append(f"{who}: {rows.message}")
    if any(m.shared for m in finding.misses):
        notes.append("the reference changes in the same way")
    elif any(m.undecided and m.probe is not None for m in finding.misses):
        notes.append("the reference changes too, in another way")
    tf32 = runtime.settings.describe(runtime.provider).get("TF32")
    notes += [f"TF32 is {tf32}"] if tf32 is not None else []
    return RuntimeRow(
        runtime.name,
        runtime.provider,
        optimizations,
        _used(finding.reference),
        _used(finding.candidate),
        finding.reference_ok,
        finding.candidate_ok,
        finding.fault,
        "; ".join(notes),
    )


def _used(rows: list[list[OutputVerdict]] | NoRun) -> float | None:
    if isinstance(rows, NoRun):
        return None
    shares = [v.used for vs in rows for v in vs if v.used is not None]
    return max(shares, default=None)
