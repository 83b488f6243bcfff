"""Histograms that stream, and that merge to the same bits in any order.

Bins are [k w, (k + 1) w) for integers k, with a width w = 2**e. The exponent e is the least for which the
values seen so far span at most `bins` bins, and for which the largest value is below 2**24 w (float32 cannot
tell finer bins apart). Why the state depends on the values alone, not on their order or grouping:

- e depends on nothing but the least and the largest value. More values can only widen the span, so that e
  never falls; and a width that suffices stays sufficient when it is doubled, for any number of bins >= 2.
- floor(floor(x / w) / 2) = floor(x / (2 w)): joining bins 2k and 2k + 1 gives exactly the bins, and the
  counts, that the doubled width would have given from the start.
- Scaling by a power of two does not round, so a value's bin is exact.

Zeros are counted apart: after a Relu they are most of the values, and every quantization represents them
without error. Values that are not finite are counted apart as well.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final, Self

import numpy as np

from graphopt.calibration.values import BLOCK, Array, Float32, Float64, Int64, extremes, rows_of

_MANTISSA: Final = 24
_LEAST_EXPONENT: Final = -120  # 2**-e must be a normal float32
_MOST_SHIFT: Final = 62


class Histogram:
    """Counts of values in at most `bins` bins, for the whole tensor or for each channel.

    An update costs some 3 ns per value. Memory: 8 * bins bytes per channel.

    Args:
        bins: most bins; at least half of them are used unless the values are few float32 steps apart.
        axis: the channels' axis; None for one histogram of all values.

    Attributes:
        low, high: least and largest finite value per channel, shape (channels,); inf and -inf without any.
        exponents: e of each channel.
        first: k of each channel's first bin.
        counts: shape (channels, bins); bin j of channel c is number first[c] + j. Without zeros.
        zeros: zeros per channel.
        nans, infinities: values that are not finite, all channels together.
    """

    #: The result has the same bits however the data is divided.
    exact = True

    def __init__(self, bins: int = 2048, axis: int | None = None) -> None:
        if bins < 2:
            raise ValueError(f"a histogram needs at least 2 bins, not {bins}")
        self.bins, self.axis = bins, axis
        self.nans = self.infinities = 0
        self.low: Float32 = np.zeros(0, np.float32)
        self.high: Float32 = np.zeros(0, np.float32)
        self.exponents: Int64 = np.zeros(0, np.int64)
        self.first: Int64 = np.zeros(0, np.int64)
        self.zeros: Int64 = np.zeros(0, np.int64)
        self.counts: Int64 = np.zeros((0, bins), np.int64)
        if axis is None:
            self._start(1)

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("Histogram", self.bins, self.axis)

    @property
    def channels(self) -> int:
        """How many histograms; 0 before the first update of a histogram per channel."""
        return len(self.low)

    @property
    def count(self) -> Int64:
        """Finite values per channel, zeros included."""
        return np.asarray(self.counts.sum(axis=1) + self.zeros)

    @property
    def nbytes(self) -> int:
        """About how much memory this takes."""
        return self.counts.nbytes + 40 * self.channels

    def fresh(self) -> Histogram:
        """An empty histogram with the same settings."""
        return Histogram(self.bins, self.axis)

    def update(self, *values: Array) -> None:
        """Take in one batch of one or more tensors.

        Raises:
            ValueError: there is no such axis, or its size differs from before.
        """
        for value in values:
            rows = rows_of(value, self.axis)
            if rows.size:
                self._update(rows)

    def merge(self, other: Self) -> None:
        """Take in what another histogram has counted."""
        if other.key != self.key:
            raise ValueError(f"{other.key} does not merge into {self.key}")
        self.nans += other.nans
        self.infinities += other.infinities
        if not other.channels:
            return
        self._widen(other.low, other.high)
        bins = _rebin(other.counts, other.exponents, other.first, self.exponents, self.first)
        self.counts += bins
        self.zeros += other.zeros

    def edges(self, channel: int = 0) -> Float64:
        """The edges of the bins in use, shape (n + 1,); the first and last bin may reach past the values."""
        numbers = np.arange(self.used(channel) + 1, dtype=np.float64) + float(self.first[channel])
        return np.asarray(np.ldexp(numbers, int(self.exponents[channel])))

    def used(self, channel: int = 0) -> int:
        """How many bins a channel spans; 0 while it has no values."""
        if not self.low[channel] <= self.high[channel]:
            return 0
        return (
            int(np.floor(np.ldexp(float(self.high[channel]), -int(self.exponents[channel]))))
            + 1
            - int(self.first[channel])
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain numbers; bins that are empty at the end are left out."""
        return {
            "bins": self.bins,
            "axis": self.axis,
            "nans": self.nans,
            "infinities": self.infinities,
            "channels": [
                {
                    "min": float(self.low[c]),
                    "max": float(self.high[c]),
                    "exponent": int(self.exponents[c]),
                    "first": int(self.first[c]),
                    "zeros": int(self.zeros[c]),
                    "counts": self.counts[c, : self.used(c)].tolist(),
                }
                if self.used(c)
                else None
                for c in range(self.channels)
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Histogram:
        """The inverse of `to_json`.

        Raises:
            ValueError, KeyError, TypeError: this is no histogram.
        """
        result = cls(int(data["bins"]), data["axis"])
        result.nans, result.infinities = int(data["nans"]), int(data["infinities"])
        channels = data["channels"]
        if result.axis is None and len(channels) != 1:
            raise ValueError("a histogram without an axis has one channel")
        result._start(len(channels))
        for c, channel in enumerate(channels):
            if channel is None:
                continue
            result.low[c], result.high[c] = channel["min"], channel["max"]
            result.exponents[c], result.first[c] = channel["exponent"], channel["first"]
            result.zeros[c] = channel["zeros"]
            counts = np.asarray(channel["counts"], np.int64)
            if counts.shape != (result.used(c),) or len(counts) > result.bins or (counts < 0).any():
                raise ValueError(f"{len(counts)} bins do not span {channel['min']} to {channel['max']}")
            result.counts[c, : len(counts)] = counts
        wanted = _exponents(result.low, result.high, result.bins)
        if not np.array_equal(wanted, result.exponents) or not np.array_equal(
            result.first, _bin_of(result.low, wanted)
        ):
            raise ValueError("the bins are not those of the values' range")
        return result

    def _start(self, channels: int) -> None:
        self.low = np.full(channels, np.inf, np.float32)
        self.high = np.full(channels, -np.inf, np.float32)
        self.exponents = np.full(channels, _LEAST_EXPONENT, np.int64)
        self.first = np.zeros(channels, np.int64)
        self.zeros = np.zeros(channels, np.int64)
        self.counts = np.zeros((channels, self.bins), np.int64)

    def _update(self, rows: Float32) -> None:
        low, high, finite = extremes(rows)
        self._widen(low, high)
        if finite is not None:
            nans = int(np.isnan(rows).sum())
            self.nans += nans
            self.infinities += int(finite.size - finite.sum()) - nans
            for c in range(self.channels):
                values = rows[c][finite[c]]
                if values.size:
                    self._count(values.reshape(1, -1), slice(c, c + 1))
            return
        per = max(1, BLOCK // rows.shape[1])
        for c in range(0, self.channels, per):
            self._count(rows[c : c + per], slice(c, c + per))

    def _count(self, rows: Float32, which: slice) -> None:
        """Count the finite values of some channels, which lie within those channels' bins."""
        exponents, first = self.exponents[which], self.first[which].astype(np.float32)
        # Where float32 cannot hold the scaled value: a negative one that becomes -0 would be in bin 0.
        shrinks = (exponents > 0).any() and (self.low[which] < 0).any()
        exact = np.float64 if shrinks or (exponents > -_LEAST_EXPONENT).any() else np.float32
        scale = np.ldexp(exact(1), -exponents)
        width = max(1, BLOCK // len(rows))
        offsets = self.bins * np.arange(len(rows), dtype=np.intp)[:, None]
        room = self.bins * len(rows)
        single = len(rows) == 1
        scale, first = (scale[0], first[0]) if single else (scale[:, None], first[:, None])
        total = self.counts[which].reshape(-1)  # a view: rows of a slice are contiguous
        for start in range(0, rows.shape[1], width):
            block = rows[:, start : start + width]
            numbers = block * scale
            np.floor(numbers, out=numbers)
            numbers -= first
            index = numbers.astype(np.intp)
            if not single:
                index += offsets
            total += np.bincount(index.reshape(-1), minlength=room)
            isnt = block != 0
            zeros = block.shape[1] - (
                np.array([np.count_nonzero(isnt)]) if single else np.count_nonzero(isnt, axis=1)
            )
            if zeros.any():
                self.zeros[which] += zeros
                at = np.flatnonzero(zeros)
                self.counts[which.start + at, -self.first[which][at]] -= zeros[at]

    def _widen(self, low: Float32, high: Float32) -> None:
        """Make the bins those of a range that includes these as well."""
        if not self.channels:
            self._start(len(low))
        if len(low) != self.channels:
            raise ValueError(f"{len(low)} channels where there were {self.channels} before")
        low, high = np.minimum(self.low, low), np.maximum(self.high, high)
        if np.array_equal(low, self.low) and np.array_equal(high, self.high):
            return
        exponents = _exponents(low, high, self.bins)
        first = _bin_of(low, exponents)
        changed = np.flatnonzero((exponents != self.exponents) | (first != self.first))
        if changed.size:
            self.counts[changed] = _rebin(
                self.counts[changed],
                self.exponents[changed],
                self.first[changed],
                exponents[changed],
                first[changed],
            )
        self.low, self.high, self.exponents, self.first = low, high, exponents, first


def _exponents(low: Float32, high: Float32, bins: int) -> Int64:
    """The least width, as an exponent, by which each range takes at most `bins` bins."""
    known = low <= high
    lows, highs = np.where(known, low, 0).astype(np.float64), np.where(known, high, 0).astype(np.float64)
    largest = np.maximum(np.abs(lows), np.abs(highs))
    # With any smaller exponent the span alone, without regard to where bins begin, takes too many.
    spans = highs - lows
    least = np.where(spans > 0, np.frexp(spans / bins)[1].astype(np.int64) - 2, _LEAST_EXPONENT)
    least = np.maximum(least, np.frexp(largest)[1].astype(np.int64) - _MANTISSA)
    exponents = np.maximum(least, _LEAST_EXPONENT)
    while True:
        used = _bin_of(highs, exponents) - _bin_of(lows, exponents) + 1
        if (used <= bins).all():
            return np.where(known & (largest > 0), exponents, _LEAST_EXPONENT)
        exponents = exponents + (used > bins)


def _bin_of(values: Float32 | Float64, exponents: Int64) -> Int64:
    """Number of the bin that each value lies in; 0 for what is not finite."""
    values = np.where(np.isfinite(values), values, 0).astype(np.float64)
    return np.asarray(np.floor(np.ldexp(values, -exponents)).astype(np.int64))


def _rebin(counts: Int64, exponents: Int64, first: Int64, to_exponents: Int64, to_first: Int64) -> Int64:
    """The same counts in bins of a width that is at least as large, of a range that includes this one."""
    channels, bins = counts.shape
    shift = np.minimum(to_exponents - exponents, _MOST_SHIFT)[:, None]
    numbers = (first[:, None] + np.arange(bins)) >> shift
    target = numbers - to_first[:, None]
    # Bins beyond the range hold nothing.
    target = np.clip(target, 0, bins - 1) + bins * np.arange(channels)[:, None]
    result = np.zeros(channels * bins, np.int64)
    np.add.at(result, target.reshape(-1), counts.reshape(-1))
    return result.reshape(channels, bins)
