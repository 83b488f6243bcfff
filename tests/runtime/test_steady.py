"""Where series of run times become steady."""

import numpy as np
import pytest

from graphopt.runtime.steady import LEAST_RUNS, steadiness

RNG = np.random.default_rng(3)


def noisy(base: np.ndarray) -> list[float]:
    """Skewed noise of some percent, and a run in twenty that takes twice as long."""
    n = len(base)
    return list(base * (1 + RNG.gamma(1, 0.02, n) + RNG.choice([0.0, 1.0], n, p=[0.95, 0.05])))


@pytest.mark.parametrize("n", [20, 100, 2000])
def test_flat(n: int) -> None:
    found = steadiness(noisy(np.ones(n)))
    assert found.kind == "flat"
    assert found.steady
    assert found.start <= 1


@pytest.mark.parametrize("scale", [1, 10])
def test_warm_up(scale: int) -> None:
    found = steadiness(noisy(np.repeat([1.5, 1.0], [20 * scale, 80 * scale])))
    assert found.kind == "warm-up"
    assert 18 * scale <= found.start <= 32 * scale


def test_several_steps() -> None:
    found = steadiness(noisy(np.repeat([3.0, 1.5, 1.0], [10, 15, 75])))
    assert found.kind == "warm-up"
    assert 25 <= found.start + 3 <= 40


def test_slowdown() -> None:
    assert steadiness(noisy(np.repeat([1.0, 1.3], [30, 70]))).kind == "slowdown"


def test_the_first_runs_only() -> None:
    found = steadiness(noisy(np.array([8.0, 3.0] + [1.0] * 60)))
    assert (found.kind, found.start) == ("flat", 2)


def test_still_falling() -> None:
    found = steadiness(noisy(np.linspace(2, 1, 100)))
    assert (found.kind, found.steady, found.start) == ("no steady state", False, 100)


def test_a_change_just_now() -> None:
    assert not steadiness(noisy(np.repeat([1.0, 1.3], [80, 20]))).steady


def test_steps_too_small_to_matter() -> None:
    exact = np.repeat([1.01, 1.0], [50, 50]) + 1e-4 * RNG.random(100)
    assert steadiness(list(exact)).kind == "flat"
    assert steadiness(list(exact), tolerance=0.001).kind != "flat"


def test_too_few_to_tell() -> None:
    assert not steadiness([1.0] * (LEAST_RUNS - 1)).steady
