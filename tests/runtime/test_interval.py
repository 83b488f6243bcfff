"""Intervals: against tables, and against how often they miss."""

import math

import numpy as np
import pytest

from graphopt.runtime.interval import LOOKS, alpha_at, interval, student_quantile


@pytest.mark.parametrize(
    ("p", "df", "expected"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.995, 3, 5.84091),
        (0.9995, 4, 8.61030),
        (0.995, 9, 3.24984),
        (0.975, 30, 2.04227),
        (0.995, 60, 2.66028),
    ],
)
def test_students_quantiles_from_a_table(p: float, df: int, expected: float) -> None:
    assert student_quantile(p, df) == pytest.approx(expected, rel=1e-5)


def test_the_signed_rank_interval_of_a_textbook() -> None:
    # n = 8 at 95%: the published critical value is 3 (P(W <= 3) = 0.0195), so that the fourth smallest and
    # the fourth largest Walsh average bound it.
    x = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
    walsh = sorted((x[i] + x[j]) / 2 for i in range(8) for j in range(i, 8))
    found = interval(x, 0.05)
    assert (found.low, found.high) == (walsh[3], walsh[-4])
    assert found.estimate == np.median(walsh)


def test_few_observations_get_students_interval() -> None:
    x = [0.9, 1.1, 1.0]
    half = 9.92484 * np.std(x, ddof=1) / math.sqrt(3)
    found = interval(x, 0.01)
    assert found.estimate == pytest.approx(1)
    assert found.half_width == pytest.approx(half, rel=1e-4)
    one = interval([1.0], 0.01)
    assert (one.estimate, one.low, one.high) == (1.0, -math.inf, math.inf)


@pytest.mark.parametrize("n", [8, 12, 20, 70])
@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_the_interval_misses_no_more_often_than_it_says(n: int, tails: str) -> None:
    rng = np.random.default_rng(n)
    trials, alpha = 2000, 0.05
    draw = rng.standard_normal if tails == "normal" else lambda size: rng.standard_t(1.5, size)
    missed = sum(not (f.low <= 0 <= f.high) for f in (interval(draw(n), alpha) for _ in range(trials)))
    # Three standard deviations of the count above what is promised.
    assert missed <= alpha * trials + 3 * math.sqrt(trials * alpha * (1 - alpha))


def test_one_outlier_moves_it_little() -> None:
    rng = np.random.default_rng(0)
    x = 0.05 + 0.01 * rng.standard_normal(20)
    before, after = interval(x, 0.01), interval([*x[:-1], 5.0], 0.01)
    assert after.estimate == pytest.approx(before.estimate, abs=0.01)
    assert after.low > 0.03


def test_looking_several_times_spends_no_more_than_there_is() -> None:
    for looks in range(len(LOOKS) + 1):
        spent = sum(alpha_at(i, 0.01, last=False) for i in range(looks)) + alpha_at(looks, 0.01, last=True)
        assert spent <= 0.01
