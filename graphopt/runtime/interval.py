"""How sure one may be of a ratio: intervals from few, independent, perhaps heavy-tailed observations.

The observations are logarithms of ratios, one per round. Their distribution has outliers, so the interval is
that of Wilcoxon's signed-rank statistic: it assumes nothing but symmetry around the true value, which random
order gives where there is no difference. Too few observations for that get Student's interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

#: Looks before the end may spend this share of the error rate, the first half of it, the next half of the
#: rest, and so on.
_EARLY_SHARE: Final = 0.3
#: Rounds after which one may look before the end.
LOOKS: Final = (12, 20, 32, 50, 80)
# From here on the signed-rank statistic is as good as normal.
_MANY: Final = 60
_FEWEST: Final = 2


@dataclass(frozen=True)
class Interval:
    """An estimate with an interval around it, in logarithms.

    Attributes:
        estimate: the Hodges-Lehmann estimate, or the mean of few observations.
        low, high: the interval; infinite where there are too few observations for any.
    """

    estimate: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


def interval(observations: Sequence[float], alpha: float) -> Interval:
    """The two-sided interval that misses the true value with probability `alpha` at most.

    Args:
        observations: independent, at least one, symmetric around the true value.
        alpha: between 0 and 1.
    """
    x = np.sort(np.asarray(observations, np.float64))
    n = len(x)
    if 2 * 0.5**n > alpha:
        return _student(x, alpha)
    i, j = np.triu_indices(n)
    walsh = np.sort((x[i] + x[j]) / 2)
    k = _critical(n, alpha)
    return Interval(float(np.median(walsh)), float(walsh[k]), float(walsh[len(walsh) - 1 - k]))


def _student(x: np.ndarray[tuple[int, ...], np.dtype[np.float64]], alpha: float) -> Interval:
    mean = float(np.mean(x))
    if len(x) < _FEWEST:
        return Interval(mean, -math.inf, math.inf)
    half = student_quantile(1 - alpha / 2, len(x) - 1) * float(np.std(x, ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half)


def _critical(n: int, alpha: float) -> int:
    """How many of the sorted Walsh averages lie outside of the interval, on each side."""
    if n > _MANY:
        mean, variance = n * (n + 1) / 4, n * (n + 1) * (2 * n + 1) / 24
        return max(int(mean + NormalDist().inv_cdf(alpha / 2) * math.sqrt(variance) - 0.5), 0)
    cumulative = np.cumsum(_signed_rank(n))
    # The largest k for which P(W <= k) is at most alpha / 2.
    return int(np.searchsorted(cumulative, alpha / 2, side="right")) - 1


@functools.cache
def _signed_rank(n: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Probabilities of the signed-rank statistic of `n` observations under symmetry, by value."""
    p = np.ones(1)
    for rank in range(1, n + 1):
        p = (np.pad(p, (0, rank)) + np.pad(p, (rank, 0))) / 2
    return p


def student_quantile(p: float, df: int) -> float:
    """The quantile of Student's distribution, p above 0.5, by bisection on its distribution function."""
    low, high = 0.0, 1.0
    while _student_cdf(high, df) < p and high < 1e9:
        low, high = high, high * 2
    for _ in range(100):
        middle = (low + high) / 2
        if _student_cdf(middle, df) < p:
            low = middle
        else:
            high = middle
    return high


def _student_cdf(t: float, df: int) -> float:
    """P(T <= t) for t >= 0: the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    theta = math.atan2(t, math.sqrt(df))
    c, s = math.cos(theta), math.sin(theta)
    term = total = c if df % 2 else 1.0
    first = 3 if df % 2 else 2
    for k in range(first, df - 1, 2):
        term *= c * c * (k - 1) / k
        total += term
    if df == 1:
        total = 0.0
    return 0.5 + ((theta + s * total) / math.pi if df % 2 else s * total / 2)


def alpha_at(look: int, alpha: float, *, last: bool) -> float:
    """The share of the error rate `alpha` that an interval may use.

    Looking several times and stopping at the first difference would find one too often. So each look spends
    a part of `alpha`, and all parts together are no more than it.

    Args:
        look: which of the looks before the end, from 0.
        alpha: of the whole.
        last: it is the last one, which takes what is left.
    """
    return alpha * (1 - _EARLY_SHARE) if last else alpha * _EARLY_SHARE * 0.5 ** (look + 1)
