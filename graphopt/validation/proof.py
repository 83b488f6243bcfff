"""Proving that a candidate computes what the original does, and saying whose fault it is if not.

Three oracles. The judge is onnxruntime with its optimizations disabled, because its optimizer is itself
wrong now and then. What people will run is onnxruntime's default, so the candidate must also hold there,
and on every further provider that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import onnx

from graphopt.budget import Budget
from graphopt.calibration.data import DataSpec
from graphopt.interface import edits_of
from graphopt.runtime.session import (
    CPU,
    Optimize,
    RuntimeFailure,
    Source,
    open_session,
)
from graphopt.runtime.values import Value
from graphopt.validation.compare import (
    Level,
    OutputVerdict,
    Tolerance,
    compare_outputs,
)
from graphopt.validation.interface import Interface, interface_changes
from graphopt.validation.reference import (
    DEFAULTS,
    Options,
    ProtoSubject,
    Reference,
    Subject,
    feeds_as_arrays,
    prepacks,
)

__all__ = [
    "Options",
    "Proof",
    "ProtoSubject",
    "Prover",
    "Reference",
    "Subject",
    "feeds_as_arrays",
    "prove",
    "validate",
    "worse",
]

Verdict: TypeAlias = Literal["proven", "unproven", "failed"]
Culprit: TypeAlias = Literal["", "pass", "onnxruntime's optimizer", "provider"]


@dataclass(frozen=True)
class Proof:
    """What was found out about a candidate.

    Attributes:
        verdict: "proven"; "failed"; or "unproven", where no runtime here can tell.
        reason: why it is not proven; "" when it is.
        numerics: the level that was asked for.
        outputs: per output leaf the worst verdict over all probes and runtimes.
        culprit: for "failed": "pass" (the candidate is wrong under the judge), "onnxruntime's optimizer"
            (right under the judge, wrong with optimizations), or "provider" (right on the CPU).
        warnings: what people should know, but what is not the candidate's fault.
        probes: descriptions of the inputs.
        runtimes: what it ran under.
        failing_probe: index of the probe set that shows the failure most clearly; None when none does.
    """

    verdict: Verdict
    reason: str = ""
    numerics: str = ""
    outputs: tuple[OutputVerdict, ...] = ()
    culprit: Culprit = ""
    warnings: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    failing_probe: int | None = None

    @property
    def ok(self) -> bool:
        """Nothing wrong was found: proven or unproven."""
        return self.verdict != "failed"


@dataclass(frozen=True)
class _Runtime:
    """One way to run the candidate."""

    name: str
    optimize: Optimize
    prepack: bool
    provider: str


@dataclass(frozen=True)
class _NoRun:
    """Why a candidate does not run, and onnxruntime's kind of failure."""

    reason: str
    kind: str


@dataclass(frozen=True)
class _Candidate:
    """What is compared, and what is asked of it."""

    source: Source
    prepack: bool
    level: Level
    budget: Budget | None


_JUDGE = _Runtime("CPU, optimizations off", "none", False, CPU)
_DEFAULT = _Runtime("CPU, optimizations on", "all", True, CPU)


class Prover:
    """Checks candidates against one original. Calls are independent; the original's side is shared.

    Args:
        reference: the original, or what was already computed about it.
        data: the user's inputs; None to synthesize them.
        options: how to prove (when `reference` is a model).
    """

    def __init__(
        self,
        reference: Reference | Subject | onnx.ModelProto,
        data: DataSpec | None = None,
        options: Options = DEFAULTS,
    ) -> None:
        self.reference = (
            reference if isinstance(reference, Reference) else Reference(reference, data, options)
        )

    def check(
        self,
        candidate: Subject | onnx.ModelProto,
        numerics: object = Level.CLOSE,
        budget: Budget | None = None,
        *,
        thorough: bool = True,
    ) -> Proof:
        """Compare a candidate with the original.

        Args:
            candidate: the rewritten model.
            numerics: EXACT, CLOSE or LOSSY: a Level, its name, or an enum with these names.
            budget: what a LOSSY candidate must keep; None only measures.
            thorough: also under onnxruntime's defaults and on further providers (not for bisection).

        Raises:
            ProviderError: a provider could not start.
        """
        level, ref = Level.of(numerics), self.reference
        subject: Subject = ProtoSubject(candidate) if isinstance(candidate, onnx.ModelProto) else candidate
        edits = edits_of(subject).since(ref.all_edits)
        if edits:
            seen = ref.through(edits)
            if seen.reason and not ref.reason:
                why = f"the original does not run on the inputs of the result: {seen.reason}"
                return Proof("failed", why, level.value, culprit="pass")
            return Prover(seen).check(subject, numerics, budget, thorough=thorough)
        base = Proof(
            "proven",
            numerics=level.value,
            warnings=tuple(ref.warnings),
            probes=tuple(s.describe() for s in ref.probes.sets),
        )
        source = subject.session_source()
        changes = interface_changes(ref.interface, Interface.of(source), dims=ref.options.same_dims)
        if changes:
            return replace(base, verdict="failed", culprit="pass", reason="; ".join(changes))
        if ref.reason:
            return replace(base, verdict="unproven", reason=ref.reason)
        run = _Candidate(source, prepacks(subject), level, budget)
        proof = self._judge(run, base)
        if proof.verdict != "proven" or not thorough:
            return proof
        # What the judge proved EXACT may still be computed in another order once it is optimized.
        relaxed = Level.CLOSE if level is Level.EXACT else level
        if ref.options.default_run and not ref.floors.default_fails:
            proof = self._default(replace(run, level=relaxed), proof)
        for provider in ref.providers:
            if proof.verdict == "failed":
                break
            proof = self._elsewhere(replace(run, level=relaxed), provider, proof)
        return proof

    def _judge(self, candidate: _Candidate, proof: Proof) -> Proof:
        ref = self.reference
        result = self._compare(candidate, _JUDGE, ref.outputs, ref.floors.tolerances)
        return _add(proof, _JUDGE.name, result, "pass")

    def _default(self, candidate: _Candidate, proof: Proof) -> Proof:
        ref = self.reference
        result = self._compare(candidate, _DEFAULT, ref.outputs, ref.floors.tolerances)
        return _add(proof, _DEFAULT.name, result, "onnxruntime's optimizer", ref.floors.own)

    def _elsewhere(self, candidate: _Candidate, provider: str, proof: Proof) -> Proof:
        there = self.reference.on(provider)
        if isinstance(there, str):
            warning = f"the original does not run on {provider}: {there}"
            return replace(proof, warnings=(*proof.warnings, warning))
        outputs, floors = there
        runtime = _Runtime(f"{provider}, optimizations on", "all", True, provider)
        result = self._compare(candidate, runtime, outputs, floors.tolerances)
        merged = _add(proof, runtime.name, result, "provider")
        return replace(merged, warnings=tuple(dict.fromkeys((*merged.warnings, *self.reference.warnings))))

    def _compare(
        self,
        candidate: _Candidate,
        runtime: _Runtime,
        outputs: Sequence[Mapping[str, Value]],
        tolerances: Sequence[Mapping[str, Tolerance]],
    ) -> list[list[OutputVerdict]] | _NoRun:
        """Verdicts per probe, or why the candidate does not run."""
        ref, level, budget = self.reference, candidate.level, candidate.budget
        verdicts: list[list[OutputVerdict]] = []
        try:
            with open_session(
                candidate.source,
                optimize=runtime.optimize,
                prepack=runtime.prepack and candidate.prepack,
                provider=runtime.provider,
                arena=False,
                settings=ref.options.settings,
            ) as session:
                for i, probe in enumerate(ref.probes.sets):
                    got = session.run(probe.feeds)
                    verdicts.append(
                        compare_outputs(outputs[i], got, level, tolerances[i], ref.pointed(i), budget)
                    )
        except RuntimeFailure as e:
            verb = "run" if e.kind == "run" else "load"
            return _NoRun(f"the result does not {verb} under {runtime.name}: {e.message}", e.kind)
        return verdicts


def _add(
    proof: Proof,
    runtime: str,
    result: list[list[OutputVerdict]] | _NoRun,
    culprit: Culprit,
    excused: Mapping[str, str] | None = None,
) -> Proof:
    """`proof` with the verdicts under one more runtime."""
    proof = replace(proof, runtimes=(*proof.runtimes, runtime))
    if isinstance(result, _NoRun):
        # A lossy pass may well choose a number format for which only its target has kernels.
        lacking = result.kind == "no-kernel" and proof.numerics == Level.LOSSY.value
        if lacking:
            return replace(proof, verdict="unproven", reason=result.reason)
        return replace(proof, verdict="failed", culprit=culprit, reason=result.reason)
    worst = {v.name: v for v in proof.outputs}
    failed: list[tuple[tuple[float, float], int, OutputVerdict]] = []
    for i, verdicts in enumerate(result):
        for verdict in verdicts:
            if not verdict.ok and verdict.name in (excused or {}):
                continue  # the original does the same; there is a warning about it
            if not verdict.ok:
                failed.append((_badness(verdict), i, verdict))
            worst[verdict.name] = worse(worst.get(verdict.name), verdict)
    proof = replace(proof, outputs=tuple(worst.values()))
    if not failed:
        return proof
    _, probe, verdict = max(failed, key=lambda item: item[0])  # the first of equals
    reason = f"output {verdict.name!r} under {runtime}: {verdict.reason}"
    if len(failed) > 1:
        reason += f" (the worst of {len(failed)} comparisons that failed)"
    return replace(proof, verdict="failed", culprit=culprit, reason=reason, failing_probe=probe)


def worse(a: OutputVerdict | None, b: OutputVerdict) -> OutputVerdict:
    """The one of two verdicts on an output that people should see."""
    if a is None:
        return b
    if a.ok != b.ok:
        return b if a.ok else a
    return b if _badness(b) > _badness(a) else a


def _badness(v: OutputVerdict) -> tuple[float, float]:
    metrics = v.metrics
    if metrics is None:
        return (0.0, 0.0)
    loss = 1 - metrics.cosine if metrics.cosine is not None else 0.0
    return (v.used if v.used is not None else loss, metrics.max_abs)


def prove(
    reference: Subject | onnx.ModelProto,
    candidate: Subject | onnx.ModelProto,
    numerics: object = Level.CLOSE,
    *,
    data: DataSpec | None = None,
    budget: Budget | None = None,
    options: Options = DEFAULTS,
) -> Proof:
    """Prove one candidate; for several, keep a `Prover`."""
    return Prover(reference, data, options).check(candidate, numerics, budget)


def validate(
    a: Subject | onnx.ModelProto,
    b: Subject | onnx.ModelProto,
    *,
    data: DataSpec | None = None,
    numerics: object = Level.CLOSE,
    budget: Budget | None = None,
    providers: Iterable[str] = (CPU,),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> Proof:
    """Compare any two models with the same inputs and outputs (dims may be declared differently)."""
    options = Options(tuple(providers), input_shapes=input_shapes or {}, same_dims=False)
    return prove(a, b, numerics, data=data, budget=budget, options=options)
