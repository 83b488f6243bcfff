"""What was found, and whose fault it is, in sentences for people."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.report.validated import ValidationReport
from graphopt.runtime.session import CPU
from graphopt.validation.compare import Level, OutputVerdict, judge
from graphopt.validation.metrics import leaves
from graphopt.validation.oracles import JUDGE, Finding, Miss
from graphopt.validation.reference import Reference

INTERFACE = "The candidate takes or gives something else, so that the two cannot be compared."
REORDERED = (
    "The candidate has the same inputs and outputs at other places: callers that go by position get the "
    "wrong ones. --any-order accepts that."
)
# Operators that come with fewer bits.
_FEWER_BITS = (
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "DequantizeLinear",
    "com.microsoft::MatMulNBits",
    "com.microsoft::DynamicQuantizeLSTM",
    "com.microsoft::GatherBlockQuantized",
)
METRIC = "By the numbers the candidate is close enough, but it does its task worse than allowed."


def badness(v: OutputVerdict) -> tuple[float, float]:
    """How bad a verdict is, to find the worst."""
    metrics = v.metrics
    if metrics is None:
        return (float("inf"), 0.0)
    if not metrics.same_pattern:
        return (float("inf"), metrics.max_abs)
    loss = 1 - metrics.cosine if metrics.cosine is not None else 0.0
    return (v.used if v.used is not None else loss, metrics.max_abs)


def reason(finding: Finding, worst: Miss, misses: Sequence[Miss], probes: Sequence[str]) -> str:
    """What is off, by how much, and on which inputs."""
    runtime = finding.runtime.name
    if worst.probe is None:
        return f"under {runtime} {worst.verdict.reason}"
    text = f"output {worst.verdict.name!r} under {runtime}: {worst.verdict.reason}"
    where = sorted({m.probe for m in misses if m.probe is not None})
    if len(misses) > 1:
        text += f" (the worst of {len(misses)} comparisons that failed)"
    if len(probes) > 1:
        if len(where) == len(probes):
            text += f"; on all {len(probes)} sets of inputs"
        else:
            named = ", ".join(f"#{i + 1} ({probes[i]})" for i in where[:3])
            more = f" and {len(where) - 3} more" if len(where) > 3 else ""
            text += f"; only on inputs {named}{more}, of {len(probes)} sets"
    return text


def sentence(finding: Finding, miss: Miss, *, alone: bool) -> str:
    """Whose fault it is, in one sentence."""
    runtime = finding.runtime
    whose = "this model" if alone else "the candidate"
    if miss.fault == "candidate":
        if miss.probe is None:
            return "The candidate does not run where the reference does."
        if miss.verdict.level == Level.LOSSY.value:
            return "The candidate itself moves the numbers further than allowed, whoever runs it."
        return (
            "The candidate itself computes something else: it does so with onnxruntime's optimizations off, "
            "where nothing stands between the model and its result."
        )
    if miss.fault == "float reordering":
        return (
            f"The difference lies within the noise of this model, but beyond what was asked for"
            f"{'' if runtime is JUDGE else f' under {runtime.name}'}."
        )
    if miss.fault == "onnxruntime's optimizer":
        if miss.probe is None:
            return f"onnxruntime's optimizer breaks {whose}: with optimizations off it runs."
        if alone:
            return "onnxruntime's optimizer changes what this model computes."
        return (
            "onnxruntime's optimizer breaks the candidate: with optimizations off both compute the same, "
            "with optimizations on the reference still does and the candidate does not."
        )
    provider = runtime.provider.removesuffix("ExecutionProvider")
    if miss.probe is None:
        return f"{provider} does not run {whose}; the CPU does."
    if alone:
        return f"{provider}'s kernels compute something else than the CPU's."
    return (
        f"{provider}'s kernels break the candidate: on the CPU both compute the same, on {provider} only the "
        "reference still does."
    )


def quantized(report: ValidationReport) -> str:
    """What to ask of a candidate that computes with fewer bits than the reference; "" for others."""
    if report.numerics == Level.LOSSY.value:
        return ""
    more = [op for op in _FEWER_BITS if report.after.ops.get(op, 0) > report.before.ops.get(op, 0)]
    if not more:
        return ""
    return f"It is quantized ({more[0]}), so that it must move: hold it to a budget, with --numerics lossy."


def undecided(finding: Finding, miss: Miss, probes: Sequence[str]) -> str:
    """Why nothing can be said about the candidate under a runtime."""
    runtime = finding.runtime.name
    if miss.probe is None:
        return f"under {runtime} {miss.verdict.reason}"
    where = f" on inputs #{miss.probe + 1} ({probes[miss.probe]})" if len(probes) > 1 else ""
    return (
        f"under {runtime} the reference itself is no yardstick for output {miss.verdict.name!r}{where}: it "
        f"does not run there, or changes as well, but otherwise than the candidate ({miss.verdict.reason})"
    )


def shared(finding: Finding, probes: Sequence[str]) -> str:
    """A warning: the runtime changes both models in the same way."""
    runtime = finding.runtime
    who = (
        "onnxruntime's optimizer"
        if runtime.provider == CPU
        else f"{runtime.provider.removesuffix('ExecutionProvider')}"
    )
    misses = [m for m in finding.misses if m.shared]
    if any(m.probe is None for m in misses):
        return (
            f"neither the reference nor the candidate runs under {runtime.name}: {misses[0].verdict.reason}"
        )
    worst = max(misses, key=lambda m: badness(m.verdict))
    names = ", ".join(dict.fromkeys(repr(m.verdict.name) for m in misses))
    return (
        f"{who} changes {names} of both models in the same way, so this is not the candidate's fault: "
        f"{worst.verdict.reason} ({runtime.name})"
    )


def swapped(finding: Finding, reference: Reference) -> str:
    """Whether outputs that are off hold what other outputs of the reference do; "" if not."""
    wrong = list(dict.fromkeys(m.verdict.name for m in finding.misses if m.fault == "candidate"))
    found = {}
    for name in wrong:
        for other in reference.outputs[0] if finding.outputs else ():
            if other != name and _is(finding, reference, name, other):
                found[name] = other
                break
    if not found:
        return ""
    pairs = ", ".join(
        f"{name!r} holds what the reference gives as {other!r}" for name, other in found.items()
    )
    return f"Its outputs have changed places: {pairs}."


def _is(finding: Finding, reference: Reference, mine: str, theirs: str) -> bool:
    """The candidate's output `mine` agrees with the reference's `theirs` on all inputs."""
    for outputs, got, tolerances in zip(
        reference.outputs, finding.outputs, reference.floors.tolerances, strict=True
    ):
        expected, value = leaves("", outputs[theirs]), leaves("", got.get(mine))
        if expected.keys() != value.keys():
            return False
        for path, array in expected.items():
            tolerance = tolerances.get(f"{theirs}{path}")
            if tolerance is None or not judge("", array, value[path], Level.CLOSE, tolerance).ok:
                return False
    return True
