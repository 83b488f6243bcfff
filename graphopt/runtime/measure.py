"""Timing models against each other, so that neither the machine's noise nor a session's luck decides.

Three things make two timings of the same model differ. Other processes slow the machine down for a while: so
models run in turns, in short bursts, in random order, and what counts is the ratio within a turn. A run is
interrupted: so for the ratio it counts with the processor time that it had, or not at all where several
threads compute. And a session is unlucky with where its memory lies, which lasts as long as it does: so
sessions are opened anew many times, in random order and with other memory in between, and it is the rounds of
new sessions, not the runs, that count as observations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from graphopt.runtime.interval import LOOKS, alpha_at
from graphopt.runtime.plan import Contestant, Instance, Measurement, Plan, Ratio, Times, ratio_of
from graphopt.runtime.running import (
    ContestantFailure,
    Running,
    blaming,
    bound_to,
    clock_of,
    is_alone,
    quiet,
)
from graphopt.runtime.session import open_session
from graphopt.runtime.steady import LEAST_RUNS

__all__ = [
    "Contestant",
    "ContestantFailure",
    "Instance",
    "Measurement",
    "Plan",
    "Ratio",
    "bound_to",
    "burst",
    "measure",
    "ratio_of",
]

_ROUNDS: Final = 20
_FEWEST_ROUNDS: Final = 3
# Opening sessions, first runs included, may take as long as what is measured.
_OPENING_SHARE: Final = 1.0
# Share of a round's time for warming up.
_WARM_UP_SHARE: Final = 0.3
# A burst lasts about so long (seconds), so that the caches are the model's own; its first run does not count.
_BURST: Final = 0.002
_LONGEST_BURST: Final = 40
# Runs longer than this (seconds) have the caches for themselves most of the time.
_LONG_RUN: Final = 0.005
_FEWEST_BLOCKS: Final = 2
_MOST_BLOCKS: Final = 60
# Other memory between sessions, at most so many bytes.
_BALLAST: Final = 1 << 20


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
    with quiet(), bound_to(plan.affinity):
        clock = clock_of(plan)
        while done < rounds:
            tell("measure", f"round {done + 1} of {rounds}")
            start = clock()
            logs, blocks, spent = _round(contestants, plan, share, rng, found, clock)
            done, pairs = done + 1, pairs + blocks
            for series, value in zip(observed, logs, strict=True):
                series.append(value)
            if done == 1 and plan.rounds is None and plan.runs is None:
                opening = clock() - start - spent
                rounds = _affordable(plan, spent, opening)
                share = max((plan.seconds - spent) / max(rounds - 1, 1), 0.0)
            if done in LOOKS and done < rounds and plan.rounds is None and observed and plan.runs is None:
                alpha = alpha_at(looks, 1 - plan.confidence, last=False)
                looks += 1
                found.ratios = [ratio_of(series, alpha, pairs, plan) for series in observed]
                if all(r.equivalent or r.verdict != "no difference" for r in found.ratios):
                    break
        else:
            last = 1 - plan.confidence if looks == 0 else alpha_at(looks, 1 - plan.confidence, last=True)
            found.ratios = [ratio_of(series, last, pairs, plan) for series in observed]
    return found


def _affordable(plan: Plan, spent: float, opening: float) -> int:
    """How many rounds, given what the first one took."""
    by_time = plan.seconds / spent
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
    clock: Callable[[], float],
) -> tuple[list[float], int, float]:
    """One round of new sessions: per contestant but the first its log ratio; blocks; seconds of running."""
    ballast: list[Any] = []
    running: list[Running | None] = [None] * len(contestants)
    try:
        for i in rng.permutation(len(contestants)).tolist():
            ballast.append(bytearray(int(rng.integers(1, _BALLAST))))
            start = time.perf_counter()
            with blaming(i):
                session = open_session(
                    contestants[i].source,
                    optimize=plan.optimize,
                    threads=plan.threads,
                    provider=plan.provider,
                    settings=contestants[i].settings or plan.settings,
                    affinity=plan.affinity,
                )
            running[i] = Running(session, contestants[i].feeds, time.perf_counter() - start, is_alone(plan))
        sessions = [r for r in running if r is not None]
        for i in rng.permutation(len(sessions)).tolist():
            with blaming(i):
                sessions[i].first()
        started = clock()
        for i in rng.permutation(len(sessions)).tolist():
            with blaming(i):
                sessions[i].warm(_WARM_UP_SHARE * share / len(sessions), clock)
        logs, blocks = _blocks(sessions, plan, share - (clock() - started), rng, clock)
        spent = clock() - started
        found.bound = found.bound or any(r.bound for r in sessions)
        for instances, r in zip(found.instances, sessions, strict=True):
            instances.append(r.finish())
        return logs, blocks, spent
    finally:
        for opened in running:
            if opened is not None:
                opened.session.close()


def _blocks(
    sessions: Sequence[Running],
    plan: Plan,
    seconds: float,
    rng: np.random.Generator,
    clock: Callable[[], float],
) -> tuple[list[float], int]:
    """Bursts in turns, each order followed by its reverse; the median log ratios to the first session."""
    typical = [float(np.median(r.counts[-LEAST_RUNS:])) for r in sessions]
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
    end = clock() + 2 * max(seconds, per_block * _FEWEST_BLOCKS)
    for block in range(count):
        order = order[::-1] if block % 2 else rng.permutation(len(sessions))
        for i in order.tolist():
            values[block, i], clean[block, i] = _burst(sessions[i], block // 2 % kinds, length, dropped)
        late = plan.runs is None and clock() > end
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


def _burst(session: Running, which: int, length: int, dropped: int) -> tuple[float, bool]:
    """The median time of one turn, of the runs that are good for a ratio if there are any."""
    for _ in range(dropped):
        session.run(which)
        session.forget()
    runs = [session.run(which) for _ in range(length)]
    clean = [took for took, good in runs if good]
    return float(np.median(clean or [took for took, _ in runs])), bool(clean)
