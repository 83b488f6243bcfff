from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.calibration.statistics import (
    AbsMax,
    CrossGram,
    Gram,
    MeanDifference,
    MinMax,
    Moments,
    MovingMinMax,
)

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def halves(value):
    value[: len(value) // 2, :] = 0
    return value


def feed(statistic, *batches):
    for batch in batches:
        statistic.update(batch)
    return statistic


def merged(statistic, *batches):
    for batch in batches:
        statistic.merge(feed(statistic.fresh(), batch))
    return statistic


@settings(max_examples=100, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=50), st.integers(1, 5), st.randoms())
def test_moments_are_exact_in_any_order(items, batches, random):
    exact = sum(map(Fraction, items))
    squares = sum(Fraction(x) ** 2 for x in items)
    random.shuffle(items)
    parts = np.array_split(np.array(items, np.float32), batches)
    for moments in (feed(Moments(), *parts), merged(Moments(), *parts)):
        assert Fraction(float(moments.sum[0])) == Fraction(float(exact))
        assert moments.sum_of_squares[0] == float(squares)
        assert moments.count[0] == len(items)


def test_moments_per_channel():
    x = np.random.default_rng(0).normal(2, 3, (7, 5, 11)).astype(np.float32)
    moments = merged(Moments(axis=1), x[:3], x[3:])
    np.testing.assert_allclose(moments.mean, x.mean(axis=(0, 2), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(moments.var, x.astype(np.float64).var(axis=(0, 2)), rtol=1e-9)


def test_moments_of_many_values():
    x = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
    moments = feed(Moments(), x)
    assert moments.sum[0] == float(sum(map(Fraction, x.tolist())))


def test_min_max():
    x = np.array([[1.0, -2, np.nan], [np.inf, 5, -7]], np.float32)
    assert (feed(MinMax(), x).low.tolist(), feed(MinMax(), x).high.tolist()) == ([-7], [5])
    per = merged(MinMax(axis=-1), x[:1], x[1:])
    assert per.low.tolist() == [1, -2, -7]
    assert per.high.tolist() == [1, 5, -7]
    assert (per.count, per.nonfinite) == (4, 2)
    assert feed(AbsMax(axis=1), x).values.tolist() == [1, 5, 7]


def test_empty_values_and_channels_without_any():
    minmax = feed(MinMax(), np.zeros((0, 3)))
    assert minmax.count == 0
    absmax = feed(AbsMax(axis=0), np.array([[np.nan], [2.0]]))
    assert absmax.values.tolist() == [0, 2]
    assert feed(Moments(axis=0), np.zeros((2, 0))).mean.tolist() == [0, 0]


def test_moving_averages():
    moving = feed(MovingMinMax(0.5), np.array([0.0, 4.0]), np.array([2.0, 8.0]))
    assert (moving.low.tolist(), moving.high.tolist()) == ([1], [6])
    other = feed(MovingMinMax(0.5), np.array([-2.0, 0.0]))
    moving.merge(other)
    assert moving.low[0] == pytest.approx(0)
    assert moving.high[0] == pytest.approx(4)
    assert moving.count == 3
    with pytest.raises(ValueError, match="momentum"):
        MovingMinMax(1.0)


def test_mean_difference():
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(6, 3, 4)).astype(np.float32)
    student = teacher + np.array([1, 0, -0.5], np.float32)[:, None]
    whole, a, b = MeanDifference(axis=1), MeanDifference(axis=1), MeanDifference(axis=1)
    whole.update(student, teacher)
    a.update(student[:2], teacher[:2])
    b.update(student[2:], teacher[2:])
    b.merge(a)
    np.testing.assert_array_equal(b.mean, whole.mean)
    np.testing.assert_allclose(whole.mean, [1, 0, -0.5], atol=1e-6)
    with pytest.raises(ValueError, match="shape"):
        whole.update(student, teacher[:2])


def test_a_pair_with_a_nan_is_left_out():
    difference = MeanDifference()
    difference.update(np.array([1.0, np.nan, 3.0]), np.array([0.0, 100.0, 3.0]))
    assert difference.mean[0] == 0.5
    assert difference.count[0] == 2


def test_gram():
    x = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
    gram = merged(Gram(), x[:2], x[2:])
    rows = x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(gram.matrix, rows.T @ rows, rtol=1e-12)
    assert gram.count == 35


def blocks_of_two(value):
    yield value[:, :2]
    yield value[:, 2:4]


def test_rows_may_come_in_blocks():
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    gram = feed(Gram(blocks_of_two), x)
    rows = np.concatenate([x[:, :2], x[:, 2:]]).astype(np.float64)
    np.testing.assert_array_equal(gram.matrix, rows.T @ rows)


def test_cross_gram():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9, 4)).astype(np.float32)
    y[3, 1] = np.nan
    a, b = CrossGram(), CrossGram()
    a.update(x[:4], y[:4])
    b.update(x[4:], y[4:])
    a.merge(b)
    keep = np.arange(9) != 3
    np.testing.assert_allclose(a.xy, x[keep].astype(np.float64).T @ y[keep].astype(np.float64), rtol=1e-12)
    np.testing.assert_allclose(a.yy, y[keep].astype(np.float64).T @ y[keep].astype(np.float64), rtol=1e-12)
    assert (a.count, a.nonfinite) == (8, 1)
    with pytest.raises(ValueError, match="rows"):
        a.update(x[:4], y[:3])


def test_keys_tell_settings_apart():
    keys = [s.key for s in (MinMax(), MinMax(1), AbsMax(), AbsMax(1), MovingMinMax(), MovingMinMax(0.5))]
    keys += [s.key for s in (Moments(), Moments(0), Gram(), Gram(halves), CrossGram(), CrossGram(halves))]
    assert len(set(keys)) == len(keys)
    assert hash(Gram(halves).key) == hash(Gram(halves).fresh().key)
    for statistic in (MinMax(0), AbsMax(0), Moments(0), MeanDifference(0), Gram(), CrossGram()):
        with pytest.raises(ValueError, match="merge"):
            statistic.merge(MovingMinMax())
