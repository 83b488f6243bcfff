"""Metrics and verdicts on plain arrays."""

import math

import ml_dtypes
import numpy as np
import pytest

from graphopt.budget import Budget
from graphopt.validation.compare import Level, Pointed, Tolerance, compare_outputs, judge
from graphopt.validation.metrics import bit_equal, leaves, measure, scale_of

F = np.float32


def test_metrics_of_a_known_difference() -> None:
    a = np.array([[3.0, 4.0], [0.0, 1.0]], F)
    b = np.array([[3.0, 4.5], [2.0, 1.0]], F)
    m = measure(a, b)
    assert m.max_abs == 2.0
    assert m.worst_index == 2
    assert m.differing == 2
    assert m.rms == pytest.approx(math.sqrt(26 / 4))
    assert m.sqnr_db == pytest.approx(10 * math.log10(26 / 4.25))
    assert m.cosine == pytest.approx(28 / math.sqrt(26 * (9 + 20.25 + 4 + 1)))
    assert m.argmax_agreement == 0.5
    assert m.same_pattern
    assert not m.bit_equal


def test_bits() -> None:
    zero, nan = np.array([0.0], F), np.array([np.nan], F)
    assert not bit_equal(zero, -zero)
    assert bit_equal(nan, -nan)
    assert not bit_equal(nan, zero)
    assert not bit_equal(zero, zero.astype(np.float64))
    for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, np.float16, np.complex64):
        x = np.array([1, 2, 0]).astype(dtype)
        assert bit_equal(x, x.copy())
        assert not bit_equal(x, np.array([1, 3, 0]).astype(dtype))


def test_many_values_are_compared_in_blocks() -> None:
    a = np.zeros(700_000, F)
    b = a.copy()
    b[650_000] = 1
    assert measure(a, b).worst_index == 650_000
    b[650_000] = np.nan
    assert not measure(a, b).same_pattern
    b[650_000] = -0.0
    assert not bit_equal(a, b)


def test_large_integers_that_float64_cannot_tell_apart() -> None:
    a = np.array([2**60], np.int64)
    verdict = judge("y", a, a + 1, Level.CLOSE, Tolerance())
    assert not verdict.ok
    assert judge("y", a, a.copy(), Level.CLOSE, Tolerance()).ok


def test_infinities_stand_at_the_same_places() -> None:
    a = np.array([np.inf, -np.inf, 1], F)
    assert judge("y", a, a.copy(), Level.CLOSE, Tolerance(1e-6)).ok
    assert not judge("y", a, -a, Level.CLOSE, Tolerance(1e6)).ok


def test_close_is_eight_floors() -> None:
    a = np.ones(4, F)
    assert judge("y", a, a + F(0.75), Level.CLOSE, Tolerance(0.1)).ok
    verdict = judge("y", a, a + F(0.875), Level.CLOSE, Tolerance(0.1))
    assert not verdict.ok
    assert verdict.used == pytest.approx(0.875 / 0.8)
    assert verdict.limit == pytest.approx(0.8)


def test_fill_values_do_not_set_the_scale() -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(F)
    x[::3] = -3.4e38
    scale = scale_of(x)
    assert scale.rms == pytest.approx(1, rel=0.1)
    tolerance = Tolerance(1e-6 * scale.rms, scale.cut, 2.0**-23)
    y = x.copy()
    y[::3] = np.nextafter(y[::3], F(0))
    assert judge("y", x, y, Level.CLOSE, tolerance).ok
    y[1] += F(1e-3)
    assert not judge("y", x, y, Level.CLOSE, tolerance).ok
    assert scale_of(np.full(10, 1e6, F)).rms == pytest.approx(1e6)


def test_dtype_and_shape_are_part_of_the_value() -> None:
    a = np.ones((2, 3), F)
    assert "dtype" in judge("y", a, a.astype(np.float64), Level.LOSSY, Tolerance()).reason
    assert "shape" in judge("y", a, a.T, Level.LOSSY, Tolerance()).reason


def test_ties() -> None:
    values = np.array([[1.0, 5.0, 5.0 + 1e-7, 2.0]], F)
    pointed = {"i": Pointed("axis", values, 1, Tolerance(1e-6))}
    one, two, three = ({"i": np.array([[k]])} for k in (1, 2, 3))
    assert compare_outputs(one, two, Level.CLOSE, None, pointed)[0].ok
    assert not compare_outputs(one, three, Level.CLOSE, None, pointed)[0].ok
    assert not compare_outputs(one, two, Level.EXACT, None, pointed)[0].ok
    out_of_range = {"i": np.array([[9]])}
    assert not compare_outputs(one, out_of_range, Level.CLOSE, None, pointed)[0].ok
    pair, swapped, twice = ({"i": np.array([k])} for k in ([1, 2], [2, 1], [1, 1]))
    assert compare_outputs(pair, swapped, Level.CLOSE, None, pointed)[0].ok
    assert not compare_outputs(pair, twice, Level.CLOSE, None, pointed)[0].ok


def test_boxes_of_equal_scores_may_swap() -> None:
    scores = np.array([[[0.9, 0.5, 0.5, 0.1]]], F)
    pointed = {"s": Pointed("boxes", scores, 0, Tolerance(1e-6))}
    a, b, c = ({"s": np.array([[0, 0, 0], [0, 0, k]])} for k in (1, 2, 3))
    assert compare_outputs(a, b, Level.CLOSE, None, pointed)[0].ok
    assert not compare_outputs(a, c, Level.CLOSE, None, pointed)[0].ok


def test_budgets() -> None:
    a = np.array([1.0, 0.0], F)
    b = np.array([1.0, 0.3], F)
    assert judge("y", a, b, Level.LOSSY, Tolerance(), None, None).ok
    assert "cosine" in judge("y", a, b, Level.LOSSY, Tolerance(), None, Budget(0.99, None)).reason
    assert "SQNR" in judge("y", a, b, Level.LOSSY, Tolerance(), None, Budget(None, 15)).reason
    assert judge("y", a, b, Level.LOSSY, Tolerance(), None, Budget(0.9, 10)).ok
    assert not judge("y", a, np.zeros(2, F), Level.LOSSY, Tolerance(), None, Budget()).ok


def test_structures() -> None:
    a = {"y": [np.ones(2), np.zeros(3)], "z": None, "m": {1: 0.5, 2: 0.25}}
    assert all(v.ok for v in compare_outputs(a, a, Level.EXACT))
    assert set(leaves("y", a["y"])) == {"y[0]", "y[1]"}
    assert not all(v.ok for v in compare_outputs(a, {**a, "y": [np.ones(2)]}, Level.CLOSE))
    assert not all(v.ok for v in compare_outputs(a, {**a, "z": np.ones(1)}, Level.CLOSE))
    assert not all(v.ok for v in compare_outputs(a, {**a, "m": {1: 0.5, 3: 0.25}}, Level.CLOSE))


def test_strings() -> None:
    a, b = np.array(["a", "b"], object), np.array(["a", "c"], object)
    assert judge("y", a, a.copy(), Level.EXACT, Tolerance()).ok
    verdict = judge("y", a, b, Level.CLOSE, Tolerance())
    assert not verdict.ok
    assert "strings differ (first at [1])" in verdict.reason


def test_levels_are_recognised_by_name() -> None:
    import enum

    class Other(enum.Enum):
        EXACT = 1

    assert Level.of("close") is Level.CLOSE
    assert Level.of(Other.EXACT) is Level.EXACT
    with pytest.raises(ValueError, match="numerics"):
        Level.of("sloppy")
