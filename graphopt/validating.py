"""Comparing two models, or one model on several runtimes, and saying whose fault a difference is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graphopt import api, lossy, summary
from graphopt.budget import Budget
from graphopt.errors import UserError
from graphopt.graph.stats import model_stats
from graphopt.graph.text import dims_text
from graphopt.interface import edits_of
from graphopt.model import Model
from graphopt.report.document import OutputRow
from graphopt.report.measured import MetricRow
from graphopt.report.validated import Localization, ValidationReport
from graphopt.runtime.providers import ProviderSettings, current
from graphopt.validation import explain, verdicts
from graphopt.validation.alignment import Alignment, align
from graphopt.validation.compare import Level, OutputVerdict
from graphopt.validation.layers import layer_rows
from graphopt.validation.localize import Search
from graphopt.validation.matching import match
from graphopt.validation.net import Net
from graphopt.validation.oracles import JUDGE, Finding, NoRun, Oracles
from graphopt.validation.proof import worse
from graphopt.validation.reference import Options, Reference
from graphopt.validation.standard import Bound, Standard

if TYPE_CHECKING:
    from graphopt.calibration.service import CalibrationService

Shapes = Mapping[str, Sequence[int]]


def validate(
    reference: api.Source,
    candidate: api.Source | None = None,
    *,
    data: Any = None,
    input_shapes: Shapes | Sequence[Shapes] | None = None,
    probes: int = 2,
    providers: str | Sequence[str] = ("cpu",),
    settings: ProviderSettings | None = None,
    numerics: str = "CLOSE",
    budget: Budget | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    tolerances: Mapping[str, Bound | tuple[float, float]] | None = None,
    mapping: Mapping[str, str] | None = None,
    any_order: bool = False,
    metric: lossy.Metric = None,
    max_drop: Mapping[str, float] | None = None,
    layers: bool = False,
    localize: bool = False,
    trust_external_paths: bool = False,
    progress: api.Tell | None = None,
) -> ValidationReport:
    """Compare what two models compute, or what one model computes on several runtimes.

    Args:
        reference: a path, a ModelProto, an onnx-graphsurgeon graph, or a Model.
        candidate: what is compared with it. None: the reference itself, and the verdict is about the
            runtimes: an optimizer or a provider that changes what it computes is a failure.
        data: real inputs (see docs/data.md); synthesized by default.
        input_shapes: dims by input name, for synthesized inputs; several such mappings to try several sizes.
        probes: how many sets of inputs are synthesized for each of these.
        providers: execution providers to compare under; the CPU always is among them.
        settings: what other providers than the CPU are opened with; TF32 is off by default.
        numerics: "EXACT", "CLOSE" or "LOSSY".
        budget: what is asked of "LOSSY"; None only measures.
        atol, rtol: `|a - b| <= atol + rtol * |a|` for every float output, instead of `numerics`.
        tolerances: the same for single outputs, by name or glob: a `Bound`, or (atol, rtol).
        mapping: names of the candidate's inputs and outputs -> the reference's, where they differ.
        any_order: inputs and outputs may stand in another order.
        metric: task metric, "module:function" or a function, called with (sample, outputs) pairs; needs data.
        max_drop: how far each figure of it may be below the reference's.
        layers: compare all intermediate tensors too, with optimizations off.
        localize: if something differs, find the first tensor that does.
        trust_external_paths: follow external data out of the models' folders.
        progress: called with a stage and a detail as it goes on.

    Returns:
        Verdict, whose fault it is, figures per output and per runtime.

    Raises:
        ModelError: a model cannot be read.
        ProviderError: a provider, or onnxruntime itself, is not there.
        UserError: something asked for makes no sense, or data and shapes do not fit the reference.
    """
    standard = _standard(numerics, budget, atol, rtol, tolerances)
    names = (providers,) if isinstance(providers, str) else tuple(providers)
    if not names:
        raise UserError("no execution provider was named", fix="as in: --providers cpu")
    if max_drop and metric is None:
        raise UserError(
            f"{', '.join(max_drop)} may fall by so much only, but is not measured",
            fix="name the function that computes it: --metric",
        )
    if metric is not None and data is None:
        raise UserError("--metric needs data to be computed on", fix="hand it in with --data")
    if candidate is None and (mapping or any_order or metric is not None):
        raise UserError(
            "there is no second model to map, or to measure against",
            fix="graphopt validate REFERENCE CANDIDATE",
        )
    return _Validation(
        standard=standard,
        options=_options(names, input_shapes, probes, settings or current()),
        data=data,
        mapping=dict(mapping or {}),
        any_order=any_order,
        metric=metric,
        max_drop=dict(max_drop or {}),
        layers=layers,
        localize=localize,
        trust=trust_external_paths,
        tell=progress or (lambda stage, detail: None),
    ).run(reference, candidate)


def _standard(
    numerics: str,
    budget: Budget | None,
    atol: float | None,
    rtol: float | None,
    tolerances: Mapping[str, Bound | tuple[float, float]] | None,
) -> Standard:
    try:
        level = Level.of(numerics)
    except ValueError:
        raise UserError(f"numerics cannot be {numerics!r}", fix="one of: EXACT, CLOSE, LOSSY") from None
    bound = None
    if atol is not None or rtol is not None:
        if level is not Level.CLOSE:
            raise UserError(
                f"a tolerance and {level.value} exclude each other",
                fix="leave out --numerics; for single outputs: --tolerance NAME:atol=X,rtol=X",
            )
        bound = Bound(atol or 0.0, rtol or 0.0)
    bounds = {n: b if isinstance(b, Bound) else Bound(*b) for n, b in (tolerances or {}).items()}
    for item in (*bounds.values(), *((bound,) if bound is not None else ())):
        if not (item.atol >= 0 and item.rtol >= 0):
            raise UserError(f"a tolerance cannot be {item}", fix="atol and rtol are at least 0")
    return Standard(level, bound, bounds, budget)


def _options(
    providers: tuple[str, ...],
    shapes: Shapes | Sequence[Shapes] | None,
    probes: int,
    settings: ProviderSettings,
) -> Options:
    if probes < 1:
        raise UserError(f"{probes} sets of inputs are not enough", fix="at least 1")
    given = [shapes] if isinstance(shapes, Mapping) else list(shapes or ())
    first, *more = given or [{}]
    return Options(
        providers,
        probes,
        input_shapes=dict(first),
        same_dims=False,
        more_shapes=tuple(map(dict, more)),
        settings=settings,
    )


class _Validation:
    """One comparison, see `validate`."""

    def __init__(
        self,
        standard: Standard,
        options: Options,
        data: Any,
        mapping: dict[str, str],
        any_order: bool,
        metric: lossy.Metric,
        max_drop: dict[str, float],
        layers: bool,
        localize: bool,
        trust: bool,
        tell: Callable[[str, str], None],
    ) -> None:
        self.standard, self.options, self.data = standard, options, data
        self.mapping, self.any_order = mapping, any_order
        self.metric, self.max_drop, self.trust, self.tell = metric, max_drop, trust, tell
        self.layers, self.localize = layers, localize
        self.findings: list[Finding] = []
        self.clock = summary.Clock()

    def run(self, reference: api.Source, candidate: api.Source | None) -> ValidationReport:
        """Load, compare, attribute."""
        self.tell("load", "the models")
        first = api.load(reference, trust_external_paths=self.trust)
        second = first if candidate is None else api.load(candidate, trust_external_paths=self.trust)
        unknown = self.standard.unused({t.name for t in first.graph.outputs})
        if unknown:
            outputs = ", ".join(t.name for t in first.graph.outputs)
            raise UserError(f"no output is called {unknown[0]!r}", fix=f"the outputs are: {outputs}")
        services = self._services(first)
        report = ValidationReport(
            reference=summary.file_info(first.path, first.data_files),
            candidate=summary.file_info(second.path, second.data_files),
            verdict="proven",
            numerics=self.standard.name,
            before=model_stats(first),
            after=model_stats(second),
            versions=summary.versions(),
        )
        self.clock.lap("load")
        self.tell("reference", "running the reference")
        base = Reference(first, self.data, self.options)
        self.clock.lap("reference")
        aligned = None
        if candidate is not None:
            edits = edits_of(second).since(base.all_edits)
            if edits:  # the two are one model before and after passes, in memory: how it changed is known
                base = base.through(edits)
            else:
                aligned = align(first, second, self.mapping)
                second = aligned.candidate
                report = replace(report, mapping=aligned.mapping)
        report = replace(
            report,
            probes=tuple(s.describe() for s in base.probes.sets),
            warnings=() if candidate is None else tuple(base.warnings),
        )
        report = self._compared(report, base, first, second if candidate is not None else None, aligned)
        if services is not None and not (aligned is not None and aligned.problems):
            report = self._scored(report, services, first, second)
        if self.findings and (self.layers or self.localize):
            report = self._looked_into(report, base, first, second)
        return replace(report, seconds=self.clock.laps)

    def _services(self, model: Model) -> CalibrationService | None:
        if self.metric is None:
            return None
        budget = Budget(None, None, self.max_drop)
        return lossy.open_services(self.data, model, metric=self.metric, tell=self.tell, budget=budget)

    def _compared(
        self,
        report: ValidationReport,
        base: Reference,
        first: Model,
        second: Model | None,
        aligned: Alignment | None,
    ) -> ValidationReport:
        if aligned is not None and aligned.problems:
            return replace(
                report,
                verdict="failed",
                fault="candidate",
                reason="; ".join(aligned.problems),
                explanation=" ".join((explain.INTERFACE, *aligned.hints)),
            )
        if base.reason:
            return replace(report, verdict="unproven", reason=base.reason)
        oracles = Oracles(base, self.standard)
        findings = self.findings
        for runtime in oracles.runtimes():
            self.tell("validate", runtime.name)
            findings.append(oracles.under(runtime, second))
            self.clock.lap(runtime.name)
        alone = second is None
        declared = {t.name: dims_text(t) for t in first.graph.outputs}
        report = replace(
            report,
            outputs=_output_rows(findings, declared, alone=alone),
            runtimes=tuple(verdicts.runtime_row(f) for f in findings),
            warnings=(
                *(() if alone else base.warnings),
                *(explain.shared(f, report.probes) for f in findings if not alone and verdicts.is_shared(f)),
            ),
        )
        report = verdicts.judged(report, findings, alone=alone)
        if aligned is not None and aligned.reordered and not self.any_order:
            return verdicts.reordered(report, aligned)
        if report.fault == "candidate":
            swapped = explain.swapped(findings[0], base)
            hint = swapped or explain.quantized(report)
            if hint:
                report = replace(report, explanation=f"{report.explanation} {hint}")
        return report

    def _looked_into(
        self, report: ValidationReport, base: Reference, first: Model, second: Model
    ) -> ValidationReport:
        """Intermediate tensors, and where the difference starts."""
        if base.edits:
            why = "the passes changed inputs or outputs, so that intermediate tensors cannot be compared"
            return replace(report, localization=Localization(False, why) if self.localize else None)
        self.tell("match", "tensors of both models")
        matching = match(Net(first), Net(second))
        self.clock.lap("matching")
        standard, sets = self.standard, base.probes.sets
        budget = (standard.budget or Budget()) if standard.level is Level.LOSSY else None
        if self.layers:
            rows = layer_rows(
                matching, [s.feeds for s in sets], budget=budget, tell=lambda d: self.tell("compare", d)
            )
            report = replace(report, layers=rows)
            self.clock.lap("layers")
        if not self.localize:
            return report
        finding, miss = verdicts.to_localize(self.findings)
        if finding is None or miss is None:
            found = Localization(False, "no output differs by more than it may")
        elif miss.probe is None:
            found = Localization(False, f"under {finding.runtime.name} {miss.verdict.reason}")
        else:
            names = [m.verdict.name.partition("[")[0] for m in finding.misses if m.probe == miss.probe]
            found = Search(
                matching,
                base.feeds(miss.probe),
                tuple(dict.fromkeys(names)),
                finding.runtime,
                budget,
                standard.level is Level.EXACT
                and finding.runtime is JUDGE
                and miss.fault == "float reordering",
                sets[miss.probe].describe(),
                tell=lambda detail: self.tell("localize", detail),
            ).run()
        self.clock.lap("localization")
        return replace(report, localization=found)

    def _scored(
        self, report: ValidationReport, services: CalibrationService, first: Model, second: Model
    ) -> ValidationReport:
        """Task metrics of both on all labelled samples."""
        score = services.whole_score(second, first)
        self.clock.lap("metric")
        rows = tuple(
            MetricRow(name, after + score.drops.get(name, 0.0), after)
            for name, after in score.metrics.items()
        )
        report = replace(report, metrics=rows)
        misses = Budget(None, None, self.max_drop).misses(score)
        if not misses:
            return report
        reason = "; ".join([*([report.reason] if report.verdict == "failed" else []), *misses])
        if report.verdict == "failed":
            return replace(report, reason=reason)
        return replace(report, verdict="failed", fault="candidate", reason=reason, explanation=explain.METRIC)


def _output_rows(
    findings: Iterable[Finding], declared: Mapping[str, tuple[str, ...] | None], *, alone: bool
) -> tuple[OutputRow, ...]:
    """Per output the worst over probes and runtimes; what the reference does as well does not count."""
    worst: dict[str, OutputVerdict] = {}
    open_: dict[str, str] = {}
    wrong: set[str] = set()
    for finding in findings:
        skipped = {(m.probe, m.verdict.name): m for m in finding.misses if not m.counts}
        rows = finding.candidate
        if isinstance(rows, NoRun):
            continue
        for i, compared in enumerate(rows):
            for verdict in compared:
                miss = skipped.get((i, verdict.name))
                if miss is not None:
                    if miss.undecided:
                        open_[verdict.name] = f"cannot be judged under {finding.runtime.name}"
                    continue
                if verdict.name in wrong and finding.runtime is not JUDGE:
                    continue  # what is wrong under the judge is told from there
                if finding.runtime is JUDGE and not verdict.ok:
                    wrong.add(verdict.name)
                if not verdict.ok:
                    verdict = replace(verdict, reason=f"under {finding.runtime.name}: {verdict.reason}")
                worst[verdict.name] = worse(worst.get(verdict.name), verdict)
    found: list[OutputRow] = []
    for row in summary.verdict_rows(list(worst.values()), declared):
        if row.verdict == "ok" and row.name in open_:
            row = replace(row, verdict="unproven", note=open_[row.name])
        found.append(row)
    return tuple(found)
