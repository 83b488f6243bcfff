"""Filling in the report of a run."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from graphopt.graph.journal import Change, Journal
from graphopt.graph.text import dtype_text
from graphopt.interface import InterfaceEdits, type_text
from graphopt.pipeline.base import Numerics, Pass
from graphopt.pipeline.instruments import Timing
from graphopt.pipeline.options import options_of
from graphopt.pipeline.spec import format_value
from graphopt.pipeline.transaction import Guilt, Outcome
from graphopt.report.document import (
    Culprit,
    FileInfo,
    NumericsName,
    OutputRow,
    PassReport,
    PortChange,
    Refusal,
    Rewrite,
    RunReport,
)

if TYPE_CHECKING:
    from graphopt.validation.compare import OutputVerdict
    from graphopt.validation.proof import Proof

_MOST_SITES = 200
PACKAGES = ("graphopt", "onnx", "onnx-graphsurgeon", "onnxruntime", "onnxruntime-gpu", "numpy")


class Clock:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """What has passed since the last lap belongs to `stage`."""
        now = time.perf_counter()
        self.laps[stage] = self.laps.get(stage, 0.0) + now - self._last
        self._last = now


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on; those that are not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def file_info(path: Path | None, data_files: Sequence[Path] = ()) -> FileInfo:
    """Path and size of a model on disk, external data included."""
    if path is None or not path.is_file():
        return FileInfo(str(path or ""))
    size = path.stat().st_size + sum(f.stat().st_size for f in data_files if f.is_file())
    return FileInfo(str(path), size, tuple(str(f) for f in data_files))


def pass_reports(
    order: Sequence[Pass], journal: Journal, timing: Timing, outcome: Outcome
) -> tuple[PassReport, ...]:
    """One row per pass, in order of the first run; passes that were left out come last."""
    applied: dict[str, list[Change]] = {}
    for change in journal.changes:
        applied.setdefault(change.key.pass_name, []).append(change)
    declined: dict[str, dict[str, Refusal]] = {}
    for refusal, count in journal.refusals.items():
        reasons = declined.setdefault(refusal.pass_name, {})
        first = reasons.get(refusal.reason)
        node = first.node if first else refusal.node
        total = (first.count if first else 0) + count
        reasons[refusal.reason] = Refusal(node, refusal.reason, total)
    rows = []
    for item in order:
        changes = applied.get(item.name, [])
        rows.append(
            PassReport(
                name=item.name,
                options={key: format_value(value) for key, value in options_of(item).items()},
                numerics=item.numerics.value,
                rewrites=len(changes),
                refusals=tuple(declined.get(item.name, {}).values()),
                nodes_removed=sum(len(c.removed) for c in changes),
                nodes_added=sum(len(c.added) for c in changes),
                seconds=timing.seconds.get(item, 0.0),
                rolled_back_sites=sum(1 for g in outcome.guilty if g.pass_name == item.name),
                changes=tuple(
                    Rewrite(c.key.anchor, c.why) for c in changes if item.numerics is Numerics.LOSSY
                ),
                remark=str(outcome.run.notes.get(("remark", item), "")),
                sites=tuple(Rewrite(c.key.anchor, c.why) for c in changes[:_MOST_SITES]),
            )
        )
    return tuple(rows)


def port_changes(edits: InterfaceEdits) -> tuple[PortChange, ...]:
    """The report's rows about inputs and outputs that were changed."""
    return tuple(
        PortChange(e.kind, e.name, type_text(e.before), type_text(e.after), e.why, e.pass_name) for e in edits
    )


def left_out(steps: Sequence[Pass], outcome: Outcome) -> tuple[PassReport, ...]:
    """Rows for the passes that were rolled back as a whole."""
    rows = []
    for item in steps:
        reasons = [g for g in outcome.guilty if g.pass_name == item.name and g.site is None]
        if reasons:
            rows.append(
                PassReport(
                    name=item.name,
                    numerics=item.numerics.value,
                    rolled_back_sites=sum(1 for g in outcome.guilty if g.pass_name == item.name),
                    skipped="rolled back",
                )
            )
    return tuple(rows)


def culprit(guilt: Guilt, folder: str = "", command: str = "") -> Culprit:
    """The report's form of what was rolled back."""
    return Culprit(
        pass_name=guilt.pass_name,
        site=guilt.site.anchor if guilt.site else "",
        why=guilt.why,
        reproducer=folder,
        command=command,
        with_passes=guilt.partners,
        trace=guilt.trace,
        rewrite=guilt.change.why if guilt.change and guilt.site else "",
        removed=tuple(guilt.change.removed) if guilt.change and guilt.site else (),
        added=tuple(guilt.change.added) if guilt.change and guilt.site else (),
    )


def _dtype(name: str) -> str:
    """A numpy dtype's name as ONNX spells it, as `inspect` and `diff` do: "float" for float32."""
    if name == "object":
        return "string"
    try:
        return dtype_text(np.dtype(name))
    except (TypeError, ValueError):
        return name


def output_rows(proof: Proof | None, declared: Mapping[str, tuple[str, ...] | None]) -> tuple[OutputRow, ...]:
    """How far each output moved; `declared` are the dims that the model declares, by output."""
    return () if proof is None else verdict_rows(proof.outputs, declared)


def verdict_rows(
    verdicts: Sequence[OutputVerdict], declared: Mapping[str, tuple[str, ...] | None]
) -> tuple[OutputRow, ...]:
    """The report's form of verdicts on outputs."""
    rows = []
    for v in verdicts:
        m = v.metrics
        rows.append(
            OutputRow(
                name=v.name,
                dtype=_dtype(v.dtype),
                shape=declared.get(v.name),
                numerics=cast(NumericsName, v.level),
                max_abs=m.max_abs if m else None,
                max_rel=m.max_rel if m else None,
                cosine=m.cosine if m else None,
                sqnr_db=m.sqnr_db if m else None,
                allowed=v.limit,
                verdict="ok" if v.ok else "failed",
                note=v.reason,
            )
        )
    return tuple(rows)


def with_proof(report: RunReport, outcome: Outcome) -> RunReport:
    """`report` with the evidence of the last comparison."""
    if outcome.judgement is None or outcome.judgement.proof is None:
        return report
    proof: Any = outcome.judgement.proof
    declared = {t.name: _dims(t) for t in outcome.run.model.graph.outputs}
    return replace(
        report,
        outputs=output_rows(proof, declared),
        probes=proof.probes,
        runtimes=proof.runtimes,
        warnings=(*proof.warnings, *report.warnings),
    )


def _dims(tensor: Any) -> tuple[str, ...] | None:
    shape = tensor.shape
    return None if shape is None else tuple("?" if d is None else str(d) for d in shape)
