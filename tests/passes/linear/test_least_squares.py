"""Least squares with zeros that stay, against a general solver on each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_passes.linear import least_squares
from graphopt_passes.linear.error import OutputError
from graphopt_passes.linear.least_squares import damped, ideal_weights, solve_supported, supports
from graphopt_passes.linear.moments import Sums


def problem(seed: int, groups: int = 2, rows: int = 3, columns: int = 5, count: int = 40) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, count, columns)) * np.linspace(0.2, 2, columns)
    y = rng.standard_normal((groups, count, rows))
    support = rng.random((groups, rows, columns)) > 0.4
    return x, y, support


def by_row(x: Any, y: Any, support: Any) -> Any:
    """The reference: numpy's solver on the columns of each row's support."""
    groups, rows, columns = support.shape
    result = np.zeros((groups, rows, columns))
    for g in range(groups):
        for n in range(rows):
            at = support[g, n]
            result[g, n, at] = np.linalg.lstsq(x[g][:, at], y[g][:, n], rcond=None)[0]
    return result


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_each_row_has_the_least_error_on_its_support(seed: int) -> None:
    x, y, support = problem(seed)
    turned = np.swapaxes(x, 1, 2)
    wanted = np.swapaxes(turned @ y, 1, 2)
    found = solve_supported(turned @ x, wanted, support, np.zeros(support.shape))
    np.testing.assert_allclose(found, by_row(x, y, support), atol=1e-9)


def test_conjugate_gradients_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, support = problem(3, columns=30, rows=8, count=200)
    turned = np.swapaxes(x, 1, 2)
    hessian, wanted = turned @ x, np.swapaxes(turned @ y, 1, 2)
    exact = solve_supported(hessian, wanted, support, np.zeros(support.shape))
    monkeypatch.setattr(least_squares, "_DIRECT", 0)
    start = np.where(support, 1.0, 0.0)
    found = solve_supported(hessian, wanted, support, start)
    assert not found[~support].any()
    np.testing.assert_allclose(found, exact, atol=1e-5)


def test_conjugate_gradients_are_never_worse_than_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, support = problem(4, columns=40, rows=4, count=20)  # fewer rows than columns
    turned = np.swapaxes(x, 1, 2)
    hessian, wanted = damped(turned @ x, 1e-3), np.swapaxes(turned @ y, 1, 2)

    def loss(w: Any) -> float:
        return float(0.5 * np.einsum("gnk,gkl,gnl->", w, hessian, w) - (w * wanted).sum())

    start = np.where(support, np.random.default_rng(0).standard_normal(support.shape), 0.0)
    monkeypatch.setattr(least_squares, "_DIRECT", 0)
    last = loss(start)
    for steps in (1, 2, 5, 20):
        monkeypatch.setattr(least_squares, "_STEPS", steps)
        now = loss(solve_supported(hessian, wanted, support, start))
        assert now <= last + 1e-9
        last = now


def test_where_the_inputs_say_nothing_the_weights_stay() -> None:
    weights = np.random.default_rng(1).standard_normal((1, 3, 4))
    hessian, cross = np.zeros((1, 4, 4)), np.zeros((1, 4, 3))
    support = weights > 0
    kept = np.where(support, weights, 0.0)
    np.testing.assert_allclose(ideal_weights(hessian, cross, kept, 0.01, support), kept)


def test_supports() -> None:
    assert supports(np.ones((1, 2, 2))) is None
    assert supports(np.array([[[0.0, 1.0]]])).tolist() == [[[False, True]]]  # type: ignore[union-attr]


@pytest.mark.parametrize("centered", [False, True])
def test_the_error_is_that_of_the_outputs(centered: bool) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((1, 60, 4)) + 1.0, rng.standard_normal((1, 60, 3)) + 2.0
    now, other = rng.standard_normal((1, 3, 4)), rng.standard_normal((1, 3, 4))
    d = y - x @ np.swapaxes(now, 1, 2)
    turned = np.swapaxes(x, 1, 2)
    sums = Sums(turned @ x, x.sum(1), turned @ d, d.sum(1), (d**2).sum(1), y.sum(1), (y**2).sum(1), count=60)
    error = OutputError(sums, now, now, centered)
    left = y - x @ np.swapaxes(other, 1, 2)
    if centered:
        np.testing.assert_allclose(error.shift(other), left.mean(axis=1))
        left = left - left.mean(axis=1, keepdims=True)
    assert error.of(other) == pytest.approx(float((left**2).sum()))
    best = error.ideal(1e-9)
    assert all(error.of(best) <= error.of(best + 0.01 * rng.standard_normal(best.shape)) for _ in range(20))
    support = rng.random((1, 3, 4)) > 0.5
    held = error.ideal(1e-9, support)
    assert not held[~support].any()
    for _ in range(20):
        moved = held + np.where(support, 0.01 * rng.standard_normal(best.shape), 0.0)
        assert error.of(held) <= error.of(moved)
