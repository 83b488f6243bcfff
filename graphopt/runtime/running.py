"""A session while it is timed, and the clocks that it is timed with."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from graphopt.runtime.plan import Instance, Plan
from graphopt.runtime.providers import CPU, NVIDIA
from graphopt.runtime.session import RuntimeFailure, Session
from graphopt.runtime.steady import LEAST_RUNS, Steadiness, steadiness
from graphopt.runtime.values import Feeds

# What is warmed up at least and at most, in runs, besides the first one of each input.
_LEAST_WARM_UP: Final = 1
_MOST_WARM_UP: Final = 100
# So many times as long may it take where others use the processor.
_PATIENCE: Final = 3


class ContestantFailure(RuntimeFailure):
    """A contestant does not load or run; `contestant` says which, from 0."""

    def __init__(self, failure: RuntimeFailure, contestant: int) -> None:
        super().__init__(failure.kind, failure.message)
        self.contestant = contestant


@contextlib.contextmanager
def blaming(contestant: int) -> Iterator[None]:
    """Say of a failure which contestant it is."""
    try:
        yield
    except RuntimeFailure as e:
        raise ContestantFailure(e, contestant) from e


class Running:
    """An open session while it is timed."""

    def __init__(self, session: Session, feeds: Sequence[Feeds], created: float, alone: bool) -> None:
        self.session, self.created, self._alone = session, created, alone
        self.times: list[float] = []
        self.disturbed: list[bool] = []
        self.which: list[int] = []
        self.counts: list[float] = []
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
        """Run once on the inputs `which`: seconds for the ratio, and whether they are good for one."""
        call = self._runs[which]
        switches, used = _switches(), time.thread_time()
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        used, disturbed = time.thread_time() - used, _switches() != switches
        self.times.append(took)
        self.disturbed.append(disturbed)
        self.which.append(which)
        counts = used if disturbed and self._alone else took
        self.counts.append(counts)
        return counts, self._alone or not disturbed

    def forget(self) -> None:
        """Leave out the last run, which was to bring the model's data back into the caches."""
        for series in (self.times, self.disturbed, self.which, self.counts):
            series.pop()

    def first(self) -> None:
        """The first run on each input: memory is allocated, and cuDNN tries its algorithms."""
        for which in range(len(self._runs)):
            self.run(which)

    def warm(self, budget: float, clock: Callable[[], float]) -> None:
        """Run on until times are steady, or the budget (seconds of `clock`) is used up."""
        end = clock() + budget
        kinds = len(self._runs)
        least = len(self.times) + max(_LEAST_WARM_UP, kinds - 1)
        while len(self.times) < _MOST_WARM_UP:
            self.run(len(self.times) % kinds)
            n = len(self.times)
            if n < least:
                continue
            if clock() > end:
                break
            if n >= 2 * LEAST_RUNS and n % LEAST_RUNS == 0 and self._steady().steady:
                break
        self.warm_up = len(self.times)

    def _steady(self) -> Steadiness:
        times, which = np.array(self.counts), np.array(self.which)
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


def is_alone(plan: Plan) -> bool:
    """Whether the calling thread's processor time is the time of a run, but for the interruptions."""
    return plan.threads == 1 and plan.provider == CPU


def clock_of(plan: Plan) -> Callable[[], float]:
    """Seconds that models have run for: on a busy machine the time that they had the processor."""
    if not is_alone(plan):
        return time.perf_counter
    start, used = time.perf_counter(), time.thread_time()
    return lambda: max(time.thread_time() - used, (time.perf_counter() - start) / _PATIENCE)


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
def quiet() -> Iterator[None]:
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
