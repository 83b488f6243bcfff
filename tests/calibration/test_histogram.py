import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.calibration.histogram import Histogram

WIDE = st.floats(width=32, allow_nan=True, allow_infinity=True)
USUAL = st.one_of(st.just(0.0), st.floats(-8, 8, width=32), st.floats(-1000, 1000, width=32))


def of(values, bins=64, axis=None, batches=1):
    histogram = Histogram(bins, axis)
    for part in np.array_split(values, batches):
        histogram.update(part)
    return histogram


def state(histogram):
    return json.dumps(histogram.to_json())


def by_hand(values, histogram):
    """Counts in exact arithmetic."""
    width = Fraction(2) ** int(histogram.exponents[0])
    counts = np.zeros(histogram.bins, np.int64)
    for v in values[np.isfinite(values) & (values != 0)]:
        counts[int(Fraction(float(v)) // width) - int(histogram.first[0])] += 1
    return counts


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(WIDE, USUAL), max_size=60), st.integers(1, 6), st.integers(2, 70), st.randoms())
def test_any_order_and_grouping_gives_the_same_bits(items, batches, bins, random):
    values = np.array(items, np.float32)
    whole = of(values, bins)
    random.shuffle(items)
    parts = np.array_split(np.array(items, np.float32), batches)
    random.shuffle(parts)
    one_by_one, merged = Histogram(bins), Histogram(bins)
    for part in parts:
        one_by_one.update(part)
        merged.merge(of(part, bins))
    assert state(one_by_one) == state(merged) == state(whole)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(WIDE, USUAL), min_size=1, max_size=40), st.integers(2, 70))
def test_counts_are_those_of_exact_arithmetic(items, bins):
    values = np.array(items, np.float32)
    histogram = of(values, bins)
    np.testing.assert_array_equal(histogram.counts[0], by_hand(values, histogram))
    assert histogram.zeros[0] == np.count_nonzero(values == 0)
    assert histogram.nans == np.isnan(values).sum()
    assert histogram.infinities == np.isinf(values).sum()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(WIDE, USUAL, USUAL), min_size=1, max_size=20), st.integers(1, 5), st.integers(2, 20)
)
def test_each_channel_is_a_histogram_of_its_own(items, batches, bins):
    values = np.array(items, np.float32)
    together = of(values, bins, axis=1, batches=batches)
    for c in range(3):
        alone = of(values[:, c], bins)
        assert together.to_json()["channels"][c] == alone.to_json()["channels"][0]


def test_the_width_is_the_least_that_suffices():
    histogram = of(np.linspace(-1, 1, 1000), bins=64)
    assert histogram.exponents[0] == -4  # 33 bins: 1 itself begins a bin
    assert histogram.used() == 33
    assert histogram.edges()[0] == -1


def test_large_arrays_are_counted_in_blocks():
    values = np.random.default_rng(0).normal(size=(3, 5, 40_001)).astype(np.float32)
    values[values < -0.5] = 0
    histogram = of(values, bins=2048)
    expected, _ = np.histogram(values[values != 0].astype(np.float64), histogram.edges())
    np.testing.assert_array_equal(histogram.counts[0, : histogram.used()], expected)
    assert histogram.count[0] == values.size
    channels = of(values, bins=256, axis=1)
    for c in range(5):
        assert channels.to_json()["channels"][c] == of(values[:, c], bins=256).to_json()["channels"][0]


def test_more_than_half_of_the_bins_are_used():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        histogram = of(rng.normal(rng.normal() * 3, np.exp(rng.normal() * 3), 1000), bins=128)
        assert 64 <= histogram.used() <= 128


def test_constant_and_empty_values():
    histogram = of(np.full(10, 3.5))
    assert histogram.used() == 1
    assert histogram.counts[0, 0] == 10
    assert histogram.edges()[0] <= 3.5 < histogram.edges()[1]
    nothing = of(np.zeros((0, 4)))
    assert nothing.used() == 0
    assert nothing.count.tolist() == [0]
    nothing.merge(histogram)
    assert state(nothing) == state(histogram)


def test_zeros_are_counted_apart():
    histogram = of(np.array([0.0, -0.0, 0.0, 1.0, 2.0]))
    assert histogram.zeros[0] == 3
    assert histogram.counts.sum() == 2


def test_integers_and_halves_count_as_float32():
    for dtype in (np.int64, np.uint8, np.float16, np.float64, bool):
        assert of(np.array([0, 1, 1], dtype)).low[0] == 0
    with pytest.raises(TypeError):
        of(np.array(["a"]))


def test_json_is_lossless():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(50, 4)).astype(np.float32)
    values[:, 2] = np.nan
    for axis in (None, 1):
        histogram = of(values, axis=axis)
        again = Histogram.from_json(json.loads(state(histogram)))
        assert state(again) == state(histogram)
        again.update(values * 3)
        histogram.update(values * 3)
        assert state(again) == state(histogram)


@pytest.mark.parametrize(
    ("field", "value"), [("exponent", -3), ("first", 1), ("counts", [1]), ("max", 100.0)]
)
def test_json_that_contradicts_itself_is_refused(field, value):
    data = of(np.linspace(-1, 1, 100)).to_json()
    data["channels"][0][field] = value
    with pytest.raises(ValueError, match="bins"):
        Histogram.from_json(data)


def test_what_does_not_fit_together():
    with pytest.raises(ValueError, match="merge"):
        Histogram(64).merge(Histogram(32))
    histogram = of(np.ones((2, 3)), axis=1)
    with pytest.raises(ValueError, match="4 channels"):
        histogram.update(np.ones((2, 4)))
    with pytest.raises(ValueError, match="axis"):
        histogram.update(np.ones(3))
    with pytest.raises(ValueError, match="at least 2"):
        Histogram(1)
