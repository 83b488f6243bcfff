"""Parts of pages, each from its part of a report; None where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from graphopt.budget import Exploration, Survey
from graphopt.report import charts, exploration, plot, survey
from graphopt.report.calibrated import CalibratedTensor, CalibrationReport
from graphopt.report.document import ModelStats, OutputRow, RunReport
from graphopt.report.drawn import GraphView
from graphopt.report.gated import GateReport
from graphopt.report.html.graphdata import LEGEND
from graphopt.report.html.neighbourhood import neighbourhood
from graphopt.report.html.page import Section
from graphopt.report.text import clean, plural
from graphopt.report.timed import BenchReport
from graphopt.report.validated import LayerRow, ValidationReport

#: Most rows of what a model may have many thousands of; the rest is in the JSON report.
MOST_ROWS = 2000
_MOST_CHANGES = 400
_MOST_HISTOGRAMS = 48


def _svg(panel: plot.Panel, title: str) -> Markup:
    return Markup(charts.inline(panel, clean(title)))


# -- what changed ----------------------------------------------------------------------------------------


def changes(
    before: ModelStats,
    after: ModelStats,
    *,
    files: tuple[int, int] | None = None,
    lossy: bool = False,
    interface: Sequence[Any] = (),
) -> Section:
    """Sizes and the histogram of operators."""
    versions = [
        (f"opset {domain or 'ai.onnx'}", before.opsets.get(domain, "-"), after.opsets.get(domain, "-"))
        for domain in sorted({*before.opsets, *after.opsets})
    ]
    versions.append(("IR version", before.ir_version, after.ir_version))
    data = {
        "before": before,
        "after": after,
        "files": files,
        "parameters": "float parameters" if lossy else "parameters",
        "versions": [row for row in versions if row[1] != row[2]],
        "ops": operators(before.ops, after.ops),
        "interface": interface,
    }
    return Section("changes", "What changed", "changes.html", data)


def operators(before: Mapping[str, int], after: Mapping[str, int]) -> list[tuple[str, int, int, Markup]]:
    """Operators with how many before and after, and both as bars; the most frequent first."""
    most = max([1, *before.values(), *after.values()])
    rows = [(op, before.get(op, 0), after.get(op, 0)) for op in {*before, *after}]
    rows.sort(key=lambda row: (-max(row[1], row[2]), row[0]))
    return [(op, a, b, _two_bars(op, a, b, most)) for op, a, b in rows]


def _two_bars(op: str, a: int, b: int, most: int) -> Markup:
    return Markup(
        '<svg class="bar" viewBox="0 0 160 14" aria-hidden="true"><title>{}: {} before, {} after</title>'
        '<rect class="before" x="0" y="0" width="{}" height="6"/>'
        '<rect class="after" x="0" y="7" width="{}" height="6"/></svg>'
    ).format(clean(op), a, b, round(160 * a / most, 1), round(160 * b / most, 1))


def _bar(share: float) -> Markup:
    return Markup(
        '<svg class="bar" viewBox="0 0 160 14" aria-hidden="true"><rect class="share" x="0" y="2" width="{}" '
        'height="10"/></svg>'
    ).format(round(160 * min(max(share, 0.0), 1.0), 1))


def passes(report: RunReport) -> Section | None:
    """What each pass changed, declined, and why."""
    if not report.passes:
        return None
    rows = []
    for p in report.passes:
        kinds = [
            *(["changed something"] if p.rewrites else []),
            *(["declined something"] if p.refusals else []),
            *(["rolled back"] if p.rolled_back_sites else []),
        ]
        declined = sum(r.count for r in p.refusals)
        made = (p.changes or p.sites)[:_MOST_CHANGES]
        rows.append({"report": p, "declined": declined, "kinds": kinds or ["did nothing"], "made": made})
    return Section("passes", "Passes", "passes.html", {"rows": rows, "most": _MOST_CHANGES})


# -- how far the numbers moved ---------------------------------------------------------------------------


def outputs(rows: Sequence[OutputRow], probes: Sequence[str], under: Sequence[str]) -> Section | None:
    """How far each output moved."""
    if not rows:
        return None
    shown = sorted(rows, key=lambda o: -_used(o))[:40] if len(rows) > 40 else rows
    judged = [(clean(o.name), _used(o), o.verdict != "failed") for o in shown if o.allowed]
    noisy = [o for o in shown if o.sqnr_db is not None and math.isfinite(o.sqnr_db)]
    bars = plot.bars("Signal to noise", [(clean(o.name), o.sqnr_db or 0.0) for o in noisy], "dB", width=620)
    data = {
        "rows": rows,
        "probes": probes,
        "under": under,
        "used": _svg(
            charts.shares("Largest move over what is allowed", judged), "Share of the allowance per output"
        )
        if judged
        else "",
        "sqnr": _svg(bars, "SQNR per output") if noisy else "",
    }
    return Section("outputs", "Outputs", "outputs.html", data)


def _used(row: OutputRow) -> float:
    """The share of its allowance that an output uses."""
    if not row.allowed or row.max_abs is None:
        return 0.0
    return row.max_abs / row.allowed if not math.isnan(row.max_abs) else math.inf


def layers(rows: Sequence[LayerRow], *, limit: float | None = None, note: str = "") -> Section | None:
    """SQNR along the depth of the network; or `note`, why there is none."""
    if not rows:
        words = {"rows": (), "note": note}
        return Section("layers", "Layer by layer", "layers.html", words) if note else None
    points = [
        charts.DepthPoint(r.depth, r.sqnr_db, f"{r.tensor} ({r.op})", r.ok)
        for r in rows
        if r.sqnr_db is not None
    ]
    chart = charts.depth("Signal to noise along the depth of the network", points, limit=limit, width=1000)
    shown = rows
    if len(rows) > MOST_ROWS:  # what diverges is there in any case
        bad = [r for r in rows if not r.ok][:MOST_ROWS]
        good = [r for r in rows if r.ok][: MOST_ROWS - len(bad)]
        shown = sorted([*bad, *good], key=lambda r: r.depth)
    data = {
        "rows": shown,
        "note": note,
        "more": len(rows) - len(shown),
        "chart": _svg(chart, "SQNR along the depth of the network") if points else "",
    }
    return Section("layers", "Layer by layer", "layers.html", data)


def accuracy(report: RunReport) -> Section | None:
    """Accuracy, latency, and what stayed in float, of results that move the numbers."""
    there = (report.accuracy, report.latency, report.left_float, report.sparsity)
    if not any(there):
        return None
    t = report.latency
    ratio: Any = ""
    distributions: Any = ""
    if t is not None:
        series = [("before", t.before_quantiles_ms), ("after", t.after_quantiles_ms)]
        distributions = _svg(charts.distributions("Latency", series, "ms"), "Latency before and after")
        row = charts.Interval("result", t.ratio, t.low, t.high, t.verdict)
        ratio = _svg(charts.ratios("Latency over the original's", [row]), "Latency ratio")
    data = {
        "accuracy": report.accuracy,
        "metrics": report.accuracy.metrics if report.accuracy else (),
        "latency": t,
        "ratio": ratio,
        "distributions": distributions,
        "left_float": report.left_float,
        "sparsity": report.sparsity,
    }
    return Section("accuracy", "Accuracy and latency", "accuracy.html", data)


def stages(report: RunReport) -> Section | None:
    """Stages of a recipe."""
    if not report.stages:
        return None
    return Section("stages", "Stages", "stages.html", {"rows": report.stages, "recipe": report.recipe})


def sensitivity(found: Exploration | Survey) -> Section:
    """What each node or layer costs, and what lies between all and nothing."""
    panels = exploration.panels(found) if isinstance(found, Exploration) else survey.panels(found)
    drawn = [_svg(p, "Sensitivity") for p in panels]
    if isinstance(found, Exploration):
        front = exploration.pareto(found.tradeoffs)
        data: dict[str, Any] = {
            "base": found.base,
            "charts": drawn,
            "units": [(u, u.spared.sqnr_db - found.base.sqnr_db) for u in found.units],
            "names": sorted({name for t in found.tradeoffs for name in t.score.metrics}),
            "tradeoffs": [(t, t in front) for t in found.tradeoffs],
        }
        return Section("sensitivity", "Sensitivity", "exploration.html", data)
    rows = (*found.layers, found.together)
    data = {
        "found": found,
        "charts": drawn,
        "rows": rows,
        "names": sorted({name for e in rows for name in e.score.metrics}),
        "sweep": survey.swept(found),
    }
    return Section("sensitivity", "Sensitivity", "survey.html", data)


def calibration(report: CalibrationReport) -> Section | None:
    """Histograms with the chosen ranges; those that cut most off come first where there are many."""
    if not report.tensors:
        return None
    shown: Sequence[CalibratedTensor] = report.tensors
    if len(shown) > _MOST_HISTOGRAMS:
        shown = sorted(shown, key=lambda t: -(t.outside / t.count if t.count else 0))[:_MOST_HISTOGRAMS]
    drawn = []
    for t in shown:
        word = "edited" if t.edited else report.method or "in use"
        bands = [charts.Band(word, t.low, t.high)]
        bands += [
            charts.Band(name, *ends, used=False)
            for name, ends in t.methods.items()
            if tuple(ends) != (t.low, t.high)
        ]
        panel = charts.histogram(clean(t.name), t.edges, t.counts, bands, zeros=t.zeros)
        drawn.append(_svg(panel, f"Values of {t.name}, range {t.low:.4g} to {t.high:.4g}"))
    words = f"{plural(report.samples, 'sample')}; "
    if report.method:
        sign = "symmetric" if report.symmetric else "asymmetric"
        words += f"ranges by {report.method} for {report.type}, {sign}."
    else:
        words += "the values that reach each quantizer of the result, and the range that it represents."
    data = {"report": report, "words": words, "charts": drawn, "more": len(report.tensors) - len(drawn)}
    return Section("calibration", "Calibration", "calibration.html", data)


def note(part: str, text: str) -> Section | None:
    """A part of which there is only to say why it is empty."""
    return Section(part, part.capitalize(), "note.html", {"text": text}) if text else None


# -- validation, bench, gate -----------------------------------------------------------------------------


def runtimes(report: ValidationReport) -> Section | None:
    """Whose fault a difference is."""
    if not report.runtimes:
        return None
    data = {"rows": report.runtimes, "mapping": report.mapping}
    return Section("runtimes", "Runtimes", "runtimes.html", data)


def localization(report: ValidationReport) -> Section | None:
    """Where the difference starts."""
    if report.localization is None:
        return None
    found = report.localization
    drawing = _svg(neighbourhood(found.neighbourhood), "The nodes around the place where it starts")
    return Section(
        "localization", "Where it starts", "localization.html", {"found": found, "drawing": drawing}
    )


def bench(report: BenchReport) -> Section:
    """Distributions, ratios, and time by operator."""
    rows = [charts.Interval(clean(r.b), r.ratio, r.low, r.high, r.verdict) for r in report.ratios]
    first = report.ratios[0].a if report.ratios else ""
    series = [(clean(t.label), t.quantiles_ms) for t in report.timings[:4]]
    data = {
        "report": report,
        "ratios": _svg(charts.ratios(f"Time over that of {first}", rows), "Latency ratios"),
        "distributions": _svg(charts.distributions("Latency", series, "ms"), "Latency distributions"),
        "ops": [(t, [(o, _bar(o.share)) for o in t.ops]) for t in report.timings if t.ops],
    }
    return Section("bench", "Latency", "bench.html", data)


def checks(report: GateReport) -> Section:
    """Every limit of the policy, with what was found."""
    words = []
    for verdict in ("failed", "error", "passed"):
        n = sum(c.verdict == verdict for c in report.checks)
        if n or verdict == "passed":
            words.append(f"{n} {'could not be measured' if verdict == 'error' else verdict}")
    data = {
        "rows": report.checks,
        "policy": report.policy,
        "counts": ", ".join(words),
        "changes": report.changes,
        "older": report.against,
    }
    return Section("checks", "Checks", "checks.html", data)


# -- graph and the rest ----------------------------------------------------------------------------------


def graph(view: GraphView) -> Section:
    """The drawing, which the page's script shows."""
    both = view.before is not None
    after = view.after.node_count
    if view.before is None:
        summary = plural(after, "node")
        sides = [("after", view.after.title)]
    else:
        states = view.after.states()
        removed = view.before.states()["removed"]
        summary = f"{plural(view.before.node_count, 'node')} before, {after:,} after: {removed:,} removed, "
        summary += f"{states['added']:,} added, {states['changed']:,} changed."
        sides = [("before", view.before.title), ("after", view.after.title)]
    data = {
        "summary": summary,
        "notes": view.notes,
        "both": both,
        "sides": sides,
        "legend": list(LEGEND.items()),
    }
    return Section("graph", "Graph", "graph.html", data)


def details(rows: Sequence[tuple[str, str]], seconds: Mapping[str, float], *, pipeline: str = "") -> Section:
    """Files, times, the pipeline."""
    data = {"rows": list(rows), "seconds": seconds, "pipeline": pipeline}
    return Section("details", "Details", "details.html", data)
