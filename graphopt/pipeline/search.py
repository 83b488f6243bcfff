"""Which parts of a model to treat gently, so that the rest may be treated roughly: a closed-loop search.

Used wherever something is gained by changing every unit (quantizing a node, pruning a layer) and a budget
says how much the result may lose: which units must be left alone, and as few of them as possible?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from graphopt.budget import Budget, Score

#: Scores the model in which these units (numbers, sorted) are left alone and all others changed.
Measure = Callable[[tuple[int, ...]], Score]
# Units that are measured one by one before the search; of more, the others are taken as harmless.
MOST_MEASURED = 256


@dataclass(frozen=True)
class Point:
    """One configuration that was measured: the units left alone, and the score."""

    spared: tuple[int, ...]
    score: Score


@dataclass
class Search:
    """What a search found.

    Attributes:
        spared: the units to leave alone, in order.
        score: the score with those.
        met: whether the budget is kept.
        gains: for each unit measured, the score when it alone is left alone.
        points: every configuration measured, in order.
    """

    spared: tuple[int, ...]
    score: Score
    met: bool
    gains: dict[int, Score] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)


def noise(score: Score) -> float:
    """Noise power over signal power of the worst output; errors of separate units about add up in it."""
    if math.isnan(score.sqnr_db):
        return math.inf
    return float(10.0 ** (-score.sqnr_db / 10))


def shortfall(budget: Budget, score: Score) -> float:
    """How far `score` is from keeping `budget`: 0 when it does; comparable between scores."""
    parts = [0.0]
    if budget.min_cosine is not None:
        parts.append((1 - score.cosine) / max(1 - budget.min_cosine, 1e-12) - 1)
    if budget.min_sqnr_db is not None:
        parts.append(noise(score) / 10.0 ** (-budget.min_sqnr_db / 10) - 1)
    for name, limit in budget.max_drop.items():
        parts.append((score.drops.get(name, math.inf) - limit) / max(limit, 1e-3))
    return max((math.inf if math.isnan(p) else p) for p in parts)


def spare_least(
    costs: Sequence[float],
    measure: Measure,
    budget: Budget,
    *,
    screen: Measure | None = None,
    order: Sequence[int] | None = None,
    everything: bool = False,
) -> Search:
    """Find few and cheap units that have to be left alone for the budget to be kept.

    Every unit is first left alone by itself (the sensitivity sweep). Noise contributions about add up, so
    the units sorted by gain are a good order in which to spare them: bisection finds the shortest prefix
    that keeps the budget, and every unit of it is then tried without, the dearest for its gain first.

    Args:
        costs: what it costs to leave each unit alone.
        measure: scores a configuration.
        budget: what has to be kept.
        screen: a cheaper `measure` (on fewer samples) for the sweep.
        order: units in order of suspicion; only the first `MOST_MEASURED` are swept.
        everything: sweep also where the budget is kept without sparing anything.

    Returns:
        The smallest configuration found; `met` is False when not even sparing all units keeps the budget.
    """
    result = Search((), measure(()), False)
    result.points.append(Point((), result.score))
    result.met = not budget.misses(result.score)
    if result.met and not everything:
        return result
    screen = screen or measure
    base = screen(()) if screen is not measure else result.score
    for unit in list(order if order is not None else range(len(costs)))[:MOST_MEASURED]:
        result.gains[unit] = screen((unit,))
    if result.met:
        return result

    def gain(unit: int) -> float:
        after = result.gains.get(unit)
        if after is None:
            return 0.0
        return max(shortfall(budget, base) - shortfall(budget, after), 0.0) + 1e-9 * (
            noise(base) - noise(after)
        )

    ranked = sorted(result.gains, key=lambda u: (-gain(u), costs[u], u))
    ranked += [u for u in range(len(costs)) if u not in result.gains]

    def attempt(units: Sequence[int]) -> Score:
        spared = tuple(sorted(units))
        score = measure(spared)
        result.points.append(Point(spared, score))
        return score

    # Galloping: in most models a handful of units does all the harm.
    low, high = 0, 1
    while True:
        high = min(high, len(ranked))
        score = attempt(ranked[:high])
        if not budget.misses(score):
            break
        if high == len(ranked):
            # The closest that came is still the best answer there is.
            best = min(result.points, key=lambda p: (shortfall(budget, p.score), len(p.spared)))
            result.spared, result.score = best.spared, best.score
            return result
        low, high = high, high * 2
    kept, best_score = ranked[:high], score
    while high - low > 1:
        middle = (low + high) // 2
        score = attempt(ranked[:middle])
        if budget.misses(score):
            low = middle
        else:
            high, kept, best_score = middle, ranked[:middle], score
    for unit in sorted(kept, key=lambda u: (-costs[u] / max(gain(u), 1e-30), u)):
        if len(kept) == 1:
            break
        without = [u for u in kept if u != unit]
        score = attempt(without)
        if not budget.misses(score):
            kept, best_score = without, score
    result.spared, result.score, result.met = tuple(sorted(kept)), best_score, True
    return result
