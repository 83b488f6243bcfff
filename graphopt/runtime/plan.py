"""What is timed, how, and what it comes to: plain data of measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from graphopt.runtime.interval import Interval, interval
from graphopt.runtime.providers import AS_DEPLOYED, CPU, ProviderSettings
from graphopt.runtime.session import Optimize, Source
from graphopt.runtime.steady import Steadiness
from graphopt.runtime.values import Feeds

Times = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Verdict = Literal["faster", "slower", "no difference"]


@dataclass(frozen=True)
class Contestant:
    """A model to time.

    Attributes:
        source: what a session is made from.
        feeds: inputs, used in turn; every contestant has as many.
        settings: the provider's options, where they are not the plan's.
    """

    source: Source
    feeds: Sequence[Feeds]
    settings: ProviderSettings | None = None


@dataclass(frozen=True)
class Plan:
    """How to time.

    Attributes:
        provider, settings, optimize, threads: as for `open_session`.
        affinity: processors that the runs are bound to; none by default.
        seconds: how long to run models, warm-up included, opening sessions and first runs not. While others
            use the processor it does not count, so that it can take up to three times as long.
        runs: instead, at least so many timed runs of each model.
        rounds: how often each model's session is opened anew; by default as often as time allows, up to 20.
        confidence: of the intervals.
        min_effect: a relative difference below this does not count as one.
        seed: of the random order.
    """

    provider: str = CPU
    settings: ProviderSettings = AS_DEPLOYED
    optimize: Optimize = "all"
    threads: int = 1
    affinity: tuple[int, ...] = ()
    seconds: float = 10.0
    runs: int | None = None
    rounds: int | None = None
    confidence: float = 0.99
    min_effect: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Instance:
    """One session of a model.

    Attributes:
        times: seconds of each timed run.
        disturbed: which of them were interrupted by other threads.
        warm_up: runs before those.
        steadiness: of all its runs; None where they are too few to tell.
        created: seconds that opening it took.
    """

    times: Times
    disturbed: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    warm_up: int
    steadiness: Steadiness | None
    created: float


@dataclass(frozen=True)
class Ratio:
    """One contestant against the first, over rounds of new sessions. Below 1, it is faster.

    Attributes:
        ratio, low, high: of run times, with an interval.
        confidence: of the interval, in spite of looking several times.
        pairs: how many pairs of bursts.
        rounds: how many rounds of new sessions: the observations that the interval is made of.
        q1, q3: quartiles of the rounds' ratios.
        resolution: the smallest relative difference that this measurement could have told from none.
        min_effect: what was asked to count as one.
    """

    ratio: float
    low: float
    high: float
    confidence: float
    pairs: int
    rounds: int
    q1: float
    q3: float
    resolution: float
    min_effect: float

    @property
    def significant(self) -> bool:
        """The interval leaves no doubt that they differ, by however little."""
        return self.high < 1 or self.low > 1

    @property
    def verdict(self) -> Verdict:
        """What it comes to: a difference is sure, and at least as large as one that counts."""
        if not self.significant or abs(self.ratio - 1) < self.min_effect:
            return "no difference"
        return "faster" if self.ratio < 1 else "slower"

    @property
    def equivalent(self) -> bool:
        """The interval leaves no doubt that they do not differ by as much as counts."""
        return self.low > 1 - self.min_effect and self.high < 1 + self.min_effect


@dataclass
class Measurement:
    """What timing came to.

    Attributes:
        instances: per contestant, its sessions.
        ratios: every contestant but the first against the first.
        bound: inputs and outputs stayed on the device.
        notes: what people should know.
    """

    instances: list[list[Instance]]
    ratios: list[Ratio] = field(default_factory=list)
    bound: bool = False
    notes: list[str] = field(default_factory=list)

    def times(self, contestant: int) -> Times:
        """Seconds of all timed runs."""
        return np.concatenate([i.times for i in self.instances[contestant]])


def ratio_of(series: Sequence[float], alpha: float, pairs: int, plan: Plan) -> Ratio:
    """The comparison that observations make: logarithms of ratios, independent of each other."""
    found: Interval = interval(series, alpha)
    q1, q3 = np.exp(np.quantile(series, [0.25, 0.75]))
    return Ratio(
        math.exp(found.estimate),
        math.exp(max(found.low, -50.0)),
        math.exp(min(found.high, 50.0)),
        plan.confidence,
        pairs,
        len(series),
        float(q1),
        float(q3),
        math.expm1(min(found.half_width, 50.0)),
        plan.min_effect,
    )
