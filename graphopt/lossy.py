"""Runs that move the numbers: their data, their budget, and what they gain and lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from graphopt.budget import Budget, Score
from graphopt.errors import UserError
from graphopt.model import Model
from graphopt.pipeline.base import Numerics
from graphopt.pipeline.manager import Execution, flatten
from graphopt.pipeline.registry import Registry, Step
from graphopt.pipeline.targets import Target
from graphopt.pipeline.transaction import Outcome
from graphopt.report.document import AccuracyReport, FloatNode, LatencyReport, MetricRow

if TYPE_CHECKING:
    from graphopt.calibration.service import CalibrationService

#: What presets are held to where the user asks for nothing else.
DEFAULT_BUDGET = Budget(min_cosine=0.99, min_sqnr_db=15.0)
#: The pass that makes room for operators that the model's opset does not have.
RAISE = "raise-opset"
# How many nodes are named in a warning.
_SHORT = 6
# How long latency is measured, in seconds.
_LATENCY_SECONDS = 2.0

Metric: TypeAlias = "str | Callable[..., Any] | None"


def is_lossy(steps: Sequence[Step]) -> bool:
    """Whether a pass of the pipeline may move the numbers beyond rounding."""
    return any(item.numerics is Numerics.LOSSY for item in flatten(steps))


def with_room(steps: Sequence[Step], model: Model, registry: Registry) -> tuple[Step, ...]:
    """`steps`, after a pass that raises the model's opset if one of them needs a newer one."""
    least = max((item.least_opset() for item in flatten(steps)), default=0)
    if model.opset_imports.get("", least) >= least:
        return tuple(steps)
    return (*registry.resolve(f"{RAISE}{{least={least}}}"), *steps)


def budget_for(given: Budget | None, passes: Any, target: Target, registry: Registry) -> Budget | None:
    """What the result has to keep: what the user says, else what presets that move the numbers are held to.

    A pass that the user spells out with its options is obeyed and measured.
    """
    if given is not None:
        return given
    presets = registry.presets_in(passes)
    default = registry.preset(f"default-{target.name}")
    if any(is_lossy(registry.resolve(name, default=default, target=target.name)) for name in presets):
        return DEFAULT_BUDGET
    return None


def open_services(
    data: Any,
    model: Model,
    *,
    metric: Metric,
    tell: Callable[[str, str], None],
    budget: Budget | None = None,
    wanted: Sequence[str] = (),
) -> CalibrationService | None:
    """What runs the model on the user's data; None without data.

    Args:
        data: as for `graphopt.run`.
        model: what it is run on.
        metric: the user's task metric.
        tell: told what is going on.
        budget: what the result has to keep.
        wanted: figures that the metric has to return, besides those in the budget.

    Raises:
        UserError: the data or the metric cannot be used, or the budget needs a metric that there is not.
    """
    if budget is not None and budget.max_drop and metric is None:
        raise UserError(
            f"{', '.join(budget.max_drop)} may fall by so much only, but is not measured",
            fix="name the function that computes it: --metric",
        )
    if data is None:
        if metric is not None:
            raise UserError("--metric needs data to be computed on", fix="hand it in with --data")
        return None
    from graphopt.calibration.data import load_callable, open_dataset, ports_of
    from graphopt.calibration.service import CalibrationService

    skeleton = model.skeleton()
    ports, overridable = ports_of(skeleton)
    dataset = open_dataset(data, ports, overridable, model=skeleton)
    function = load_callable(metric, "--metric") if isinstance(metric, str) else metric
    names = tuple(dict.fromkeys((*(budget.max_drop if budget is not None else ()), *wanted)))
    return CalibrationService(dataset, metric=function, wanted=names, tell=tell, ports=(ports, overridable))


def load_ranges(path: str | Path | None) -> Any:
    """The user's activation ranges; None where there are none.

    Raises:
        UserError: the file is not readable as such.
    """
    if path is None:
        return None
    from graphopt.calibration.ranges import RangeBook

    return RangeBook.load(path)


def budget_words(budget: Budget | None) -> tuple[str, ...]:
    """A budget in words."""
    if budget is None:
        return ()
    words = []
    if budget.min_cosine is not None:
        words.append(f"cosine >= {budget.min_cosine:g}")
    if budget.min_sqnr_db is not None:
        words.append(f"SQNR >= {budget.min_sqnr_db:g} dB")
    words += [f"{name} falls by at most {drop:g}" for name, drop in budget.max_drop.items()]
    if budget.max_latency_ratio is not None:
        words.append(f"latency ratio <= {budget.max_latency_ratio:g}")
    return tuple(words)


@dataclass(frozen=True)
class Measured:
    """What is measured at the end of a run that moves the numbers: fields of its report.

    Attributes:
        verdict, why: a verdict that takes the place of the proof's; "" for none.
        accuracy, latency, warnings: as in `RunReport`.
    """

    verdict: str = ""
    why: str = ""
    accuracy: AccuracyReport | None = None
    latency: LatencyReport | None = None
    warnings: tuple[str, ...] = ()


def measure(
    original: Model,
    outcome: Outcome,
    budget: Budget | None,
    target: Target,
    feeds: Sequence[Mapping[str, Any]],
    services: CalibrationService | None,
) -> Measured:
    """Accuracy and latency of a finished run whose passes move the numbers.

    Args:
        original: the model that came in.
        outcome: what became of it.
        budget: what it has to keep.
        target: who runs it.
        feeds: inputs to time it on.
        services: what measured it; None where that was done on synthesized inputs.
    """
    judged = outcome.judgement
    score = judged.score if judged is not None else None
    if judged is None or score is None:
        return Measured(warnings=_idle(outcome.run))
    misses, warnings = list(judged.misses), []
    timed = _latency(original, outcome.run.model, target, feeds)
    if isinstance(timed, str):
        warnings.append(f"latency was not measured: {timed}")
    else:
        if timed.verdict != "faster":
            warnings.append(_not_faster(timed))
        if budget is not None and budget.max_latency_ratio is not None:
            misses += [m for m in budget.misses(score, timed.ratio) if m not in misses]
    where = services.held_back_words() if services is not None else "synthesized inputs"
    accuracy = _accuracy(score, budget, misses, where)
    over = ("over budget", "; ".join(misses)) if misses else ("", "")
    return Measured(
        *over,
        accuracy,
        None if isinstance(timed, str) else timed,
        tuple(warnings),
    )


def _accuracy(score: Score, budget: Budget | None, misses: Sequence[str], where: str) -> AccuracyReport:
    rows = tuple(
        MetricRow(name, after + score.drops.get(name, 0.0), after) for name, after in score.metrics.items()
    )
    return AccuracyReport(where, score.sqnr_db, score.cosine, rows, budget_words(budget), tuple(misses))


def _latency(
    original: Model, result: Model, target: Target, feeds: Sequence[Mapping[str, Any]]
) -> LatencyReport | str:
    """What `result` gains over `original` on the target's provider, or why that cannot be said."""
    from graphopt.runtime.latency import compare_latency
    from graphopt.runtime.session import RuntimeFailure, available_providers

    if not feeds:
        return "there is nothing to run it on"
    provider = target.providers[0]
    if provider not in available_providers():
        return f"{provider} is not installed here"
    fed = [result.interface.feeds(given) for given in feeds[:1]]
    try:
        found = compare_latency(
            original.session_source(),
            result.session_source(),
            [result.interface.original_feeds(given) for given in fed],
            b_feeds=fed,
            provider=provider,
            seconds=_LATENCY_SECONDS,
        )
    except RuntimeFailure as e:
        return f"it does not run on {provider}: {e.message}"
    return LatencyReport(
        provider,
        found.ratio,
        found.low,
        found.high,
        found.a_seconds * 1e3,
        found.b_seconds * 1e3,
        _fallen_back(result, target),
        "faster" if found.is_faster else "slower" if found.is_slower else "no difference",
        tuple(1e3 * t for t in found.a_quantiles),
        tuple(1e3 * t for t in found.b_quantiles),
    )


def _fallen_back(result: Model, target: Target) -> tuple[str, ...]:
    """Nodes between Q/DQ that the runtime executes in float all the same, with the reasons."""
    from graphopt.runtime.lint import lint

    found = lint(result, target.name, provider=target.providers[0])
    return tuple(f"{row.node} ({row.op}): {row.reason}" for row in found.rows if row.falls_back)


def _not_faster(timed: LatencyReport) -> str:
    words = "slower than" if timed.verdict == "slower" else "no faster than"
    text = f"the result is {words} the original here (x{timed.ratio:.2f} of its time)"
    if timed.fell_back:
        shown = "; ".join(timed.fell_back[:_SHORT])
        more = f"; and {len(timed.fell_back) - _SHORT} more" if len(timed.fell_back) > _SHORT else ""
        text += f". In spite of Q/DQ these run in float: {shown}{more}"
    return text


def _idle(run: Execution) -> tuple[str, ...]:
    """A warning if the passes that were to move the numbers did not."""
    lossy = [item.name for item in run.order if item.numerics is Numerics.LOSSY]
    if any(change.key.pass_name in lossy for change in run.journal.changes):
        return ()
    names = ", ".join(dict.fromkeys(lossy))
    return (f"the numbers are as they were: {names} found nothing to change",)


def left_float(run: Execution) -> tuple[FloatNode, ...]:
    """Nodes that passes declined to quantize, or put back into float, with the reasons."""
    found: dict[tuple[str, str], FloatNode] = {}
    for refusal in run.journal.refusals:
        if refusal.pass_name in STAY_FLOAT and refusal.op in _WORTH_INTEGERS:
            found[refusal.node, refusal.op] = FloatNode(refusal.node, refusal.op, refusal.reason)
    for change in run.journal.changes:
        if change.key.pass_name == "restore-float":
            found[change.key.anchor, change.op] = FloatNode(change.key.anchor, change.op, change.why)
    return tuple(found.values())


# The operators that are quantized for their own sake; others only between these.
_WORTH_INTEGERS = frozenset({"Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
#: Passes whose refusals mean that a node keeps its float kernel.
STAY_FLOAT = frozenset({"insert-qdq", "quantize-dynamic", "quantize-weights"})
