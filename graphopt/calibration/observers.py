"""Ranges from statistics: where a tensor's values are cut off, so that the rest is finer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

from graphopt.calibration.histogram import Histogram
from graphopt.calibration.statistics import AbsMax, MinMax, MovingMinMax
from graphopt.calibration.values import Array, Float64
from graphopt.quantization.grid import QuantType, grid_for_range

RangeMethod: TypeAlias = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: Final[tuple[str, ...]] = get_args(RangeMethod)

# Fractions of the full range that searches try, down to 1/181, and how closely they look around the best.
_COARSE: Final = 2.0 ** -(np.arange(16) / 2)
_FINE: Final = (
    2.0 ** (np.arange(-3, 4) / 8),
    2.0 ** (np.arange(-3, 4) / 32),
    2.0 ** (np.arange(-3, 4) / 128),
)
_ELEMENTS: Final = 1 << 14  # of candidates x bins, worked on at once
_MOST_BINS: Final = 8192


def range_of(
    statistic: Histogram | MinMax | MovingMinMax,
    method: RangeMethod,
    type: QuantType,
    *,
    symmetric: bool = False,
    percentile: float = 99.99,
    power_of_two: bool = False,
) -> tuple[Any, Any]:
    """The range to quantize a tensor to.

    Methods:
        minmax: all values; the moving averages of a MovingMinMax.
        percentile: that share of all values, cutting off as many on either side.
        entropy: least Kullback-Leibler divergence of the quantized from the true distribution (Migacz,
            "8-bit inference with TensorRT", GTC 2017).
        mse: least expected squared error, clipping and rounding together, which is the largest SQNR
            (Choukroun et al., "Low-bit quantization of neural networks for efficient inference", 2019,
            with any distribution in place of a parametric one).

    Args:
        statistic: what was observed; all methods but minmax need a Histogram.
        method: how to choose.
        type: integer type that the tensor will have.
        symmetric: the zero point will be in the middle; the range is then judged by its larger side.
        percentile: of method "percentile", in percent.
        power_of_two: the scale will be rounded up to a power of two.

    Returns:
        low, high: two floats; two arrays (channels,) when the statistic is per channel. (0, 0) without any
        finite value. 0 need not be within.

    Raises:
        ValueError: the method is unknown, needs a histogram, or the percentile is not in (0, 100].
    """
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; there are {', '.join(METHODS)}")
    if not 0 < percentile <= 100:
        raise ValueError(f"a percentile is above 0 and at most 100, not {percentile}")
    if method == "minmax":
        return _shaped(statistic, *_extremes(statistic))
    if not isinstance(statistic, Histogram):
        raise ValueError(f"the method {method!r} needs a histogram")
    choose: Callable[[Bins], tuple[float, float]]
    if method == "percentile":
        choose = lambda bins: by_percentile(bins, percentile, symmetric)  # noqa: E731
    elif method == "entropy":
        choose = lambda bins: by_entropy(bins, type, symmetric)  # noqa: E731
    else:
        choose = lambda bins: by_mse(bins, type, symmetric, power_of_two)  # noqa: E731
    chosen = [
        choose(Bins.of(statistic, c)) if statistic.used(c) else (0.0, 0.0) for c in range(statistic.channels)
    ]
    low, high = np.array(chosen, np.float64).reshape(-1, 2).T
    return _shaped(statistic, low, high)


def _extremes(statistic: Histogram | MinMax | MovingMinMax) -> tuple[Float64, Float64]:
    low, high = statistic.low.astype(np.float64), statistic.high.astype(np.float64)
    if isinstance(statistic, AbsMax):
        low, high = -statistic.values, statistic.values
    known = low <= high
    return np.where(known, low, 0.0), np.where(known, high, 0.0)


def _shaped(statistic: Histogram | MinMax | MovingMinMax, low: Float64, high: Float64) -> tuple[Any, Any]:
    if statistic.axis is not None:
        return low, high
    return (float(low[0]), float(high[0])) if len(low) else (0.0, 0.0)


@dataclass(frozen=True)
class Bins:
    """The distribution of one channel's values, in bins one of whose edges is 0.

    Attributes:
        edges: shape (n + 1,).
        counts: shape (n,), float64; zeros are not among them.
        zeros: number of zeros.
        low, high: least and largest value.
    """

    edges: Float64
    counts: Float64
    zeros: float
    low: float
    high: float

    @classmethod
    def of(cls, histogram: Histogram, channel: int = 0) -> Bins:
        """Of a channel that has values."""
        used = histogram.used(channel)
        counts = histogram.counts[channel, :used]
        first, exponent = int(histogram.first[channel]), int(histogram.exponents[channel])
        # Values far from 0 in a narrow range: wider bins, so that they reach 0.
        while max(first + used, 0) - min(first, 0) > max(_MOST_BINS, 4 * histogram.bins):
            start = first // 2
            index = (first + np.arange(used)) // 2 - start
            counts = np.bincount(index, weights=counts)
            first, used, exponent = start, len(counts), exponent + 1
        begin, end = min(first, 0), max(first + used, 0)
        padded = np.zeros(end - begin)
        padded[first - begin : first - begin + used] = counts
        edges = np.ldexp(np.arange(begin, end + 1, dtype=np.float64), exponent)
        low, high = float(histogram.low[channel]), float(histogram.high[channel])
        return cls(edges, padded, float(histogram.zeros[channel]), low, high)

    @property
    def zero(self) -> int:
        """Index of the edge that is 0."""
        return int(np.searchsorted(self.edges, 0.0))

    def folded(self) -> Bins:
        """The distribution of magnitudes."""
        z = self.zero
        right, left = self.counts[z:], self.counts[:z][::-1]
        n = max(len(right), len(left))
        counts = np.zeros(n)
        counts[: len(right)] += right
        counts[: len(left)] += left
        width = float(self.edges[1] - self.edges[0])
        return Bins(
            width * np.arange(n + 1, dtype=np.float64), counts, self.zeros, 0.0, max(-self.low, self.high)
        )

    def within(self, low: float, high: float) -> tuple[float, float]:
        """A range cut to where there are values."""
        low, high = (min(max(bound, self.low), self.high) for bound in (low, high))
        return low, max(low, high)


def by_percentile(bins: Bins, percentile: float, symmetric: bool) -> tuple[float, float]:
    """The range of the middle `percentile` percent of all values, interpolated in bins."""
    if symmetric:
        magnitude = _quantile(bins.folded(), percentile / 100, upper=True)
        return bins.within(-magnitude, magnitude)
    cut = (1 - percentile / 100) / 2
    return bins.within(_quantile(bins, cut, upper=False), _quantile(bins, 1 - cut, upper=True))


def _quantile(bins: Bins, q: float, *, upper: bool) -> float:
    """Where the cumulative distribution reaches q: the least such place, or (not `upper`) the largest."""
    z = bins.zero
    # Zeros are a step at 0.
    x = np.insert(bins.edges, z, 0.0)
    mass = np.concatenate([[0.0], np.cumsum(np.insert(bins.counts, z, bins.zeros))])
    target = q * mass[-1]
    if upper:
        i = int(np.searchsorted(mass, target * (1 - 1e-15), side="left"))
        i = min(max(i, 1), len(x) - 1)
    else:
        i = int(np.searchsorted(mass, target, side="right"))
        i = min(max(i, 1), len(x) - 1)
    step = mass[i] - mass[i - 1]
    share = (target - mass[i - 1]) / step if step else 0.0
    return float(x[i - 1] + min(max(share, 0.0), 1.0) * (x[i] - x[i - 1]))


def by_entropy(bins: Bins, type: QuantType, symmetric: bool) -> tuple[float, float]:
    """The range whose quantized distribution tells most about the true one.

    P is the distribution with what lies outside of the range added to its outermost bins. Q is that of the
    values inside of it, merged into one group of bins per quantized value, and spread evenly over those bins
    of each group in which P is not empty. Minimizes KL(P || Q). As in TensorRT, Q does not get what was
    clipped: that is what makes clipping cost anything. A range is out of question if P has mass in a group
    where Q has none. Zeros are left out: they are zeros in every range. With more quantized values than bins
    there is nothing to choose.
    """
    if symmetric:
        folded = bins.folded()
        groups = max(type.qmax if type.signed else type.levels // 2, 1)
        if groups >= len(folded.counts):
            return bins.low, bins.high
        ends = _ends(len(folded.counts), groups)
        best = int(np.argmin(_divergences(folded.counts, np.zeros_like(ends), ends, groups)))
        magnitude = float(folded.edges[ends[best]])
        return bins.within(-magnitude, magnitude)
    groups, z, n = type.levels + 1, bins.zero, len(bins.counts)
    if groups >= n:
        return bins.low, bins.high
    # A coarse look at pairs, then one side at a time while the other stays.
    shares = np.linspace(1, 0, 25)[:-1]
    pairs = np.stack(np.meshgrid(z - np.rint(shares * z), z + np.rint(shares * (n - z))), -1).astype(np.intp)
    pairs = np.unique(pairs.reshape(-1, 2), axis=0)
    wide = pairs[:, 1] - pairs[:, 0] >= min(groups, n)
    pairs = pairs[wide]
    start, end = map(int, pairs[np.argmin(_divergences(bins.counts, pairs[:, 0], pairs[:, 1], groups))])
    for _ in range(3):
        before = (start, end)
        if end > z:
            ends = z + _ends(n - z, max(1, groups - (z - start)))
            end = int(ends[np.argmin(_divergences(bins.counts, np.full_like(ends, start), ends, groups))])
        if start < z:
            starts = z - _ends(z, max(1, groups - (end - z)))
            start = int(
                starts[np.argmin(_divergences(bins.counts, starts, np.full_like(starts, end), groups))]
            )
        if (start, end) == before:
            break
    return bins.within(float(bins.edges[start]), float(bins.edges[end]))


def _ends(bins: int, least: int) -> Array:
    """Numbers of bins to try, the largest first: at most 256 of them, from `least` to `bins`."""
    return np.unique(np.linspace(min(least, bins), bins, 256).astype(np.intp))[::-1]


def _divergences(counts: Float64, starts: Array, ends: Array, groups: int) -> Float64:
    """KL(P || Q) for each range [start, end) of bins, in groups of as equal size as possible."""
    present = (counts > 0).astype(np.float64)
    logs = counts * np.log(np.maximum(counts, 1.0))
    mass, support, plogp = (np.concatenate([[0.0], np.cumsum(terms)]) for terms in (counts, present, logs))
    step = max(1, _ELEMENTS // (groups + 1))
    parts = [slice(i, i + step) for i in range(0, len(starts), step)]
    return np.concatenate(
        [_divergence(counts, mass, support, plogp, starts[p], ends[p], groups) for p in parts]
    )


def _divergence(
    counts: Float64, mass: Float64, support: Float64, plogp: Float64, starts: Array, ends: Array, groups: int
) -> Float64:
    total = mass[-1]
    lengths = ends - starts
    # A range of fewer bins than groups loses nothing: its groups are single bins.
    used = np.minimum(groups, lengths)
    steps = np.arange(groups + 1)
    cuts = starts[:, None] + np.minimum(steps, used[:, None]) * lengths[:, None] // used[:, None]
    inside = np.diff(mass[cuts], axis=1)
    bins = np.diff(support[cuts], axis=1)
    reference = inside.copy()
    first, last = starts, ends - 1
    below, above = mass[starts], total - mass[ends]
    plog = plogp[ends] - plogp[starts]
    rows = np.arange(len(starts))
    already = np.where(first == last, below, 0.0)
    for at, column, had, extra in ((first, 0 * used, 0 * already, below), (last, used - 1, already, above)):
        # The outermost bin of P is not empty once clipped mass was added to it.
        bins[rows, column] += (counts[at] == 0) & (extra > 0)
        reference[rows, column] += extra
        own = counts[at] + had
        grown = own + extra
        plog += grown * np.log(np.maximum(grown, 1.0)) - own * np.log(np.maximum(own, 1.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        qlog = np.where(reference > 0, reference * np.log(inside / bins), 0.0).sum(axis=1)
        # sum p log(p / q) with p = P / total and q = Q / sum(Q)
        divergence = (plog - qlog) / total - np.log(total) + np.log(mass[ends] - mass[starts])
    return np.where(np.isfinite(divergence), divergence, math.inf)


def by_mse(bins: Bins, type: QuantType, symmetric: bool, power_of_two: bool = False) -> tuple[float, float]:
    """The range with the least expected squared error of quantization.

    Values are taken as spread evenly within their bin; the error of that is integrated exactly, so that
    bins need not be much narrower than quantization steps. Never worse than the full range.
    """
    low, high = min(bins.low, 0.0), max(bins.high, 0.0)
    if low == high:
        return bins.low, bins.high
    filled = np.flatnonzero(bins.counts)
    used = np.union1d(filled, filled + 1)
    left, right = np.searchsorted(used, filled), np.searchsorted(used, filled + 1)
    edges, density = bins.edges[used], bins.counts[filled] / (bins.edges[filled + 1] - bins.edges[filled])

    def errors(lows: Float64, highs: Float64) -> Float64:
        grid = grid_for_range(lows, highs, type, symmetric=symmetric, power_of_two=power_of_two, axis=0)
        zero = grid.zero_points().astype(np.float64)
        scale = grid.scale.astype(np.float64)
        bottoms, tops = (type.qmin - zero) * scale, (type.qmax - zero) * scale
        step = max(1, _ELEMENTS // max(len(edges), 1))
        found = []
        for i in range(0, len(lows), step):
            part = slice(i, i + step)
            integral = _error_integral(edges, scale[part, None], bottoms[part, None], tops[part, None])
            found.append((integral[:, right] - integral[:, left]) @ density)
        return np.concatenate(found)

    if symmetric:
        bound = max(-low, high)

        def search(fractions: Float64) -> float:
            magnitudes = bound * np.minimum(fractions, 1.0)
            lows, highs = np.maximum(-magnitudes, low), np.minimum(magnitudes, high)
            return float(min(fractions[np.argmin(errors(lows, highs))], 1.0))

        best = search(_COARSE)
        for fine in _FINE:
            best = search(best * fine[::-1])
        return bins.within(-best * bound, best * bound)

    a = b = 1.0
    for near in (None, *_FINE):
        first = _COARSE if near is None else np.minimum(a * near, 1.0)[::-1]
        second = _COARSE if near is None else np.minimum(b * near, 1.0)[::-1]
        pairs_a, pairs_b = np.meshgrid(first if low else first[:1], second if high else second[:1])
        at = int(np.argmin(errors(low * pairs_a.reshape(-1), high * pairs_b.reshape(-1))))
        a, b = float(pairs_a.reshape(-1)[at]), float(pairs_b.reshape(-1)[at])
    return bins.within(low * a, high * b)


def _error_integral(x: Float64, scale: Float64, bottom: Float64, top: Float64) -> Float64:
    """Integral of (u - quantized u)^2 over u from 0 to x, for grids that span bottom..top and hold 0."""
    inside = np.clip(x, bottom, top)
    steps = inside / scale
    whole = np.rint(steps)
    steps -= whole
    beyond = x - inside
    rounding = scale**3 * (whole / 12 + steps * steps * steps / 3)
    return np.asarray(rounding + beyond * beyond * beyond / 3)
