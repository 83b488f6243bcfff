"""Limits of the user's: |a - b| <= atol + rtol * |a|, per output."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graphopt.validation.compare import Level, Tolerance
from graphopt.validation.standard import Bound, Standard, judge_bound

RNG = np.random.default_rng(4)


@pytest.mark.parametrize("bound", [Bound(1e-3), Bound(rtol=1e-3), Bound(1e-4, 1e-3), Bound()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_as_numpy_does_it(bound: Bound, dtype: type) -> None:
    for scale in (0.0, 1e-5, 3e-4, 1e-3, 1e-2):
        a = RNG.standard_normal((300, 11)).astype(dtype)
        b = (a + scale * RNG.standard_normal(a.shape)).astype(dtype)
        x, y = a.astype(np.float64), b.astype(np.float64)
        share = np.abs(x - y) / np.maximum(bound.atol + bound.rtol * np.abs(x), 1e-300)
        verdict = judge_bound("y", a, b, bound)
        assert verdict.ok == bool((np.abs(x - y) <= bound.atol + bound.rtol * np.abs(x)).all())
        assert verdict.level == "TOLERANCE"
        if bound.atol:
            assert verdict.used == pytest.approx(share.max())
        if not verdict.ok and bound != Bound():
            at = np.unravel_index(share.argmax(), a.shape)
            assert verdict.limit == pytest.approx(bound.atol + bound.rtol * abs(x[at]))
            assert str([int(i) for i in at]) in verdict.reason


def test_nan_and_infinity_stand_at_the_same_places() -> None:
    a = np.array([1, np.nan, np.inf, -np.inf], np.float32)
    assert judge_bound("y", a, a.copy(), Bound(1e-9)).ok
    for i, value in ((0, np.nan), (1, 0), (2, -np.inf), (3, 1)):
        b = a.copy()
        b[i] = value
        verdict = judge_bound("y", a, b, Bound(1e9))
        assert not verdict.ok
        assert "NaN or infinity" in verdict.reason


def test_integers_booleans_and_shapes() -> None:
    a = np.array([1, 100, 2**40], np.int64)
    assert judge_bound("y", a, a + 1, Bound(1)).ok
    assert not judge_bound("y", a, a + 2, Bound(1)).ok
    flags = np.array([True, False])
    assert judge_bound("y", flags, flags, Bound(9)).ok
    assert not judge_bound("y", flags, ~flags, Bound(9)).ok
    assert "shape" in judge_bound("y", a, a[:2], Bound(9)).reason
    assert "dtype" in judge_bound("y", a, a.astype(np.int32), Bound(9)).reason
    words = np.array(["a", "b"], object)
    assert not judge_bound("y", words, words[::-1].copy(), Bound(9)).ok


def test_complex_numbers_by_their_magnitude() -> None:
    a = np.array([3 + 4j], np.complex64)
    assert judge_bound("y", a, a + np.complex64(0.3 + 0.4j), Bound(0.51)).ok
    assert not judge_bound("y", a, a + np.complex64(0.3 + 0.4j), Bound(0.49)).ok


def test_which_bound_counts_for_which_output() -> None:
    standard = Standard(bound=Bound(1), bounds={"a*": Bound(2), "ab": Bound(3), "s[1]": Bound(4)})
    f, i = np.dtype(np.float32), np.dtype(np.int64)
    assert standard.bound_of("ab", f) == Bound(3)
    assert standard.bound_of("ac", f) == Bound(2)
    assert standard.bound_of("z", f) == Bound(1)
    assert standard.bound_of("z", i) is None  # integers have to be equal unless they are named
    assert standard.bound_of("ac", i) == Bound(2)
    assert standard.bound_of("s[1]", f) == Bound(4)
    assert standard.bound_of("s[0]", f) == Bound(1)
    assert standard.name == "TOLERANCE"
    assert standard.unused({"ab", "s"}) == []
    assert standard.unused({"z"}) == ["a*", "ab", "s[1]"]
    assert Standard(Level.EXACT).relaxed().level is Level.CLOSE


def test_levels_and_bounds_side_by_side() -> None:
    a = {"x": np.ones(4, np.float32), "y": np.ones(4, np.float32), "n": np.arange(4)}
    b = {"x": a["x"] + np.float32(0.1), "y": a["y"], "n": a["n"]}
    tolerances = {"x": Tolerance(1e-6), "y": Tolerance(1e-6)}
    verdicts = {v.name: v for v in Standard(bounds={"x": Bound(0.2)}).compare(a, b, tolerances, {})}
    assert {n: (v.ok, v.level) for n, v in verdicts.items()} == {
        "x": (True, "TOLERANCE"),
        "y": (True, "CLOSE"),
        "n": (True, "CLOSE"),
    }
    assert not Standard().compare(a, b, tolerances, {})[0].ok
    assert math.isinf(Standard(bound=Bound()).compare(a, b, tolerances, {})[0].used or 0)
