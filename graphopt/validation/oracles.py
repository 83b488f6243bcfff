"""Whose fault a difference is: reference and candidate under every runtime, next to the judge.

The judge is the reference on the CPU with onnxruntime's optimizations off. A candidate that differs there is
wrong by itself. One that agrees there and differs elsewhere is changed by the runtime; whether it alone is,
or the reference as well, tells a fault that the candidate triggers from one that is there anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from graphopt.report.validated import Fault
from graphopt.runtime.providers import EXACT_MATH, ProviderSettings
from graphopt.runtime.session import CPU, Optimize, RuntimeFailure, Source, open_session
from graphopt.runtime.values import Value
from graphopt.validation.compare import Level, OutputVerdict, Tolerance
from graphopt.validation.reference import Reference, Subject, prepacks
from graphopt.validation.standard import Standard

Values = Mapping[str, Value]


@dataclass(frozen=True)
class Runtime:
    """One way to run a model.

    Attributes:
        name: in words.
        optimize: onnxruntime's level.
        prepack: kernels may copy weights into a layout of their own.
        provider: the execution provider.
        settings: what it is opened with.
    """

    name: str
    optimize: Optimize
    prepack: bool
    provider: str
    settings: ProviderSettings = EXACT_MATH

    @property
    def fault(self) -> Fault:
        """Who is to blame for what only goes wrong here."""
        return "onnxruntime's optimizer" if self.provider == CPU else "provider kernel"


JUDGE: Final = Runtime("CPU, optimizations off", "none", False, CPU)
DEFAULT: Final = Runtime("CPU, optimizations on", "all", True, CPU)


def on_provider(provider: str, settings: ProviderSettings = EXACT_MATH) -> Runtime:
    """A further provider, optimizations on."""
    name = f"{provider.removesuffix('ExecutionProvider')}, optimizations on"
    return Runtime(name, "all", True, provider, settings)


@dataclass(frozen=True)
class NoRun:
    """Why a model does not run, and onnxruntime's kind of failure."""

    message: str
    kind: str = "run"


@dataclass(frozen=True)
class Miss:
    """An output that is not what it should be, on one set of inputs, under one runtime.

    Attributes:
        verdict: how far it is off.
        probe: index of the inputs; None where it does not run at all.
        fault: whose fault that is.
        shared: the reference goes wrong there in the same way.
        undecided: the reference is no yardstick there: it goes wrong too, in another way.
    """

    verdict: OutputVerdict
    probe: int | None
    fault: Fault
    shared: bool = False
    undecided: bool = False

    @property
    def counts(self) -> bool:
        """It is held against the candidate."""
        return not self.shared and not self.undecided


@dataclass(frozen=True)
class Finding:
    """What was found under one runtime.

    Attributes:
        runtime: the runtime.
        reference: its verdicts per set of inputs, next to the judge; or why it does not run there.
        candidate: the same of the candidate.
        misses: outputs of the candidate that are off.
        outputs: what the candidate computes.
    """

    runtime: Runtime
    reference: list[list[OutputVerdict]] | NoRun
    candidate: list[list[OutputVerdict]] | NoRun
    misses: tuple[Miss, ...] = ()
    outputs: list[dict[str, Value]] = field(default_factory=list)

    @property
    def reference_ok(self) -> bool:
        """The reference computes here what it does under the judge."""
        return _all_ok(self.reference)

    @property
    def candidate_ok(self) -> bool:
        """The candidate computes here what the reference does under the judge."""
        return _all_ok(self.candidate)

    @property
    def fault(self) -> Fault:
        """Whose fault it is that the candidate is off here; "" if it is not."""
        order: tuple[Fault, ...] = (
            "candidate",
            "onnxruntime's optimizer",
            "provider kernel",
            "float reordering",
        )
        found = {m.fault for m in self.misses}
        return next((f for f in order if f in found), "")


@dataclass
class Oracles:
    """Compares candidates with one reference under several runtimes.

    Args:
        reference: what the original computes; it has a judge (`reference.reason` is "").
        standard: what the outputs are held to.
    """

    reference: Reference
    standard: Standard
    _judged: dict[tuple[int, str], OutputVerdict] = field(default_factory=dict)
    _broken: bool = False

    def runtimes(self) -> Iterator[Runtime]:
        """The judge, onnxruntime's defaults, and every further provider that was asked for."""
        yield JUDGE
        if self.reference.options.default_run:
            yield DEFAULT
        for provider in self.reference.providers:
            yield on_provider(provider, self.reference.options.settings)

    def under(self, runtime: Runtime, candidate: Subject | None) -> Finding:
        """Compare under one runtime; the judge has to come first.

        Args:
            runtime: the runtime.
            candidate: None to look at the reference itself.
        """
        ref = self.reference
        standard = self.standard if runtime is JUDGE else self.standard.relaxed()
        theirs: list[dict[str, Value]] | NoRun
        tolerances = ref.floors.tolerances
        if runtime is JUDGE:
            theirs = ref.outputs
        elif runtime.provider == CPU:
            found = ref.optimized()
            theirs = NoRun(found) if isinstance(found, str) else found
        else:
            there = ref.on(runtime.provider)
            if isinstance(there, str):
                theirs = NoRun(there)
            else:
                theirs, floors = there
                tolerances = floors.tolerances
        # The reference is held to its own noise, whatever is asked of the candidate.
        own = standard if standard.level is not Level.LOSSY else replace(standard, level=Level.CLOSE)
        row = theirs if isinstance(theirs, NoRun) else self._verdicts(own, theirs, tolerances)
        if candidate is None:
            return Finding(runtime, row, row, self._misses_alone(runtime, row, theirs, tolerances))
        mine = run_all(candidate.session_source(), runtime, ref, prepack=prepacks(candidate))
        if isinstance(mine, NoRun):
            miss = self._no_run(runtime, row, mine)
            return Finding(runtime, row, mine, miss)
        verdicts = self._verdicts(standard, mine, tolerances)
        if runtime is JUDGE:
            self._judged = {(i, v.name): v for i, vs in enumerate(verdicts) for v in vs}
        misses = self._misses(runtime, standard, verdicts, row, theirs, mine, tolerances)
        return Finding(runtime, row, verdicts, tuple(misses), mine)

    def _verdicts(
        self,
        standard: Standard,
        outputs: Sequence[Values],
        tolerances: Sequence[Mapping[str, Tolerance]],
        expected: Sequence[Values] | None = None,
    ) -> list[list[OutputVerdict]]:
        ref = self.reference
        yardstick = ref.outputs if expected is None else expected
        return [
            standard.compare(yardstick[i], got, tolerances[i], ref.pointed(i))
            for i, got in enumerate(outputs)
        ]

    def _misses(
        self,
        runtime: Runtime,
        standard: Standard,
        verdicts: list[list[OutputVerdict]],
        reference: list[list[OutputVerdict]] | NoRun,
        theirs: Sequence[Values] | NoRun,
        mine: Sequence[Values],
        tolerances: Sequence[Mapping[str, Tolerance]],
    ) -> Iterator[Miss]:
        if all(v.ok for vs in verdicts for v in vs):
            return
        noise = {
            (i, v.name): v.ok for i, vs in enumerate(self._verdicts(Standard(), mine, tolerances)) for v in vs
        }
        there: dict[tuple[int, str], bool] = {}
        alike: dict[tuple[int, str], bool] = {}
        if not isinstance(reference, NoRun) and not isinstance(theirs, NoRun):
            there = {(i, v.name): v.ok for i, vs in enumerate(reference) for v in vs}
            if not all(there.values()):
                same = self._verdicts(standard, mine, tolerances, theirs)
                alike = {(i, v.name): v.ok for i, vs in enumerate(same) for v in vs}
        strict = standard.level is not Level.CLOSE or standard.bound is not None or standard.bounds
        for i, vs in enumerate(verdicts):
            for verdict in vs:
                key = (i, verdict.name)
                if verdict.ok:
                    continue
                before = self._judged.get(key)
                if strict and standard.level is not Level.LOSSY and noise.get(key, False):
                    shared = alike.get(key, False) and not there.get(key, True)
                    yield Miss(verdict, i, "float reordering", shared=shared)
                elif runtime is JUDGE or (before is not None and not before.ok):
                    yield Miss(verdict, i, "candidate")
                elif isinstance(reference, NoRun):
                    yield Miss(verdict, i, runtime.fault, undecided=True)
                elif there.get(key, True):
                    yield Miss(verdict, i, runtime.fault)
                elif alike.get(key, False):
                    yield Miss(verdict, i, runtime.fault, shared=True)
                else:
                    bound = verdict.level not in (Level.CLOSE.value, Level.EXACT.value)
                    yield Miss(verdict, i, runtime.fault, undecided=not bound)

    def _no_run(
        self, runtime: Runtime, reference: list[list[OutputVerdict]] | NoRun, why: NoRun
    ) -> tuple[Miss, ...]:
        verdict = OutputVerdict("", False, self.standard.name, why.message)
        if runtime is JUDGE:
            self._broken = True
            # A lossy candidate may use a number format for which only its target has kernels.
            lacking = why.kind == "no-kernel" and self.standard.level is Level.LOSSY
            return (Miss(verdict, None, "candidate", undecided=lacking),)
        if isinstance(reference, NoRun):
            return (Miss(verdict, None, runtime.fault, shared=True),)
        lacking = why.kind == "no-kernel" and self.standard.level is Level.LOSSY
        fault = "candidate" if self._broken else runtime.fault
        return (Miss(verdict, None, fault, undecided=lacking),)

    def _misses_alone(
        self,
        runtime: Runtime,
        reference: list[list[OutputVerdict]] | NoRun,
        outputs: Sequence[Values] | NoRun,
        tolerances: Sequence[Mapping[str, Tolerance]],
    ) -> tuple[Miss, ...]:
        """Where the reference itself is what is looked at: what it changes by is the runtime's doing."""
        if isinstance(reference, NoRun) or isinstance(outputs, NoRun):
            why = reference.message if isinstance(reference, NoRun) else ""
            return (Miss(OutputVerdict("", False, self.standard.name, why), None, runtime.fault),)
        if _all_ok(reference):
            return ()
        noise = self._verdicts(Standard(), outputs, tolerances)
        return tuple(
            Miss(v, i, "float reordering" if n.ok else runtime.fault)
            for i, (vs, ns) in enumerate(zip(reference, noise, strict=True))
            for v, n in zip(vs, ns, strict=True)
            if not v.ok
        )


def run_all(
    source: Source, runtime: Runtime, reference: Reference, *, prepack: bool
) -> list[dict[str, Value]] | NoRun:
    """A model's outputs on all inputs of `reference`, or why it does not run."""
    try:
        with open_session(
            source,
            optimize=runtime.optimize,
            prepack=runtime.prepack and prepack,
            provider=runtime.provider,
            arena=False,
            settings=runtime.settings,
        ) as session:
            return [session.run(probe.feeds) for probe in reference.probes.sets]
    except RuntimeFailure as e:
        verb = "run" if e.kind == "run" else "load"
        return NoRun(f"it does not {verb}: {e.message}", e.kind)


def _all_ok(verdicts: list[list[OutputVerdict]] | NoRun) -> bool:
    return not isinstance(verdicts, NoRun) and all(v.ok for vs in verdicts for v in vs)
