"""How much faster one model is than another, in a call: see `measure` for how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.runtime.measure import Contestant, Plan, Ratio, measure, ratio_of
from graphopt.runtime.providers import AS_DEPLOYED, ProviderSettings
from graphopt.runtime.session import CPU, Optimize, Source
from graphopt.runtime.values import Value


@dataclass(frozen=True)
class Latency:
    """A paired comparison of B with A. Ratios are B over A: below 1, B is faster.

    Attributes:
        ratio: of run times.
        low, high: its interval at `confidence`.
        q1, q3: quartiles of the ratios of rounds of new sessions.
        a_seconds, b_seconds: median times of one run.
        pairs: how many pairs of bursts were timed.
        creation_ratio: ratio of the times it took to open the sessions; None where that was not timed.
        rounds: how often both sessions were opened anew.
        confidence: of the interval.
        verdict: "faster", "slower", or "no difference" where the interval holds 1, or the difference is below
            what counts as one.
        a_quantiles, b_quantiles: seconds of one run, at 0%, 1%, ... 100%.
    """

    ratio: float
    low: float
    high: float
    q1: float
    q3: float
    a_seconds: float
    b_seconds: float
    pairs: int
    creation_ratio: float | None
    rounds: int
    confidence: float
    verdict: str
    a_quantiles: tuple[float, ...] = ()
    b_quantiles: tuple[float, ...] = ()

    @property
    def is_faster(self) -> bool:
        """B is faster."""
        return self.verdict == "faster"

    @property
    def is_slower(self) -> bool:
        """B is slower."""
        return self.verdict == "slower"


def summarize(
    times: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    *,
    confidence: float = 0.99,
    min_effect: float = 0.01,
) -> Latency:
    """The comparison that pairs of times make which are independent of each other.

    Args:
        times: seconds, shape (pairs, 2): A and B.
        confidence: of the interval.
        min_effect: a relative difference below this does not count as one.
    """
    logs = np.log(times[:, 1] / times[:, 0]).tolist()
    ratio = ratio_of(logs, 1 - confidence, len(logs), Plan(confidence=confidence, min_effect=min_effect))
    a, b = np.median(times, axis=0)
    return _latency(ratio, float(a), float(b), None)


def _latency(ratio: Ratio, a_seconds: float, b_seconds: float, creation: float | None) -> Latency:
    return Latency(
        ratio.ratio,
        ratio.low,
        ratio.high,
        ratio.q1,
        ratio.q3,
        a_seconds,
        b_seconds,
        ratio.pairs,
        creation,
        ratio.rounds,
        ratio.confidence,
        ratio.verdict,
    )


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
    settings: ProviderSettings = AS_DEPLOYED,
) -> Latency:
    """Time two models as people run them.

    Args:
        a: the yardstick.
        b: what is compared with it.
        feeds: inputs, used in turn.
        optimize, threads, provider, settings: as for `open_session`.
        seconds: how long to run them, about; opening sessions comes on top.
        b_feeds: the same inputs as `b` takes them; by default it takes them as `a` does.

    Raises:
        ProviderError: the provider is not there.
        RuntimeFailure: one of the models does not load or run.
    """
    plan = Plan(provider=provider, settings=settings, optimize=optimize, threads=threads, seconds=seconds)
    found = measure([Contestant(a, feeds), Contestant(b, b_feeds or feeds)], plan)
    created = [float(np.median([i.created for i in instances])) for instances in found.instances]
    a_seconds, b_seconds = (float(np.median(found.times(i))) for i in (0, 1))
    latency = _latency(found.ratios[0], a_seconds, b_seconds, created[1] / created[0])
    quantiles = [tuple(np.percentile(found.times(i), range(101)).tolist()) for i in (0, 1)]
    return replace(latency, a_quantiles=quantiles[0], b_quantiles=quantiles[1])
