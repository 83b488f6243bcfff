"""Timing models against each other, so that neither the machine's noise nor a session's luck decides.

Three things make two timings of the same model differ. Other processes slow the machine down for a while: so
models run in turns, in short bursts, in random order, and what counts is the ratio within a turn. A run is
interrupted: so it does not count for the ratio, as long as others were not. And a session is unlucky with
where its memory lies, which lasts as long as it does: so sessions are opened anew many times, in random order
and with other memory in between, and it is the rounds of new sessions, not the runs, that count as
observations.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from graphopt.runtime.interval import LOOKS, Interval, alpha_at, interval
from graphopt.runtime.providers import AS_DEPLOYED, CPU, NVIDIA, ProviderSettings
from graphopt.runtime.session import Optimize, RuntimeFailure, Session, Source, open_session
from graphopt.runtime.steady import LEAST_RUNS, Steadiness, steadiness
from graphopt.runtime.values import Feeds

Times = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Verdict = Literal["faster", "slower", "no difference"]

_ROUNDS: Final = 20
_FEWEST_ROUNDS: Final = 3
# Opening sessions may take this much of the time that is measured.
_OPENING_SHARE: Final = 1.5
# Shares of a round's time for warming up, and what is warmed up at least.
_WARM_UP_SHARE: Final = 0.3
_LEAST_WARM_UP: Final = 2
_MOST_WARM_UP: Final = 100
# A burst lasts about so long (seconds), so that the caches are the model's own; its first run does not count.
_BURST: Final = 0.002
_LONGEST_BURST: Final = 40
# Runs longer than this (seconds) have the caches for themselves most of the time.
_LONG_RUN: Final = 0.005
_FEWEST_BLOCKS: Final = 2
_MOST_BLOCKS: Final = 60
# Other memory between sessions, at most so many bytes.
_BALLAST: Final = 1 << 20


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
        seconds: how long to run models, warm-up included, opening sessions not.
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


class ContestantFailure(RuntimeFailure):
    """A contestant does not load or run; `contestant` says which, from 0."""

    def __init__(self, failure: RuntimeFailure, contestant: int) -> None:
        super().__init__(failure.kind, failure.message)
        self.contestant = contestant


@contextlib.contextmanager
def _blaming(contestant: int) -> Iterator[None]:
    try:
        yield
    except RuntimeFailure as e:
        raise ContestantFailure(e, contestant) from e


class _Running:
    """An open session while it is timed."""

    def __init__(self, session: Session, feeds: Sequence[Feeds], created: float) -> None:
        self.session, self.created = session, created
        self.times: list[float] = []
        self.disturbed: list[bool] = []
        self.which: list[int] = []
        self.warm_up = 0
        self.bound = False
        self._runs = self._runners(feeds)

    def _runners(self, feeds: Sequence[Feeds]) -> list[Callable[[], object]]:
        if self.session.provider in NVIDIA:
            with contextlib.suppress(RuntimeFailure):
                bound = [self.session.bind(given) for given in feeds]
                self.bound = True
                return [b.run for b in bound]
        # On the CPU there is nothing to copy, and people call `run`.
        return [lambda given=given: self.session.run(given) for given in feeds]  # type: ignore[misc]

    def run(self, which: int) -> tuple[float, bool]:
        """Run once on the inputs `which`: seconds, and whether others interrupted it."""
        call = self._runs[which]
        switches = _switches()
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        disturbed = _switches() != switches
        self.times.append(took)
        self.disturbed.append(disturbed)
        self.which.append(which)
        return took, disturbed

    def warm(self, budget: float) -> None:
        """Run until times are steady, or the budget (seconds) is used up."""
        end = time.perf_counter() + budget
        kinds = len(self._runs)
        least = max(_LEAST_WARM_UP, kinds)
        while len(self.times) < _MOST_WARM_UP:
            self.run(len(self.times) % kinds)
            n = len(self.times)
            if n < least:
                continue
            if time.perf_counter() > end:
                break
            if n >= 2 * LEAST_RUNS and n % LEAST_RUNS == 0 and self._steady().steady:
                break
        self.warm_up = len(self.times)

    def _steady(self) -> Steadiness:
        times, which = np.array(self.times), np.array(self.which)
        for kind in set(self.which):  # inputs of several sizes: each in units of its own
            times[which == kind] /= np.median(times[which == kind])
        return steadiness(times.tolist())

    def finish(self) -> Instance:
        """Close the session; what its runs came to."""
        self.session.close()
        self._runs = []
        enough = len(self.times) >= LEAST_RUNS
        return Instance(
            np.array(self.times[self.warm_up :]),
            np.array(self.disturbed[self.warm_up :], bool),
            self.warm_up,
            self._steady() if enough else None,
            self.created,
        )


def measure(
    contestants: Sequence[Contestant],
    plan: Plan | None = None,
    tell: Callable[[str, str], None] = lambda stage, detail: None,
) -> Measurement:
    """Time models in turns, and compare each with the first.

    Raises:
        ProviderError: the provider is not there.
        ContestantFailure: one of the models does not load or run.
    """
    plan = plan or Plan()
    rng = np.random.default_rng(plan.seed)
    found = Measurement([[] for _ in contestants])
    observed: list[list[float]] = [[] for _ in contestants[1:]]
    pairs, looks = 0, 0
    rounds, share = plan.rounds or _ROUNDS, plan.seconds / (plan.rounds or _ROUNDS)
    done = 0
    with _quiet(), bound_to(plan.affinity):
        while done < rounds:
            tell("measure", f"round {done + 1} of {rounds}")
            start = time.perf_counter()
            logs, blocks, spent = _round(contestants, plan, share, rng, found)
            done, pairs = done + 1, pairs + blocks
            for series, value in zip(observed, logs, strict=True):
                series.append(value)
            if done == 1 and plan.rounds is None:
                opening = time.perf_counter() - start - spent
                rounds = _affordable(plan, spent, opening)
                share = max((plan.seconds - spent) / max(rounds - 1, 1), 0.0)
            if done in LOOKS and done < rounds and plan.rounds is None and observed and plan.runs is None:
                alpha = alpha_at(looks, 1 - plan.confidence, last=False)
                looks += 1
                found.ratios = [ratio_of(series, alpha, pairs, plan) for series in observed]
                if all(
                    r.equivalent or (r.significant and r.verdict != "no difference") for r in found.ratios
                ):
                    break
        else:
            last = 1 - plan.confidence if looks == 0 else alpha_at(looks, 1 - plan.confidence, last=True)
            found.ratios = [ratio_of(series, last, pairs, plan) for series in observed]
    return found


def _affordable(plan: Plan, spent: float, opening: float) -> int:
    """How many rounds, given what the first one took."""
    by_time = plan.seconds / spent if plan.runs is None else _ROUNDS
    by_opening = _OPENING_SHARE * plan.seconds / max(opening, 1e-6)
    # The first one was held to its share of 20: whatever took longer needs as long every time.
    wanted = _ROUNDS if by_time > _ROUNDS * 0.75 else by_time
    return int(max(min(wanted, by_opening, _ROUNDS), _FEWEST_ROUNDS))


def _round(
    contestants: Sequence[Contestant],
    plan: Plan,
    share: float,
    rng: np.random.Generator,
    found: Measurement,
) -> tuple[list[float], int, float]:
    """One round of new sessions: per contestant but the first its log ratio; blocks; seconds of running."""
    ballast: list[Any] = []
    running: list[_Running | None] = [None] * len(contestants)
    try:
        for i in rng.permutation(len(contestants)).tolist():
            ballast.append(bytearray(int(rng.integers(1, _BALLAST))))
            start = time.perf_counter()
            with _blaming(i):
                session = open_session(
                    contestants[i].source,
                    optimize=plan.optimize,
                    threads=plan.threads,
                    provider=plan.provider,
                    settings=contestants[i].settings or plan.settings,
                    affinity=plan.affinity,
                )
            running[i] = _Running(session, contestants[i].feeds, time.perf_counter() - start)
        started = time.perf_counter()
        sessions = [r for r in running if r is not None]
        for i in rng.permutation(len(sessions)).tolist():
            with _blaming(i):
                sessions[i].warm(_WARM_UP_SHARE * share / len(sessions))
        logs, blocks = _blocks(sessions, plan, share - (time.perf_counter() - started), rng)
        spent = time.perf_counter() - started
        found.bound = found.bound or any(r.bound for r in sessions)
        for instances, r in zip(found.instances, sessions, strict=True):
            instances.append(r.finish())
        return logs, blocks, spent
    finally:
        for opened in running:
            if opened is not None:
                opened.session.close()


def _blocks(
    sessions: Sequence[_Running], plan: Plan, seconds: float, rng: np.random.Generator
) -> tuple[list[float], int]:
    """Bursts in turns, each order followed by its reverse; the median log ratios to the first session."""
    typical = [float(np.median(r.times[-LEAST_RUNS:])) for r in sessions]
    length, dropped = burst(min(typical))
    kinds = len(set(sessions[0].which))
    per_block = sum(typical) * (length + dropped)
    count = int(seconds / per_block)
    if plan.runs is not None:
        count = math.ceil(plan.runs / (length * (plan.rounds or _ROUNDS)))
    count = min(max(count, _FEWEST_BLOCKS, kinds), _MOST_BLOCKS if plan.runs is None else count + 1)
    count += count % 2
    values = np.empty((count, len(sessions)))
    clean = np.empty((count, len(sessions)), bool)
    order = np.arange(len(sessions))
    end = time.perf_counter() + 2 * max(seconds, per_block * _FEWEST_BLOCKS)
    for block in range(count):
        order = order[::-1] if block % 2 else rng.permutation(len(sessions))
        for i in order.tolist():
            values[block, i], clean[block, i] = _burst(sessions[i], block // 2 % kinds, length, dropped)
        late = plan.runs is None and time.perf_counter() > end
        if late and block % 2 and block + 1 >= max(_FEWEST_BLOCKS, kinds):
            values, clean = values[: block + 1], clean[: block + 1]
            break
    logs = [_log_ratio(values[:, i], clean[:, i], values[:, 0], clean[:, 0]) for i in range(1, len(sessions))]
    return logs, len(values)


def _log_ratio(b: Times, b_clean: Any, a: Times, a_clean: Any) -> float:
    ratios = np.log(b / a)
    both = b_clean & a_clean
    return float(np.median(ratios[both] if both.sum() * 3 >= len(ratios) else ratios))


def burst(seconds: float) -> tuple[int, int]:
    """How many runs of a model that takes `seconds` are timed in a turn, and how many before do not count."""
    length = min(max(math.ceil(_BURST / max(seconds, 1e-9)), 1), _LONGEST_BURST)
    return length, 1 if seconds < _LONG_RUN else 0


def _burst(session: _Running, which: int, length: int, dropped: int) -> tuple[float, bool]:
    """The median time of one turn, of the runs that were not interrupted if there are any."""
    for _ in range(dropped):
        session.run(which)
        del session.times[-1], session.disturbed[-1], session.which[-1]
    runs = [session.run(which) for _ in range(length)]
    clean = [took for took, disturbed in runs if not disturbed]
    return float(np.median(clean or [took for took, _ in runs])), bool(clean)


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


def _switches() -> int:
    """How often this process's threads were interrupted by others."""
    return _usage().ru_nivcsw if _usage is not None else 0


def _usage_function() -> Callable[[], Any] | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return lambda: resource.getrusage(resource.RUSAGE_SELF)


_usage = _usage_function()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection meanwhile."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextlib.contextmanager
def bound_to(processors: Sequence[int]) -> Iterator[None]:
    """Bind the calling thread to the first of `processors`, as far as the system can."""
    if not processors or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processors[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
