from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_passes.quantization._palette import NF4, additive_powers, fit, kmeans, powers

RNG = np.random.default_rng(5)


def error(values: np.ndarray, palette: np.ndarray, index: np.ndarray) -> float:
    return float(((palette[index] - values) ** 2).sum())


@pytest.mark.parametrize("entries", [1, 2, 3, 5])
def test_kmeans_of_few_numbers_is_optimal(entries: int) -> None:
    values = np.sort(RNG.standard_normal(11)).astype(np.float32)
    best = np.inf
    for cuts in itertools.combinations(range(1, 11), entries - 1):
        parts = np.split(values.astype(np.float64), cuts)
        best = min(best, sum(float(((p - p.mean()) ** 2).sum()) for p in parts))
    assert error(values, *kmeans(values, entries)) == pytest.approx(best, rel=1e-4)


def test_kmeans_of_many_numbers_is_as_good_as_restarted_lloyd() -> None:
    values = RNG.standard_t(3, 20000).astype(np.float32)
    palette, index = kmeans(values, 16)
    assert (np.diff(palette) >= 0).all()
    best = np.inf
    for seed in range(5):
        centers = np.sort(np.random.default_rng(seed).choice(values, 16, replace=False)).astype(np.float64)
        for _ in range(100):
            nearest = np.searchsorted((centers[:-1] + centers[1:]) / 2, values)
            centers = np.sort(
                [values[nearest == k].mean() if (nearest == k).any() else centers[k] for k in range(16)]
            )
        best = min(best, error(values, centers, np.searchsorted((centers[:-1] + centers[1:]) / 2, values)))
    assert error(values, palette, index) <= best * 1.001


def test_kmeans_of_fewer_values_than_entries() -> None:
    values = np.array([3.0, -1.0, 3.0, 0.0], np.float32)
    palette, index = kmeans(values, 16)
    assert palette.shape == (16,)
    assert (palette[index] == values).all()
    palette, index = kmeans(np.zeros(5, np.float32), 4)
    assert (palette[index] == 0).all()


def test_kmeans_does_not_depend_on_the_order() -> None:
    values = RNG.standard_normal(3000).astype(np.float32)
    shuffled = RNG.permutation(values)
    assert (kmeans(values, 8)[0] == kmeans(shuffled, 8)[0]).all()


def test_binary_and_ternary_are_the_papers() -> None:
    rows = RNG.standard_normal((3, 50)).astype(np.float32)
    binary = fit(rows, "binary", 1).expand()
    assert np.allclose(binary, np.sign(rows) * np.abs(rows).mean(1, keepdims=True))
    ternary = fit(rows, "ternary", 2).expand()
    large = np.abs(rows) > 0.7 * np.abs(rows).mean(1, keepdims=True)
    scale = (np.abs(rows) * large).sum(1, keepdims=True) / large.sum(1, keepdims=True)
    assert np.allclose(ternary, np.sign(rows) * large * scale)
    assert (fit(np.zeros((2, 4), np.float32), "ternary", 2).expand() == 0).all()


def test_nf4() -> None:
    assert len(NF4) == 16
    assert NF4[7] == 0
    rows = RNG.standard_normal((4, 64)).astype(np.float32)
    rows[3] = 0
    expanded = fit(rows, "nf4", 4).expand()
    assert (expanded[3] == 0).all()
    peaks = np.abs(rows[:3]).argmax(1)
    assert np.allclose(expanded[np.arange(3), peaks], rows[np.arange(3), peaks])
    noise = ((expanded - rows) ** 2).sum() / (rows**2).sum()
    assert noise < 0.01


def test_levels() -> None:
    assert powers(3).tolist() == [-1, -0.5, -0.25, 0, 0.25, 0.5, 1]
    assert additive_powers(3).tolist() == pytest.approx([-1, -0.5, -0.25, 0, 0.25, 0.5, 1])
    four = additive_powers(4)  # a term of two bits and one of one bit
    assert len(four) == 15
    assert len(additive_powers(5)) == 31
    for bits in range(2, 9):
        for levels in (powers(bits), additive_powers(bits)):
            assert len(levels) <= 1 << bits
            assert (np.diff(levels) > 0).all()
            assert (levels == -levels[::-1]).all()
    sixteenths = np.log2(
        np.abs(fit(RNG.standard_normal((1, 99)).astype(np.float32), "pow2", 4).expand()) + 1e-30
    )
    assert all(s == round(s) for s in sixteenths.ravel() if s > -90)


def test_more_bits_are_better() -> None:
    rows = RNG.standard_normal((4, 500)).astype(np.float32)
    for kind in ("kmeans", "apot"):
        errors = [((fit(rows, kind, b).expand() - rows) ** 2).sum() for b in (2, 3, 4, 5)]
        assert errors == sorted(errors, reverse=True)
    same = [((fit(rows, k, 4).expand() - rows) ** 2).sum() for k in ("kmeans", "apot", "pow2")]
    assert same == sorted(same)
