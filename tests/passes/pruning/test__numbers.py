"""What pruning computes: structures, shares, and the optimal brain surgeon against exhaustive search."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from graphopt_passes.linear.least_squares import solve_supported
from graphopt_passes.pruning import _obs
from graphopt_passes.pruning._shares import erk_shares, global_shares
from graphopt_passes.pruning._structure import Structure, removed

RNG = np.random.default_rng(9)


def test_structures() -> None:
    assert Structure.parse("none") == Structure()
    assert Structure.parse("2:4") == Structure(2, 4)
    assert Structure.parse("2:4").sparsity == 0.5
    assert Structure.parse("4x1") == Structure(block=(4, 1))
    for wrong in ("4:4", "0:4", "0x1", "2/4", "half"):
        with pytest.raises(ValueError, match="structure"):
            Structure.parse(wrong)


def test_the_least_go() -> None:
    scores = RNG.random((2, 6, 10))
    gone = removed(scores, 0.3, Structure())
    assert gone.sum() == 36
    assert scores[gone].max() < scores[~gone].min()
    rows = removed(scores, 0.3, Structure(), per_row=True)
    assert (rows.sum(axis=2) == 3).all()


def test_n_of_m() -> None:
    scores = RNG.random((1, 5, 12))
    gone = removed(scores, 0.0, Structure(1, 4))
    assert (gone.reshape(5, 3, 4).sum(axis=2) == 3).all()
    kept = scores.reshape(5, 3, 4).max(axis=2)
    np.testing.assert_array_equal(np.sort(scores[~gone]), np.sort(kept.reshape(-1)))


def test_blocks_go_whole() -> None:
    scores = RNG.random((1, 7, 9))
    gone = removed(scores, 0.5, Structure(block=(2, 3)))[0]
    for i, j in itertools.product(range(0, 7, 2), range(0, 9, 3)):
        block = gone[i : i + 2, j : j + 3]
        assert block.all() or not block.any()
    assert 0.35 < gone.mean() <= 0.51


def test_shares_add_up() -> None:
    scores = [RNG.random((1, 4, 50)) ** 4, RNG.random((1, 10, 100)), RNG.random((1, 2, 5))]
    sizes = [s.size for s in scores]
    for sparsity in (0.1, 0.5, 0.9):
        shares = global_shares(scores, sparsity)
        assert sum(a * n for a, n in zip(shares, sizes, strict=True)) == pytest.approx(
            sparsity * sum(sizes), abs=1
        )
        assert all(s < 1 for s in shares)
    even = erk_shares([(10, 100), (100, 100), (1000, 1000)], [1000, 10_000, 1_000_000], 0.8)
    assert even[0] <= even[1] < even[2]
    assert sum(a * n for a, n in zip(even, (1000, 10_000, 1_000_000), strict=True)) == pytest.approx(808_800)
    assert erk_shares([(2, 2), (1000, 1000)], [4, 1_000_000], 0.5)[0] == 0.0


def quadratic(rows: int, columns: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns))
    return (mix @ mix.T / columns + 0.05 * np.eye(columns))[None], rng.standard_normal((1, rows, columns))


def decaying(rows: int, columns: int, seed: int = 0) -> tuple[Any, Any]:
    """Inputs of which few directions are strong, as those of layers are."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    power = 1.0 / np.arange(1, columns + 1)
    hessian = (turn * power) @ turn.T + 0.01 * power.mean() * np.eye(columns)
    return hessian[None], rng.standard_normal((1, rows, columns))


def loss(hessian: Any, weights: Any, gone: Any) -> float:
    """The error that is left when the weights that stay make up for those that are gone."""
    fresh = solve_supported(hessian, weights @ hessian, ~gone, np.where(gone, 0.0, weights))
    step = fresh - weights
    return float(np.einsum("gnk,gkl,gnl->", step, hessian, step))


def test_one_weight_is_the_best_one() -> None:
    for seed in range(20):
        hessian, weights = quadratic(1, 6, seed)
        gone = _obs.choose(hessian, weights, 1 / 6, Structure())
        losses = []
        for k in range(6):
            one = np.zeros((1, 1, 6), bool)
            one[..., k] = True
            losses.append(loss(hessian, weights, one))
        assert loss(hessian, weights, gone) == pytest.approx(min(losses))


def test_greedy_is_close_to_exhaustive_and_better_than_magnitude() -> None:
    ratios, simple = [], []
    for seed in range(12):
        hessian, weights = quadratic(1, 8, seed)
        best = min(
            loss(hessian, weights, np.isin(np.arange(8), gone)[None, None])
            for gone in itertools.combinations(range(8), 4)
        )
        ratios.append(loss(hessian, weights, _obs.choose(hessian, weights, 0.5, Structure())) / best)
        simple.append(loss(hessian, weights, removed(weights**2, 0.5, Structure())) / best)
    assert min(ratios) >= 1 - 1e-9
    assert np.median(ratios) < 1.35
    assert np.mean(ratios) < np.mean(simple)


def test_rows_compete() -> None:
    hessian, weights = quadratic(2, 10)
    weights[0, 0] *= 1e-3
    gone = _obs.choose(hessian, weights, 0.5, Structure())[0]
    assert gone.sum() == 10
    assert gone[0].sum() == 10


@pytest.mark.parametrize("exact", [True, False])
def test_n_of_m_by_second_order(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:
        monkeypatch.setattr(_obs, "LIMIT", 0)
    hessian, weights = decaying(32, 128)
    gone = _obs.choose(hessian, weights, 0.5, Structure(2, 4))
    assert (gone.reshape(32, 32, 4).sum(axis=2) == 2).all()
    simple = removed(weights**2, 0.5, Structure(2, 4))
    assert loss(hessian, weights, gone) < loss(hessian, weights, simple)


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (1, 4)])
def test_sparse_gpt(block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_obs, "LIMIT", 0)
    hessian, weights = decaying(64, 256)
    structure = Structure(block=block)
    gone = _obs.choose(hessian, weights, 0.5, structure)
    assert gone.mean() == pytest.approx(0.5)
    simple = removed(weights**2, 0.5, structure)
    assert loss(hessian, weights, gone) < loss(hessian, weights, simple)


def test_what_is_zero_goes_first() -> None:
    hessian, weights = quadratic(4, 12)
    weights[0, :, ::3] = 0.0
    gone = _obs.choose(hessian, weights, 1 / 3, Structure())
    np.testing.assert_array_equal(gone, weights == 0)


def test_the_inverse_factor() -> None:
    hessian, _ = quadratic(1, 9)
    factor = _obs.inverse_factor(hessian[0])
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(hessian[0]))
    assert not np.tril(factor, -1).any()
