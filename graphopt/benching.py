"""Timing models against each other, and filling the report of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from graphopt import summary
from graphopt.calibration.data import probe_sets
from graphopt.errors import UserError
from graphopt.model import Model
from graphopt.report.timed import BenchReport, OpTime, PairedRatio, Timing
from graphopt.runtime.footprint import NotMeasurable, footprint
from graphopt.runtime.inputs import ProbeSet, Synthesizer
from graphopt.runtime.machine import load, machine, processors
from graphopt.runtime.measure import (
    Contestant,
    ContestantFailure,
    Instance,
    Measurement,
    Plan,
    Ratio,
    measure,
)
from graphopt.runtime.probe import complete, find_probes
from graphopt.runtime.profile import Profile
from graphopt.runtime.profile import profile as profile_ops
from graphopt.runtime.providers import AS_DEPLOYED, NVIDIA, ProviderSettings, resolve_provider
from graphopt.runtime.session import Optimize, RuntimeFailure, open_session
from graphopt.runtime.values import Feeds

#: So many samples of the user's data are run in turn.
SAMPLES: Final = 4
_LABELS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# So many sessions without a steady state say that a model has none, or that the machine is too busy.
_UNSTEADY: Final = 1 / 3
_DISTURBED: Final = 0.1
_PROFILE_SECONDS: Final = 0.5
_PROFILER_SLOWS: Final = 1.5


def bench(
    models: Sequence[Any],
    *,
    data: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    provider: str = "cpu",
    settings: ProviderSettings = AS_DEPLOYED,
    optimize: Optimize = "all",
    threads: int = 1,
    affinity: Sequence[int] = (),
    seconds: float = 10.0,
    runs: int | None = None,
    sessions: int | None = None,
    confidence: float = 0.99,
    min_effect: float = 0.01,
    profile: bool = True,
    memory: bool = True,
    seed: int = 0,
    trust_external_paths: bool = False,
    progress: Callable[[str, str], None] | None = None,
) -> BenchReport:
    """Time models, and compare each with the first.

    Args:
        models: what `graphopt.load` takes, one or more.
        data: real inputs; the first samples are run in turn. Synthesized by default.
        input_shapes: dims by input name, for synthesized inputs.
        provider: execution provider, or a short name ("cpu", "cuda").
        settings: the provider's options.
        optimize: onnxruntime's optimization level: "none", "basic", "extended", "all".
        threads: threads within an operator.
        affinity: processors that the runs are bound to.
        seconds: how long to run the models, all together; opening sessions comes on top. It may end earlier
            once the answer is clear.
        runs: instead, at least so many timed runs of each.
        sessions: how often each model's session is opened anew; by default up to 20 times.
        confidence: of the intervals.
        min_effect: a relative difference below this does not count as one.
        profile: also the time by operator.
        memory: also the peak memory, each model in a process of its own.
        seed: of the random order.
        trust_external_paths: follow external data out of the models' folders.
        progress: called with a stage and a detail.

    Raises:
        ModelError: a model cannot be read.
        ProviderError: the provider is not there.
        UserError: the models take different inputs, one does not run on them, or an option makes no sense.
    """
    tell = progress or (lambda stage, detail: None)
    plan = Plan(
        provider=resolve_provider(provider),
        settings=settings,
        optimize=optimize,
        threads=threads,
        affinity=tuple(affinity),
        seconds=seconds,
        runs=runs,
        rounds=sessions,
        confidence=confidence,
        min_effect=min_effect,
        seed=seed,
    )
    _check(plan, len(models))
    tell("load", "the models")
    loaded = [Model.load(m, trust_external_paths=trust_external_paths) for m in models]
    tell("inputs", "looking for inputs")
    busy = load()
    sets = _inputs(loaded[0], data, input_shapes)
    contestants = [Contestant(m.session_source(), _feeds_for(m, loaded[0], sets)) for m in loaded]
    try:
        found = measure(contestants, plan, tell)
        profiles: Sequence[Profile | None] = [None] * len(loaded)
        if profile:
            tell("profile", "all models in turns")
            profiles = profile_ops(contestants, plan, _PROFILE_SECONDS)
        peaks: list[int | None] = [None] * len(loaded)
        if memory:
            tell("memory", "each model in a process of its own")
            peaks = [_peak(m, c.feeds, plan) for m, c in zip(loaded, contestants, strict=True)]
        timings = [_timing(i, model, found, profiles[i], peaks[i]) for i, model in enumerate(loaded)]
    except ContestantFailure as e:
        raise UserError(
            f"it does not run under {plan.provider}: {e.message}",
            where=str(loaded[e.contestant].path or f"model {_LABELS[e.contestant]}"),
            fix="all models are run on the same inputs: give some that all of them take, with --data or "
            "--input-shape",
        ) from e
    return BenchReport(
        provider=plan.provider,
        optimizations=optimize,
        threads=threads,
        affinity=plan.affinity,
        settings=_settings(plan, found),
        inputs=tuple(_describe(s) for s in sets),
        timings=tuple(timings),
        ratios=tuple(_pair(i, r) for i, r in enumerate(found.ratios, start=1)),
        notes=tuple(_notes(found, timings, plan, busy)),
        machine=machine(plan.provider, settings),
        versions=summary.versions(),
    )


def _check(plan: Plan, models: int) -> None:
    if not 0 < models <= len(_LABELS):
        raise UserError(f"between 1 and {len(_LABELS)} models can be timed, not {models}")
    for what, value, least in (
        ("seconds", plan.seconds, 0.0),
        ("runs", plan.runs, 0),
        ("sessions", plan.rounds, 0),
        ("threads", plan.threads, 0),
    ):
        if value is not None and not value > least:
            raise UserError(f"{what} cannot be {value:g}", fix="it is above 0")
    if not 0 < plan.confidence < 1:
        raise UserError(f"the confidence cannot be {plan.confidence:g}", fix="as in 0.99")
    if not 0 <= plan.min_effect < 1:
        raise UserError(f"the least effect cannot be {plan.min_effect:g}", fix="as in 0.01 for 1%")
    there = processors()
    absent = [p for p in plan.affinity if p not in there]
    if absent:
        raise UserError(
            f"there is no processor {absent[0]} that this process may use",
            fix=f"there are: {', '.join(map(str, there))}",
        )


def _inputs(model: Model, data: Any, shapes: Mapping[str, Sequence[int]] | None) -> list[ProbeSet]:
    """What the models are run on."""
    maker = Synthesizer(model.skeleton(), shapes)
    if data is not None:
        given = list(itertools.islice(probe_sets(data, maker.structure, singly=True), SAMPLES))
        if not given:
            raise UserError("the data holds no samples")
        return [complete(maker, g) for g in given]
    try:
        with open_session(model.session_source(), optimize="basic", prepack=False, arena=False) as session:
            found = find_probes(session, maker, count=1)
    except RuntimeFailure as e:
        raise UserError(
            f"the first model does not load: {e.message}", where=str(model.path or "") or None
        ) from e
    if not found.sets:
        raise UserError(found.reason, fix="give it inputs: --data")
    return list(found.sets)


def _feeds_for(model: Model, first: Model, sets: Sequence[ProbeSet]) -> list[Feeds]:
    """The inputs by the names that `model` has for them: its own, else in order."""
    names = [t.name for t in model.graph.inputs]
    theirs = [t.name for t in first.graph.inputs]
    if set(names) == set(theirs):
        return [s.feeds for s in sets]
    types = [(t.dtype, t.shape and len(t.shape)) for t in model.graph.inputs]
    their_types = [(t.dtype, t.shape and len(t.shape)) for t in first.graph.inputs]
    if types != their_types:
        raise UserError(
            f"it takes other inputs ({', '.join(names)}) than the first model ({', '.join(theirs)})",
            where=str(model.path or "") or None,
            fix="only models that take the same inputs can be compared",
        )
    renamed = dict(zip(theirs, names, strict=True))
    return [{renamed[k]: v for k, v in s.feeds.items() if k in renamed} for s in sets]


def _describe(given: ProbeSet) -> str:
    shapes = ", ".join(
        f"{name} {'x'.join(map(str, np.shape(v))) or 'scalar'}" if isinstance(v, np.ndarray) else name
        for name, v in given.feeds.items()
    )
    return f"{given.source}: {shapes}"


def _peak(model: Model, feeds: Sequence[Feeds], plan: Plan) -> int | None:
    """Memory at the peak; None for a model that is in no file, or where the system does not tell."""
    if model.path is None:
        return None
    try:
        return footprint(
            model.path,
            feeds,
            provider=plan.provider,
            threads=plan.threads,
            optimize=plan.optimize,
            settings=plan.settings,
        ).peak
    except (NotMeasurable, RuntimeFailure):
        return None


def _timing(index: int, model: Model, found: Measurement, by_op: Profile | None, peak: int | None) -> Timing:
    instances = found.instances[index]
    times = found.times(index) * 1e3
    quantiles = np.quantile(times, np.linspace(0, 1, 101))
    unsteady, note = _unsteady(instances)
    ops: tuple[OpTime, ...] = ()
    if by_op is not None:
        ops = tuple(OpTime(o.op, o.provider, o.nodes, o.seconds * 1e3, o.share) for o in by_op.ops)
        slower = by_op.seconds * 1e3 / float(quantiles[50])
        if slower > _PROFILER_SLOWS:
            note = "; ".join(filter(None, [note, f"the profiler makes a run {slower:.1f} times as long"]))
    return Timing(
        label=_LABELS[index],
        file=summary.file_info(model.path, model.data_files),
        runs=len(times),
        warm_up=sum(i.warm_up for i in instances),
        steady=not unsteady,
        mean_ms=float(times.mean()),
        min_ms=float(quantiles[0]),
        p50_ms=float(quantiles[50]),
        p90_ms=float(quantiles[90]),
        p95_ms=float(quantiles[95]),
        p99_ms=float(quantiles[99]),
        quantiles_ms=tuple(map(float, quantiles)),
        create_ms=float(np.median([i.created for i in instances])) * 1e3,
        peak_bytes=peak,
        ops=ops,
        note=note,
        sessions=len(instances),
        disturbed=float(np.mean(np.concatenate([i.disturbed for i in instances]))),
    )


def _unsteady(instances: Sequence[Instance]) -> tuple[bool, str]:
    """Whether a model's times never settled, and what to say of it."""
    known = [i.steadiness for i in instances if i.steadiness is not None]
    if not known:
        return False, "too few runs to tell whether times are steady"
    drifting = sum(not s.steady for s in known)
    slower = sum(s.kind == "slowdown" for s in known)
    if drifting > _UNSTEADY * len(known):
        return True, f"no steady state in {drifting} of {len(known)} sessions: times still drift"
    if slower > _UNSTEADY * len(known):
        return False, f"times rise after a while in {slower} of {len(known)} sessions"
    return False, ""


def _pair(index: int, found: Ratio) -> PairedRatio:
    return PairedRatio(
        a=_LABELS[0],
        b=_LABELS[index],
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        confidence=found.confidence,
        pairs=found.pairs,
        resolution=found.resolution,
        verdict=found.verdict,
        sessions=found.rounds,
        min_effect=found.min_effect,
        equivalent=found.equivalent,
    )


def _settings(plan: Plan, found: Measurement) -> dict[str, str]:
    words = dict(plan.settings.describe(plan.provider))
    if plan.provider in NVIDIA:
        words["IO binding"] = "on" if found.bound else "off: not all inputs and outputs are tensors"
    return words


def _notes(found: Measurement, timings: Sequence[Timing], plan: Plan, busy: float | None) -> list[str]:
    notes = list(found.notes)
    there = len(processors())
    if busy is not None and busy + plan.threads > there + 0.5 and plan.provider not in NVIDIA:
        notes.append(f"the machine is busy: a load of {busy:.1f} on {there} processors before it began")
    disturbed = max(t.disturbed for t in timings)
    if disturbed > _DISTURBED:
        notes.append(f"up to {disturbed:.0%} of the runs were interrupted by other processes")
    if len(timings) > 1 and any(not t.steady for t in timings):
        notes.append("times drift; ratios are made of turns, of which both sides see the same drift")
    notes += disagreements(found.ratios, timings)
    if plan.provider in NVIDIA and any(t.ops for t in timings):
        notes.append("the profiler sees how long GPU kernels take to launch, not how long they run")
    return notes


def disagreements(ratios: Sequence[Ratio], timings: Sequence[Timing]) -> list[str]:
    """Notes on models whose median says otherwise than their ratio to the first one, which is paired."""
    return [
        f"the median of {timing.label} says otherwise than its ratio: the machine changed its speed "
        "meanwhile, which pairs of runs do not notice; the ratio counts"
        for ratio, timing in zip(ratios, timings[1:], strict=True)
        if ratio.verdict != "no difference" and (timing.p50_ms > timings[0].p50_ms) != (ratio.ratio > 1)
    ]
