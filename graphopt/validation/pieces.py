"""Comparing a model with what other models make of the same inputs: its parts, or what it is a part of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from graphopt.calibration.data import DataSpec
from graphopt.runtime.inputs import ProbeSet
from graphopt.runtime.session import RuntimeFailure, open_session
from graphopt.runtime.values import Value
from graphopt.validation.compare import Level, OutputVerdict, compare_outputs
from graphopt.validation.indices import tap
from graphopt.validation.proof import Proof, worse
from graphopt.validation.reference import DEFAULTS, Options, Reference, Subject

Values: TypeAlias = Mapping[str, Value]
#: Inputs of the model -> the outputs that it must have.
Expected: TypeAlias = Callable[[Values], Values]


def run_once(model: Subject, feeds: Values, names: Sequence[str]) -> dict[str, Value]:
    """Values of tensors of a model's main graph, with optimizations off.

    Raises:
        RuntimeFailure: it does not run.
    """
    outputs = {v.name for v in model.skeleton().graph.output}
    computed = [n for n in dict.fromkeys(names) if n not in feeds]
    source = tap(model.session_source(), [n for n in computed if n not in outputs])
    with open_session(source, optimize="none", prepack=False, arena=False) as session:
        ports = {p.name for p in (*session.inputs, *session.overridable)}
        found = session.run({n: v for n, v in feeds.items() if n in ports}, computed)
    return found | {n: feeds[n] for n in names if n in feeds}


def prove_part(whole: Subject, part: Subject, inputs: Sequence[str], data: DataSpec | None) -> Proof:
    """Whether `part` makes of the values that `whole` has at `inputs` what `whole` makes of them.

    Args:
        whole: the model that the part was cut from.
        part: a model whose outputs are named after tensors of `whole`.
        inputs: the part's inputs, tensors of `whole` too.
        data: inputs of `whole`; synthesized by default.
    """
    reference = Reference(whole, data, replace(DEFAULTS, default_run=False))
    if reference.reason:
        return Proof("unproven", reference.reason, Level.CLOSE.value)
    graph = part.skeleton().graph
    outputs, ports = [v.name for v in graph.output], {v.name for v in graph.input}
    wanted: list[dict[str, Value]] = []
    sets: list[ProbeSet] = []
    for probe in reference.probes.sets:
        try:
            values = run_once(whole, probe.feeds, [*inputs, *outputs])
        except RuntimeFailure as e:
            return Proof("unproven", f"the tensors cannot be observed: {e.message}", Level.CLOSE.value)
        # Defaults that the probe overrides are overridden in the part as well.
        overridden = {n: v for n, v in probe.feeds.items() if n in ports}
        sets.append(ProbeSet(overridden | {n: values[n] for n in inputs}, source=probe.source))
        wanted.append({n: values[n] for n in outputs})
    if not inputs:
        return Proof("unproven", "the part has no inputs", Level.CLOSE.value)
    mine = Reference(part, None, Options(same_dims=False), sets)
    return _compare(mine, wanted)


def prove_whole(whole: Subject, expected: Expected, data: DataSpec | None) -> Proof:
    """Whether `whole` has the outputs that `expected` finds by other ways, on inputs of `whole`."""
    mine = Reference(whole, data, Options(same_dims=False))
    if mine.reason:
        return Proof("unproven", mine.reason, Level.CLOSE.value)
    try:
        wanted = [expected(probe.feeds) for probe in mine.probes.sets]
    except RuntimeFailure as e:
        return Proof("unproven", f"the parts do not run: {e.message}", Level.CLOSE.value)
    return _compare(mine, wanted)


def _compare(mine: Reference, wanted: Sequence[Values]) -> Proof:
    """The outputs of `mine` within its own noise of those that are wanted."""
    level = Level.CLOSE
    if mine.reason:
        return Proof("unproven", mine.reason, level.value)
    worst: dict[str, OutputVerdict] = {}
    probes: Any = mine.probes.sets
    for i, outputs in enumerate(wanted):
        verdicts = compare_outputs(
            outputs, mine.outputs[i], level, mine.floors.tolerances[i], mine.pointed(i), None
        )
        for verdict in verdicts:
            worst[verdict.name] = worse(worst.get(verdict.name), verdict)
    bad = [v for v in worst.values() if not v.ok]
    return Proof(
        "failed" if bad else "proven",
        f"output {bad[0].name!r}: {bad[0].reason}" if bad else "",
        level.value,
        tuple(worst.values()),
        culprit="pass" if bad else "",
        warnings=tuple(mine.warnings),
        probes=tuple(p.describe() for p in probes),
        runtimes=("CPU, optimizations off",),
    )
