from __future__ import annotations

import numpy as np
import pytest

from graphopt.passkit import Array
from graphopt_passes.sharing.kmeans import kmeans, nearest, optimal_runs


def best_error(x: Array, w: Array, clusters: int) -> float:
    """Every partition into runs, the slow way."""
    order = np.argsort(x)
    x, w = x[order], w[order]
    n = len(x)
    cost = np.zeros((n + 1, n + 1))
    for i in range(n):
        for j in range(i + 1, n + 1):
            mean = np.average(x[i:j], weights=w[i:j])
            cost[i, j] = (w[i:j] * (x[i:j] - mean) ** 2).sum()
    best = cost[0].copy()
    for _ in range(1, clusters):
        best = np.array([0.0, *(min(best[i] + cost[i, j] for i in range(j)) for j in range(1, n + 1))])
    return float(best[n])


def error(x: Array, centers: Array, w: Array | None = None) -> float:
    weight = np.ones(len(x)) if w is None else w
    return float((weight * np.abs(x[:, None] - centers).min(axis=1) ** 2).sum())


@pytest.mark.parametrize("seed", range(12))
def test_the_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(2, 45)), int(rng.integers(1, 7))
    x, w = rng.standard_normal(n) * 10 ** rng.uniform(-3, 3) + rng.uniform(-5, 5), rng.random(n)
    centers = kmeans(x, k, w)
    assert len(centers) <= k
    assert error(x, centers, w) == pytest.approx(best_error(x, w, k), rel=1e-6, abs=1e-12)


def test_repeated_values_count_as_often_as_they_occur() -> None:
    x = np.array([0.0] * 9 + [1.0, 5.0])
    assert kmeans(x, 2).tolist() == [0.1, 5.0]
    assert optimal_runs(np.array([0.0, 1, 5]), np.array([9.0, 1, 1]), 2).tolist() == pytest.approx([0.1, 5])


def test_few_values_are_their_own_palette() -> None:
    assert kmeans(np.array([3.0, -1, 3, 2, -1]), 4).tolist() == [-1, 2, 3]


def test_merging_keeps_its_bound() -> None:
    rng = np.random.default_rng(1)
    for x in (rng.standard_normal(3000), rng.standard_t(2, 3000), np.append(rng.random(2000), [-40.0] * 900)):
        exact = error(x, kmeans(x, 16))
        for cells in (64, 256):
            merged = error(x, kmeans(x, 16, cells=cells))
            assert exact <= merged * (1 + 1e-9)
            assert merged <= exact + 16 * len(x) * (np.ptp(x) / cells) ** 2
        assert merged < 1.02 * exact


def test_better_than_lloyd_from_even_quantiles() -> None:
    x = np.random.default_rng(2).standard_t(3, 5000)
    centers = np.quantile(x, (np.arange(32) + 0.5) / 32)
    for _ in range(100):
        index = nearest(x, centers)
        centers = np.array([x[index == i].mean() if (index == i).any() else c for i, c in enumerate(centers)])
    assert error(x, kmeans(x, 32)) < 0.9 * error(x, centers)


def test_zero_stays() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(2000)
    x[rng.random(2000) < 0.5] = 0
    centers = kmeans(x, 8, keep_zero=True)
    assert len(centers) == 8
    assert 0.0 in centers
    assert kmeans(np.zeros(5), 4, keep_zero=True).tolist() == [0]
    assert kmeans(np.array([1.0, 2.0]), 1, keep_zero=True).tolist() == [0]


def test_weights_of_zero() -> None:
    x = np.array([0.0, 1, 2, 100])
    assert kmeans(x, 2, np.array([1.0, 1, 1, 0])) == pytest.approx([0.5, 2], rel=1e-3)
    assert np.isfinite(kmeans(x, 2, np.zeros(4))).all()


def test_nearest() -> None:
    palette = np.array([-1.0, 0, 4])
    assert nearest(np.array([-9, -0.6, 0.4, 2.1, 9]), palette).tolist() == [0, 0, 1, 2, 2]
    assert nearest(np.array([3.0]), np.array([7.0])).tolist() == [0]
