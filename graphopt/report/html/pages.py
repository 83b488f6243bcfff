"""One page per report: what stands on top, and which parts follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

from graphopt.budget import Exploration, Survey
from graphopt.report.calibrated import CalibrationReport
from graphopt.report.console import default_reason
from graphopt.report.document import FileInfo, OutputRow, RunReport
from graphopt.report.drawn import GraphView
from graphopt.report.gated import GateReport
from graphopt.report.html import sections
from graphopt.report.html.page import Page, Section, Tile, decibels, milliseconds
from graphopt.report.text import change, count, plural, size
from graphopt.report.timed import BenchReport
from graphopt.report.validated import LayerRow, ValidationReport


class Differences(Protocol):
    """What `graphopt diff` finds; see `graphopt.graph.diff.ModelDiff`."""

    @property
    def interface(self) -> Sequence[str]:
        """Inputs and outputs."""

    @property
    def properties(self) -> Sequence[str]:
        """Versions, metadata, functions."""

    @property
    def initializers(self) -> Sequence[Any]:
        """Initializers that differ."""

    @property
    def nodes(self) -> Sequence[Any]:
        """Nodes that differ."""

    @property
    def ops(self) -> Mapping[str, tuple[int, int]]:
        """Operators before and after."""


def run_page(
    report: RunReport,
    *,
    graph: GraphView | None = None,
    layers: Sequence[LayerRow] = (),
    layers_note: str = "",
    calibration: CalibrationReport | None = None,
    calibration_note: str = "",
) -> str:
    """The page of `graphopt run`.

    Args:
        report: the run.
        graph: both models.
        layers, layers_note: intermediate tensors of both, compared; or why they are not.
        calibration, calibration_note: what was measured of the activations; or why nothing was.
    """
    before, after = report.before, report.after
    lossy = report.accuracy is not None
    files = (report.input.bytes, report.output.bytes) if report.output and report.input.bytes else None
    old, new = files or (before.bytes, after.bytes)
    tiles = [
        Tile("nodes", f"{before.nodes:,} → {after.nodes:,}", change(before.nodes, after.nodes)),
        Tile("file" if files else "weights", f"{size(old)} → {size(new)}", change(old, new)),
        Tile("rewrites", f"{sum(p.rewrites for p in report.passes):,}", _passes_that_did(report)),
        *_output_tiles(report.outputs),
    ]
    if report.latency is not None:
        tiles.append(Tile("latency", f"{report.latency.ratio:.3f} x", report.latency.verdict))
    if report.accuracy is not None:
        for metric in report.accuracy.metrics[:2]:
            tiles.append(Tile(metric.name, f"{metric.after:.5g}", f"{metric.after - metric.before:+.4g}"))
    parts = [
        Section("culprits", "Rolled back", "culprits.html", {"rows": report.culprits})
        if report.culprits
        else None,
        sections.changes(before, after, files=files, lossy=lossy, interface=report.interface),
        sections.passes(report),
        sections.stages(report),
        sections.outputs(report.outputs, report.probes, report.runtimes),
        sections.layers(layers, note=layers_note),
        sections.accuracy(report),
        sections.sensitivity(report.exploration)
        if report.exploration and (report.exploration.units or report.exploration.tradeoffs)
        else None,
        sections.calibration(calibration) if calibration else sections.note("calibration", calibration_note),
        sections.graph(graph) if graph else None,
        sections.details(
            [
                ("input", _file(report.input)),
                ("output", _file(report.output) if report.output else "nothing was written"),
                ("target", report.target),
                ("recipe", report.recipe),
            ],
            report.seconds,
            pipeline=report.pipeline,
        ),
    ]
    return _html(
        Page(
            "run report",
            _name(report.input) or "a model",
            report.verdict,
            report.verdict_reason or default_reason(report),
            tiles,
            [("warn", w) for w in report.warnings],
            graph=graph,
            versions=report.versions,
        ),
        parts,
    )


def validation_page(report: ValidationReport, *, graph: GraphView | None = None) -> str:
    """The page of `graphopt validate`."""
    tiles = [*_output_tiles(report.outputs), Tile("held to", report.numerics)]
    tiles += [Tile("runtimes", str(len(report.runtimes)))] if report.runtimes else []
    if report.fault:
        tiles.insert(0, Tile("fault", report.fault))
    there = report.localization
    if there is not None and there.found:
        tiles.insert(1, Tile("starts at", _short(f"{there.op} {there.node}".strip()), there.made_by))
    for metric in report.metrics[:2]:
        tiles.append(Tile(metric.name, f"{metric.after:.5g}", f"{metric.after - metric.before:+.4g}"))
    counted = report.before.nodes or report.after.nodes
    parts = [
        sections.localization(report),
        sections.outputs(report.outputs, report.probes, ()),
        sections.runtimes(report),
        sections.layers(report.layers),
        sections.changes(report.before, report.after) if counted else None,
        sections.graph(graph) if graph else None,
        sections.details(
            [("reference", _file(report.reference)), ("candidate", _file(report.candidate))], report.seconds
        ),
    ]
    reason = report.explanation or report.reason or "they compute the same"
    return _html(
        Page(
            "validation report",
            f"{_name(report.reference)} and {_name(report.candidate)}",
            report.verdict,
            reason,
            tiles,
            [("warn", w) for w in report.warnings],
            graph=graph,
            versions=report.versions,
        ),
        parts,
    )


def bench_page(report: BenchReport) -> str:
    """The page of `graphopt bench`."""
    tiles = [
        Tile(f"{t.label}: median", f"{milliseconds(t.p50_ms)} ms", _name(t.file)) for t in report.timings[:4]
    ]
    tiles += [Tile(f"{r.b} over {r.a}", f"{r.ratio:.4f}", r.verdict) for r in report.ratios[:3]]
    verdict = report.ratios[0].verdict if len(report.ratios) == 1 else ""
    reason = ""
    if verdict:
        r = report.ratios[0]
        reason = f"{r.b} takes {r.ratio:.4f} of the time of {r.a}; {100 * r.confidence:g}% interval "
        reason += f"{r.low:.4f} to {r.high:.4f}, {plural(r.pairs, 'pair')}"
    title = " and ".join(_name(t.file) for t in report.timings) or "no models"
    page = Page("latency report", title, verdict, reason, tiles, versions=report.versions)
    return _html(page, [sections.bench(report)])


def gate_page(report: GateReport, *, graph: GraphView | None = None) -> str:
    """The page of `graphopt gate`."""
    failed = [c for c in report.checks if c.verdict != "passed"]
    passed = len(report.checks) - len(failed)
    reason = f"{passed} of {plural(len(report.checks), 'check')} passed"
    if failed:
        reason += "; not: " + ", ".join(c.name for c in failed[:6])
        reason += f" and {len(failed) - 6} more" if len(failed) > 6 else ""
    tiles = [
        Tile("checks passed", f"{passed} of {len(report.checks)}"),
        Tile("model", _name(report.model), size(report.model.bytes)),
    ]
    if report.bench is not None:
        tiles += [Tile("latency ratio", f"{r.ratio:.4f}", r.verdict) for r in report.bench.ratios[:1]]
    if report.validation is not None:
        tiles += _output_tiles(report.validation.outputs)
    v = report.validation
    parts = [
        sections.checks(report),
        *(
            (
                sections.localization(v),
                sections.outputs(v.outputs, v.probes, ()),
                sections.runtimes(v),
                sections.layers(v.layers),
            )
            if v is not None
            else ()
        ),
        sections.bench(report.bench) if report.bench else None,
        sections.changes(report.before, report.after) if report.before and report.after else None,
        sections.graph(graph) if graph else None,
        sections.details(
            [
                ("model", _file(report.model)),
                ("reference", _file(report.reference) if report.reference else ""),
                ("policy", report.policy),
            ],
            report.seconds,
        ),
    ]
    return _html(
        Page(
            "gate report",
            f"{_name(report.model)}: {report.name}" if report.name else _name(report.model),
            report.verdict,
            reason,
            tiles,
            [("warn", w) for w in report.warnings],
            graph=graph,
            versions=report.versions,
        ),
        parts,
    )


def diff_page(
    found: Differences,
    graph: GraphView,
    *,
    before: str,
    after: str,
    versions: Mapping[str, str] | None = None,
) -> str:
    """The page of `graphopt diff`.

    Args:
        found: the differences.
        graph: both models.
        before, after: the files.
        versions: of what made it.
    """
    kinds = {kind: sum(n.kind == kind for n in found.nodes) for kind in ("removed", "added", "changed")}
    same = not (found.interface or found.properties or found.initializers or found.nodes)
    tiles = [Tile(f"nodes {kind}", f"{n:,}") for kind, n in kinds.items()]
    tiles.append(Tile("initializers that differ", f"{len(found.initializers):,}"))
    most = sections.MOST_ROWS
    data = {
        "lists": [("Interface", found.interface), ("Properties", found.properties)],
        "ops": sections.operators(
            {op: a for op, (a, _) in found.ops.items()}, {op: b for op, (_, b) in found.ops.items()}
        ),
        "initializers": found.initializers[:most],
        "more": max(len(found.initializers) - most, 0),
    }
    there = found.interface or found.properties or found.initializers or found.ops
    return _html(
        Page(
            "comparison",
            f"{PurePath(before).name} and {PurePath(after).name}",
            "the same" if same else "",
            "the models do not differ" if same else "",
            tiles,
            graph=graph,
            versions=versions or {},
        ),
        [
            sections.graph(graph),
            Section("differences", "Differences", "differences.html", data) if there else None,
            sections.details([("before", before), ("after", after)], {}),
        ],
    )


def sensitivity_page(
    found: Exploration | Survey, title: str, *, versions: Mapping[str, str] | None = None
) -> str:
    """The page of `graphopt sensitivity`."""
    if isinstance(found, Exploration):
        tiles = [
            Tile("all changed", f"{decibels(found.base.sqnr_db)} dB", f"cosine {found.base.cosine:.5f}"),
            Tile("nodes measured", str(len(found.units))),
            Tile("mixtures measured", str(len(found.tradeoffs))),
        ]
        worst = max(found.units, key=lambda u: _finite(u.spared.sqnr_db), default=None)
        if worst is not None:
            gain = worst.spared.sqnr_db - found.base.sqnr_db
            tiles.append(Tile("costs most", _short(worst.node), f"{gain:+.1f} dB if spared"))
    else:
        tiles = [
            Tile("pass", _short(found.measured)),
            Tile("layers", str(len(found.layers))),
            Tile("whole pass", f"{decibels(found.together.score.sqnr_db)} dB"),
            Tile("saves", size(found.together.packed_bytes), f"of {size(found.bytes)}"),
        ]
    page = Page("sensitivity report", title, tiles=tiles, versions=versions or {})
    return _html(page, [sections.sensitivity(found)])


def calibration_page(report: CalibrationReport, *, versions: Mapping[str, str] | None = None) -> str:
    """The page of `graphopt calibrate`."""
    cut = sum(t.outside > 0 for t in report.tensors)
    tiles = [
        Tile("tensors", count(len(report.tensors))),
        Tile("samples", count(report.samples)),
        Tile("method", report.method, report.type),
        Tile("ranges that cut values off", str(cut)),
    ]
    page = Page("calibration report", report.model or "ranges", tiles=tiles, versions=versions or {})
    return _html(page, [sections.calibration(report)])


def _html(page: Page, parts: Sequence[Section | None]) -> str:
    from dataclasses import replace

    return replace(page, sections=tuple(p for p in parts if p is not None)).html()


def _output_tiles(rows: Sequence[OutputRow]) -> list[Tile]:
    if not rows:
        return []
    good = sum(o.verdict == "ok" for o in rows)
    tiles = [Tile("outputs in order", f"{good} of {len(rows)}")]
    measured = [o.sqnr_db for o in rows if o.sqnr_db is not None and not math.isnan(o.sqnr_db)]
    if measured:
        least = min(measured)
        tiles.append(Tile("worst SQNR", "identical" if least == math.inf else f"{least:.1f} dB"))
    return tiles


def _passes_that_did(report: RunReport) -> str:
    n = sum(p.rewrites > 0 for p in report.passes)
    return f"by {plural(n, 'pass', 'passes')}"


def _short(text: str, most: int = 44) -> str:
    return text if len(text) <= most else f"...{text[3 - most :]}"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.copysign(1e9, value) if not math.isnan(value) else -1e9


def _name(file: FileInfo) -> str:
    return PurePath(file.path).name


def _file(file: FileInfo) -> str:
    words = f"{file.path} ({size(file.bytes)})" if file.bytes else file.path
    return words + (f", with {', '.join(file.data_files)}" if file.data_files else "")
