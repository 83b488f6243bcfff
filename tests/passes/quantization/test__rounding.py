"""Solvers of the rounding problem, against all roundings of small problems and against each other."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_passes.linear.least_squares import damped, ideal_weights
from graphopt_passes.quantization._rounding import (
    METHODS,
    AdaRoundSettings,
    Floats,
    Lattice,
    Problem,
    adaround,
    descend,
    fit_scales,
    gptq,
    obq,
    search_scales,
    solve,
)
from graphopt_passes.quantization._rounding.gptq import Ordered, sweep


def make(
    seed: int,
    groups: int = 1,
    rows: int = 2,
    columns: int = 6,
    *,
    samples: int = 40,
    high: int = 3,
    mixing: float = 1.5,
    low: int | None = None,
    zero: int = 0,
) -> Problem:
    """A problem with correlated inputs of nonzero mean."""
    rng = np.random.default_rng(seed)
    mix = np.eye(columns) + mixing * rng.standard_normal((groups, columns, columns)) / np.sqrt(columns)
    x = np.maximum(rng.standard_normal((groups, samples, columns)) @ mix, 0)
    w = rng.standard_normal((groups, rows, columns))
    scale = np.abs(w).max(axis=2, keepdims=True) / (high - zero)
    lattice = Lattice(scale, np.full(scale.shape, float(zero)), -high - 1 if low is None else low, high)
    return Problem(damped(np.swapaxes(x, 1, 2) @ x, 0.001), w, lattice)


def optimum(problem: Problem) -> Floats:
    """The lowest objective per row, over the two or three codes around each target."""
    groups, rows, columns = problem.target.shape
    best = np.full((groups, rows), np.inf)
    center = problem.lattice.nearest(problem.target)
    for moves in itertools.product((-1, 0, 1), repeat=columns):
        codes = np.clip(center + np.array(moves), problem.lattice.low, problem.lattice.high)
        best = np.minimum(best, problem.losses(codes))
    return best


def on_grid(problem: Problem, codes: Floats) -> bool:
    lattice = problem.lattice
    whole = bool((codes == np.rint(codes)).all())
    return whole and codes.min() >= lattice.low and codes.max() <= lattice.high


@pytest.mark.parametrize(
    ("method", "factor"), [("gptq", 1.35), ("obq", 1.35), ("adaround", 1.35), ("nearest", 1.8)]
)
def test_close_to_the_best_of_all_roundings(method: Any, factor: float) -> None:
    total = least = 0.0
    for seed in range(12):
        problem = make(seed)
        found = solve(problem, method)
        nearest = problem.losses(problem.lattice.nearest(problem.target))
        assert on_grid(problem, found.codes)
        assert found.loss == pytest.approx(problem.loss(found.codes))
        assert (problem.losses(found.codes) <= nearest * (1 + 1e-9)).all()
        total, least = total + found.loss, least + float(optimum(problem).sum())
    assert total <= factor * least


def test_the_methods_in_the_order_the_papers_give() -> None:
    problems = [make(seed, rows=16, columns=48, samples=200, high=7) for seed in range(3)]

    def total(method: Any, sweeps: int) -> float:
        return sum(solve(p, method, sweeps=sweeps).loss for p in problems)

    nearest, rounded, greedy = (total(m, 0) for m in ("nearest", "gptq", "obq"))
    assert greedy < rounded < 0.75 * nearest
    assert total("gptq", 20) < rounded
    assert total("adaround", 0) < 0.75 * nearest
    assert total("nearest", 20) < 0.8 * nearest


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(0, 12))
@settings(max_examples=40, deadline=None)
def test_never_worse_than_nearest(seed: int, groups: int, rows: int, columns: int, samples: int) -> None:
    # Fewer samples than columns: the moments are rank deficient, with none they are zero.
    problem = make(seed, groups, rows, columns, samples=samples, high=7)
    nearest = problem.losses(problem.lattice.nearest(problem.target)) * (1 + 1e-9) + 1e-12
    for method in METHODS:
        if method != "adaround":
            assert (problem.losses(solve(problem, method).codes) <= nearest).all(), method
    found = solve(problem, "gptq", groups=np.zeros(columns, int))
    assert found.loss <= solve(problem, "gptq").loss * (1 + 1e-6) + 1e-12


def test_the_errors_that_gptq_hands_on_add_up_to_the_objective() -> None:
    problem = make(4, groups=2, rows=3, columns=10)
    codes, losses = sweep(Ordered.of(problem), problem.target, problem.lattice)
    np.testing.assert_allclose(losses, problem.losses(codes), rtol=1e-9)


@pytest.mark.parametrize("block", [1, 3, 64])
def test_blocks_of_columns_change_nothing(block: int) -> None:
    problem = make(5, groups=2, rows=3, columns=10)
    assert (gptq(problem, block=block) == gptq(problem)).all()
    start = problem.lattice.nearest(problem.target)
    assert (descend(problem, start, 5, block=block) == descend(problem, start, 5)).all()


def test_groups_are_solved_independently() -> None:
    problem = make(6, groups=5, rows=1, columns=9)  # depthwise 3 x 3
    for method in METHODS:
        together = solve(problem, method).codes
        for g in range(5):
            at = slice(g, g + 1)
            lattice = replace(problem.lattice, scale=problem.lattice.scale[at], zero=problem.lattice.zero[at])
            alone = solve(Problem(problem.hessian[at], problem.target[at], lattice), method).codes
            assert (together[at] == alone).all(), method


def test_every_sweep_lowers_the_error() -> None:
    problem = make(7, rows=8, columns=40, samples=200, high=7)
    codes = problem.lattice.nearest(problem.target)
    losses = [problem.loss(descend(problem, codes, sweeps)) for sweeps in range(6)]
    assert losses[0] == problem.loss(codes)
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(losses))
    assert losses[1] < losses[0]


def test_descent_ends_where_no_single_change_helps() -> None:
    problem = make(8, rows=1, columns=6)
    codes = descend(problem, problem.lattice.nearest(problem.target), 50)
    least = problem.loss(codes)
    for k, step in itertools.product(range(6), (-1, 1)):
        other = codes.copy()
        other[0, 0, k] = np.clip(other[0, 0, k] + step, problem.lattice.low, problem.lattice.high)
        assert problem.loss(other) >= least * (1 - 1e-9)


def test_columns_without_inputs() -> None:
    problem = make(9, rows=3, columns=8)
    hessian = problem.hessian.copy()
    hessian[:, 2], hessian[:, :, 2] = 0, 0
    dead = replace(problem, hessian=damped(hessian, 0.01))
    for method in METHODS:
        found = solve(dead, method).codes
        assert (found[..., 2] == problem.lattice.nearest(problem.target)[..., 2]).all(), method


def test_no_inputs_at_all_and_inputs_that_are_not_finite() -> None:
    problem = replace(make(10), hessian=damped(np.zeros((1, 6, 6)), 0.01))
    nearest = problem.lattice.nearest(problem.target)
    for method in METHODS:
        assert (solve(problem, method).codes == nearest).all()
    with pytest.raises(ValueError, match="finite"):
        damped(np.full((1, 2, 2), np.inf), 0.01)


def test_zero_points() -> None:
    problem = make(11, rows=4, columns=20, low=0, high=15, zero=7)
    for method in METHODS:
        found = solve(problem, method, groups=np.zeros(20, int))
        assert found.codes.min() >= 0
        assert found.codes.max() <= 15
        assert found.loss < problem.loss(problem.lattice.nearest(problem.target))


def test_scales_of_blocks() -> None:
    problem = make(12, rows=4, columns=24, samples=100, high=3)
    groups = np.arange(24) // 8
    scale = np.repeat(np.abs(problem.target).reshape(1, 4, 3, 8).max(axis=3) / 3, 8, axis=2)
    problem = replace(problem, lattice=Lattice(scale, np.zeros(scale.shape), -4, 3))
    fixed = solve(problem)
    fitted = solve(problem, groups=groups)
    assert fitted.loss < 0.9 * fixed.loss
    assert fitted.lattice.scale.shape == scale.shape
    for g in range(3):
        part = fitted.lattice.scale[..., groups == g]
        assert (part == part[..., :1]).all()
    assert (fitted.lattice.scale == fitted.lattice.scale.astype(np.float32)).all()


def test_scales_are_searched_and_fitted() -> None:
    problem = make(13, rows=8, columns=32, samples=100, high=3)
    groups = np.zeros(32, int)
    searched = replace(problem, lattice=search_scales(problem, groups))
    assert (searched.losses(gptq(searched)) <= problem.losses(gptq(problem)) * (1 + 1e-6)).all()
    assert searched.loss(gptq(searched)) < 0.9 * problem.loss(gptq(problem))
    codes = gptq(problem)
    fitted = replace(problem, lattice=fit_scales(problem, codes, groups))
    assert (fitted.losses(codes) <= problem.losses(codes)).all()
    for factor in (0.99, 1.01):
        other = replace(fitted, lattice=replace(fitted.lattice, scale=fitted.lattice.scale * factor))
        assert other.loss(codes) > fitted.loss(codes)


def test_weights_that_make_up_for_wrong_inputs() -> None:
    rng = np.random.default_rng(14)
    x = rng.standard_normal((1, 200, 5))
    seen = x + 0.3 * rng.standard_normal(x.shape) + 0.2
    w = rng.standard_normal((1, 3, 5))
    y = x @ np.swapaxes(w, 1, 2)
    turned = np.swapaxes(seen, 1, 2)
    ideal = ideal_weights(turned @ seen, turned @ y, w, 1e-9)
    expected = np.linalg.lstsq(seen[0], y[0], rcond=None)[0].T
    np.testing.assert_allclose(ideal[0], expected, rtol=1e-5)
    # Without any data, or with all the damping in the world, weights stay what they were.
    np.testing.assert_allclose(ideal_weights(np.zeros((1, 5, 5)), np.zeros((1, 5, 3)), w, 0.01), w)
    np.testing.assert_allclose(ideal_weights(turned @ seen, turned @ y, w, 1e9), w, rtol=1e-4)


def test_large_layers_do_without_obq() -> None:
    problem = make(15, rows=2, columns=8)
    assert solve(problem, "obq").method == "obq"
    wide = np.eye(1400)[None]
    weights = np.linspace(-1, 1, 2800).reshape(1, 2, 1400)
    large = Problem(wide, weights, Lattice(np.full((1, 2, 1), 0.3), np.zeros((1, 2, 1)), -8, 7))
    assert solve(large, "obq").method == "gptq"


def test_adaround_learns_more_with_more_steps() -> None:
    problem = make(16, rows=8, columns=32, samples=100, high=7)
    short, long = (problem.loss(adaround(problem, AdaRoundSettings(steps=n))) for n in (5, 1000))
    assert long < short


def test_obq_takes_weights_beyond_the_grid_first() -> None:
    problem = make(17, rows=3, columns=8, samples=60)
    wide = replace(problem, target=problem.target * np.where(np.arange(8) == 3, 4.0, 1.0))
    codes = obq(wide)
    assert on_grid(wide, codes)
    assert wide.loss(codes) <= wide.loss(wide.lattice.nearest(wide.target))
