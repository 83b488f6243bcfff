"""Checks of time: a run next to the reference's, a run by itself, opening a session."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from graphopt.calibration.data import batches, open_dataset, ports_of
from graphopt.gating.asked import Asked, number
from graphopt.gating.context import Context
from graphopt.gating.policy import Undecided
from graphopt.model import Model
from graphopt.report.gated import Check
from graphopt.runtime.interval import interval
from graphopt.runtime.latency import compare_latency
from graphopt.runtime.session import RuntimeFailure, open_session

_LONGER = 4
_MOST_PAIRS = 2000
# Of the interval around a ratio of loading times.
_CONFIDENCE = 0.95


def check_latency(ctx: Context) -> Iterator[Check]:
    """`[latency]`."""
    limits = ctx.policy.latency
    assert limits is not None
    feeds, why = one_run(ctx)
    provider = ctx.providers[0]
    if limits.max_ratio is not None:
        allowed = limits.max_ratio
        asked = ctx.ask(
            ("latency", "max_ratio"),
            "time of a run over the reference's",
            f"at most {number(allowed)}",
            allowed,
        )
        yield asked.not_measured(why) if feeds is None else _ratio(ctx, asked, feeds)
    if limits.max_ms is not None:
        at = f"{limits.percentile:g}%"
        asked = ctx.ask(
            ("latency", "max_ms"),
            f"time of a run ({at} take less)",
            f"at most {number(limits.max_ms)} ms",
            limits.max_ms,
        )
        if feeds is None:
            yield asked.not_measured(why)
            return
        try:
            times = _times(ctx, feeds)
        except RuntimeFailure as failure:
            yield asked.not_measured(f"the model does not run on {provider}: {failure.message}")
            return
        value = 1e3 * float(np.percentile(times, limits.percentile))
        yield asked.at_most(
            value, f"{number(value)} ms", f"{len(times):,} runs on {provider}, {_threads(limits.threads)}"
        )


def one_run(ctx: Context) -> tuple[Mapping[str, Any] | None, str]:
    """What a timed run is fed: the first sample of the data, or made-up inputs; or why nothing."""
    if ctx.data is not None:
        skeleton = (ctx.reference or ctx.model).skeleton()
        ports, overridable = ports_of(skeleton)
        dataset = open_dataset(ctx.data, ports, overridable, model=skeleton)
        for batch in batches(dataset, ports, 1, "all", overridable):
            return batch.feeds, ""
    if ctx.inputs.reason:
        return None, ctx.inputs.reason
    return ctx.inputs.sets[0].feeds, ""


def _ratio(ctx: Context, asked: Asked, feeds: Mapping[str, Any]) -> Check:
    limits, provider = ctx.policy.latency, ctx.providers[0]
    assert limits is not None
    assert ctx.reference is not None
    seconds = limits.seconds
    for longer in (1, _LONGER):
        ctx.tell("latency", f"on {provider}")
        try:
            found = compare_latency(
                ctx.reference.session_source(),
                ctx.model.session_source(),
                [feeds],
                provider=provider,
                threads=limits.threads,
                seconds=seconds * longer,
            )
        except RuntimeFailure as failure:
            return asked.not_measured(f"one of the models does not run on {provider}: {failure.message}")
        if not _is_open(asked, found.low, found.high):
            break
    detail = (
        f"{found.confidence:.0%} interval {number(found.low)} to {number(found.high)}; "
        f"{1e3 * found.a_seconds:.4g} -> {1e3 * found.b_seconds:.4g} ms, "
        f"{found.pairs} pairs on {provider}, {_threads(limits.threads)}"
    )
    return decided(asked, found.ratio, found.low, found.high, limits.undecided, detail)


def _is_open(asked: Asked, low: float, high: float) -> bool:
    assert asked.allowed is not None
    return low <= asked.allowed < high


def decided(asked: Asked, ratio: float, low: float, high: float, undecided: Undecided, detail: str) -> Check:
    """The verdict on a ratio with an interval.

    Passed if the whole interval lies within the limit, failed if it lies beyond it; in between it is not
    shown either way, and the policy says what that means.
    """
    if not _is_open(asked, low, high):
        return asked.at_most(ratio, number(ratio), detail)
    words = f"undecided: the limit lies inside the interval, which counts as a {undecided}; {detail}"
    return asked.judged(undecided == "pass", number(ratio), ratio, words)


def _times(ctx: Context, feeds: Mapping[str, Any]) -> list[float]:
    """Seconds per run, after a warm-up."""
    limits = ctx.policy.latency
    assert limits is not None
    ctx.tell("latency", "of the model")
    times: list[float] = []
    with open_session(
        ctx.model.session_source(), optimize="all", provider=ctx.providers[0], threads=limits.threads
    ) as session:
        for _ in range(3):
            session.run(feeds)
        end = time.perf_counter() + limits.seconds
        while len(times) < 10 or (time.perf_counter() < end and len(times) < _MOST_PAIRS):
            start = time.perf_counter()
            session.run(feeds)
            times.append(time.perf_counter() - start)
    return times


def check_session(ctx: Context) -> Iterator[Check]:
    """`[session]`."""
    limits = ctx.policy.session
    assert limits is not None
    models = [ctx.model]
    if limits.max_ratio is not None:
        assert ctx.reference is not None
        models.insert(0, ctx.reference)
    ctx.tell("session", "opening sessions")
    why, times = "", np.empty((0, 1))
    try:
        times = _openings(ctx, models, limits.repeats)
    except RuntimeFailure as failure:
        why = f"one of the models does not load on {ctx.providers[0]}: {failure.message}"
    detail = f"{limits.repeats} times on {ctx.providers[0]}"
    if limits.max_ms is not None:
        asked = ctx.ask(
            ("session", "max_ms"), "time to load", f"at most {number(limits.max_ms)} ms", limits.max_ms
        )
        if why:
            yield asked.not_measured(why)
        else:
            value = 1e3 * float(np.median(times[:, -1]))
            yield asked.at_most(value, f"{number(value)} ms", f"median, {detail}")
    if limits.max_ratio is not None:
        asked = ctx.ask(
            ("session", "max_ratio"),
            "time to load over the reference's",
            f"at most {number(limits.max_ratio)}",
            limits.max_ratio,
        )
        if why:
            yield asked.not_measured(why)
            return
        found = interval(np.log(times[:, 1] / times[:, 0]).tolist(), 1 - _CONFIDENCE)
        ratio, low, high = (float(np.exp(x)) for x in (found.estimate, found.low, found.high))
        before, after = 1e3 * np.median(times, axis=0)
        words = (
            f"{_CONFIDENCE:.0%} interval {number(low)} to {number(high)}; {before:.4g} -> {after:.4g} ms, "
            f"each {detail}"
        )
        yield decided(asked, ratio, low, high, limits.undecided, words)


def _openings(ctx: Context, models: list[Model], repeats: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds to open a session, shape (repeats, models); in turns, after one round that does not count."""
    sources = [model.session_source() for model in models]
    times = np.empty((repeats + 1, len(sources)))
    for row in times:
        for i, source in enumerate(sources):
            start = time.perf_counter()
            session = open_session(source, optimize="all", provider=ctx.providers[0])
            row[i] = time.perf_counter() - start
            session.close()
    return times[1:]


def _threads(n: int) -> str:
    return f"{n} thread{'s' if n != 1 else ''}"
