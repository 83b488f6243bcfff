"""Checks of time: a run next to the reference's, a run by itself, opening a session."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np

from graphopt.benching import bench
from graphopt.errors import ProviderError, UserError
from graphopt.gating.asked import Asked, number
from graphopt.gating.context import Context
from graphopt.gating.policy import LatencyLimits, Undecided
from graphopt.model import Model
from graphopt.report.gated import Check
from graphopt.report.text import plural
from graphopt.report.timed import BenchReport, PairedRatio
from graphopt.runtime.interval import interval
from graphopt.runtime.session import RuntimeFailure, open_session

_LONGER = 4

Times = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def check_latency(ctx: Context) -> Iterator[Check]:
    """`[latency]`."""
    limits = ctx.policy.latency
    assert limits is not None
    ratio, own = _asked(ctx, limits)
    found = _benched(ctx, limits, ratio)
    if isinstance(found, str):
        yield from (asked.not_measured(found) for asked in (ratio, own) if asked is not None)
        return
    ctx.bench = found
    ctx.warnings += [f"latency: {note}" for note in found.notes]
    timing = found.timings[-1]
    how = f"{found.provider}, {plural(limits.threads, 'thread')}, {plural(timing.sessions, 'session')}"
    if ratio is not None:
        pair = found.ratios[0]
        times = f"{number(found.timings[0].p50_ms)} -> {number(timing.p50_ms)} ms"
        yield decided(ratio, pair, limits.undecided, f"{_interval(pair)}; {times}; {how}")
    if own is not None:
        value = float(np.interp(limits.percentile, np.arange(101), timing.quantiles_ms))
        yield own.at_most(value, f"{number(value)} ms", f"{plural(timing.runs, 'run')}; {how}")


def _asked(ctx: Context, limits: LatencyLimits) -> tuple[Asked | None, Asked | None]:
    """What is asked of the ratio, and of the model's own time."""
    ratio = own = None
    if limits.max_ratio is not None:
        words = f"at most {number(limits.max_ratio)}"
        ratio = ctx.ask(
            ("latency", "max_ratio"), "time of a run over the reference's", words, limits.max_ratio
        )
    if limits.max_ms is not None:
        words = f"at most {number(limits.max_ms)} ms"
        what = f"time of a run, percentile {limits.percentile:g}"
        own = ctx.ask(("latency", "max_ms"), what, words, limits.max_ms)
    return ratio, own


def _benched(ctx: Context, limits: LatencyLimits, ratio: Asked | None) -> BenchReport | str:
    """The times of the model (and of the reference, if they are compared), or why there are none."""
    if ctx.inputs.reason:  # which also says so if the data cannot be used
        return ctx.inputs.reason
    models = [ctx.model] if ratio is None or ctx.reference is None else [ctx.reference, ctx.model]
    seconds, sessions = limits.seconds, None
    while True:
        try:
            found = bench(
                models,
                data=ctx.data,
                input_shapes=ctx.input_shapes or None,
                provider=ctx.providers[0],
                settings=ctx.settings,
                threads=limits.threads,
                seconds=seconds,
                sessions=sessions,
                confidence=limits.confidence,
                profile=False,
                memory=False,
                progress=lambda stage, detail: ctx.tell("latency", detail),
            )
        except ProviderError:
            raise
        except UserError as exc:
            return exc.what
        if ratio is None or sessions is not None or not _is_open(limits.max_ratio or 0, found.ratios[0]):
            return found
        # It stops once it knows which one is faster. That may not tell what side of the limit it is on.
        seconds, sessions = _LONGER * seconds, 2 * found.ratios[0].sessions


def _is_open(limit: float, found: PairedRatio) -> bool:
    """The limit lies inside the interval."""
    return found.low <= limit < found.high


def decided(asked: Asked, found: PairedRatio, undecided: Undecided, detail: str) -> Check:
    """The verdict on a ratio with an interval.

    Passed if the whole interval lies within the limit, failed if it lies beyond it; in between it is not
    shown either way, and the policy says what that means.
    """
    assert asked.allowed is not None
    if not _is_open(asked.allowed, found):
        return asked.at_most(found.ratio, number(found.ratio), detail)
    words = f"undecided: the limit lies inside the interval, which counts as a {undecided}; {detail}"
    return asked.judged(undecided == "pass", number(found.ratio), found.ratio, words)


def _interval(found: PairedRatio) -> str:
    return f"{100 * found.confidence:g}% interval {number(found.low)} to {number(found.high)}"


def check_session(ctx: Context) -> Iterator[Check]:
    """`[session]`."""
    limits = ctx.policy.session
    assert limits is not None
    models = [ctx.model]
    if limits.max_ratio is not None:
        assert ctx.reference is not None
        models.insert(0, ctx.reference)
    times: Times | str
    try:
        times = _openings(ctx, models, limits.repeats)
        if limits.max_ratio is not None and _is_open(limits.max_ratio, paired(times, limits.confidence)):
            times = _openings(ctx, models, _LONGER * limits.repeats)
    except RuntimeFailure as failure:
        times = f"one of the models does not load on {ctx.providers[0]}: {failure.message}"
    if limits.max_ms is not None:
        asked = ctx.ask(
            ("session", "max_ms"), "time to load", f"at most {number(limits.max_ms)} ms", limits.max_ms
        )
        if isinstance(times, str):
            yield asked.not_measured(times)
        else:
            value = 1e3 * float(np.median(times[:, -1]))
            yield asked.at_most(value, f"{number(value)} ms", f"median of {len(times)} on {ctx.providers[0]}")
    if limits.max_ratio is not None:
        asked = ctx.ask(
            ("session", "max_ratio"),
            "time to load over the reference's",
            f"at most {number(limits.max_ratio)}",
            limits.max_ratio,
        )
        if isinstance(times, str):
            yield asked.not_measured(times)
            return
        found = paired(times, limits.confidence)
        before, after = (1e3 * float(t) for t in np.median(times, axis=0))
        words = f"{number(before)} -> {number(after)} ms; each {len(times)} times on {ctx.providers[0]}"
        yield decided(asked, found, limits.undecided, f"{_interval(found)}; {words}")


def paired(times: Times, confidence: float) -> PairedRatio:
    """The ratio that pairs of times make, shape (pairs, 2), with its interval."""
    found = interval(np.log(times[:, 1] / times[:, 0]).tolist(), 1 - confidence)
    low, middle, high = (math.exp(x) for x in (found.low, found.estimate, found.high))
    verdict = "faster" if high < 1 else "slower" if low > 1 else "no difference"
    return PairedRatio("A", "B", middle, low, high, confidence, len(times), high / low - 1, verdict)  # type: ignore[arg-type]


def _openings(ctx: Context, models: list[Model], repeats: int) -> Times:
    """Seconds to open a session, shape (repeats, models); in turns, after one round that does not count."""
    ctx.tell("session", f"{repeats} times each")
    sources = [model.session_source() for model in models]
    times = np.empty((repeats + 1, len(sources)))
    for n, row in enumerate(times):
        for i in sorted(range(len(sources)), reverse=bool(n % 2)):
            start = time.perf_counter()
            session = open_session(
                sources[i], optimize="all", provider=ctx.providers[0], settings=ctx.settings
            )
            row[i] = time.perf_counter() - start
            session.close()
    return times[1:]
