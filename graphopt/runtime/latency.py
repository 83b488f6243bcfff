"""How much faster one model is than another, measured so that the machine's noise cancels.

Runs are paired and interleaved: A and B right after each other, in alternating order, so that whatever
slows the machine down for a while slows both down. The ratio of the pairs' medians is what is reported,
with an interval; absolute times from one run never compare with those from another.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.runtime.session import CPU, Optimize, Session, Source, open_session
from graphopt.runtime.values import Value

_BOOTSTRAP = 1000
_LEAST_PAIRS = 7


@dataclass(frozen=True)
class Latency:
    """A paired comparison of B with A. Ratios are B over A: below 1, B is faster.

    Attributes:
        ratio: median of the pairs' ratios.
        low, high: 95% bootstrap interval of that median.
        q1, q3: quartiles of the pairs' ratios.
        a_seconds, b_seconds: median times of one run.
        pairs: how many pairs were timed.
        creation_ratio: ratio of the times it took to open the sessions; None when they were given.
    """

    ratio: float
    low: float
    high: float
    q1: float
    q3: float
    a_seconds: float
    b_seconds: float
    pairs: int
    creation_ratio: float | None = None

    @property
    def is_faster(self) -> bool:
        """The interval lies below 1."""
        return self.high < 1

    @property
    def is_slower(self) -> bool:
        """The interval lies above 1."""
        return self.low > 1


def compare_sessions(
    a: Session,
    b: Session,
    feeds: Sequence[Mapping[str, Value]],
    *,
    seconds: float = 2.0,
    most_pairs: int = 200,
    creation_ratio: float | None = None,
    b_feeds: Sequence[Mapping[str, Value]] | None = None,
) -> Latency:
    """Time two open sessions on the same inputs.

    Args:
        a: the yardstick.
        b: what is compared with it.
        feeds: inputs, used in turn; each is warmed up first.
        seconds: how long to measure, about (at least a few pairs are timed in any case).
        most_pairs: stop after so many pairs.
        creation_ratio: put into the result.
        b_feeds: the same inputs as `b` takes them; by default it takes them as `a` does.

    Raises:
        RuntimeFailure: one of them does not run.
    """
    both = list(zip(feeds, b_feeds or feeds, strict=True))
    for for_a, for_b in both:
        for session, given in ((a, for_a), (b, for_b)) * 2:
            session.run(given)
    times: list[tuple[float, float]] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while len(times) < most_pairs and (len(times) < _LEAST_PAIRS or time.perf_counter() < end):
            for_a, for_b = both[len(times) % len(both)]
            if len(times) // len(both) % 2:
                second, first = _time(b, for_b), _time(a, for_a)
            else:
                first, second = _time(a, for_a), _time(b, for_b)
            times.append((first, second))
    finally:
        if collecting:
            gc.enable()
    return summarize(np.array(times), creation_ratio)


def summarize(
    times: np.ndarray[tuple[int, ...], np.dtype[np.float64]], creation: float | None = None
) -> Latency:
    """The comparison that pairs of times make.

    Args:
        times: seconds, shape (pairs, 2): A and B.
        creation: put into the result.
    """
    ratios = times[:, 1] / times[:, 0]
    rng = np.random.default_rng(0)
    resampled = np.median(ratios[rng.integers(0, len(ratios), (_BOOTSTRAP, len(ratios)))], axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    q1, q3 = np.quantile(ratios, [0.25, 0.75])
    a, b = np.median(times, axis=0)
    return Latency(
        float(np.median(ratios)),
        float(low),
        float(high),
        float(q1),
        float(q3),
        float(a),
        float(b),
        len(times),
        creation,
    )


def _time(session: Session, feeds: Mapping[str, Value]) -> float:
    start = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - start


def compare_latency(
    a: Source,
    b: Source,
    feeds: Sequence[Mapping[str, Value]],
    *,
    optimize: Optimize = "all",
    threads: int = 1,
    provider: str = CPU,
    seconds: float = 2.0,
    b_feeds: Sequence[Mapping[str, Value]] | None = None,
) -> Latency:
    """Open two models as people run them, and time them; both are open at once. See `compare_sessions`.

    Raises:
        ProviderError: the provider is not there.
        RuntimeFailure: one of the models does not load or run.
    """
    opened: list[Session] = []
    elapsed: list[float] = []
    try:
        for source in (a, b):
            start = time.perf_counter()
            opened.append(open_session(source, optimize=optimize, threads=threads, provider=provider))
            elapsed.append(time.perf_counter() - start)
        creation = elapsed[1] / elapsed[0]
        return compare_sessions(
            opened[0], opened[1], feeds, seconds=seconds, creation_ratio=creation, b_feeds=b_feeds
        )
    finally:
        for session in opened:
            session.close()
