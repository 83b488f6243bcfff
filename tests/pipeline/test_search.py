"""The search for the units that must be left alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.budget import Budget, Score
from graphopt.pipeline.search import noise, shortfall, spare_least

LEAST = Budget(min_cosine=None, min_sqnr_db=20.0)


class Model:
    """Units whose noise adds up."""

    def __init__(self, powers: list[float], floor: float = 1e-9) -> None:
        self.powers, self.floor, self.calls = powers, floor, 0

    def __call__(self, spared: tuple[int, ...]) -> Score:
        self.calls += 1
        left = sum(p for i, p in enumerate(self.powers) if i not in spared) + self.floor
        return Score(-10 * math.log10(left), 1 - left / 2)


def test_nothing_is_spared_when_the_budget_is_kept() -> None:
    model = Model([1e-4] * 10)
    found = spare_least([1.0] * 10, model, LEAST)
    assert (found.spared, found.met, model.calls) == ((), True, 1)


def test_the_one_bad_unit_of_many_is_found() -> None:
    powers = [1e-5] * 40
    powers[17] = 0.5
    found = spare_least([1.0] * 40, Model(powers), LEAST)
    assert found.spared == (17,)
    assert found.met
    assert found.gains[17].sqnr_db > found.gains[16].sqnr_db + 10


def test_what_cannot_be_kept_is_said_with_the_closest_that_came() -> None:
    model = Model([0.2, 0.1, 0.05], floor=0.5)
    found = spare_least([1.0] * 3, model, LEAST)
    assert not found.met
    assert found.spared == (0, 1, 2)
    assert found.score == model((0, 1, 2))


def test_of_equal_gains_the_cheaper_unit_is_spared() -> None:
    found = spare_least([100.0, 1.0], Model([0.008, 0.008]), LEAST)
    assert found.spared == (1,)


def test_a_score_that_is_nan_keeps_no_budget() -> None:
    def measure(spared: tuple[int, ...]) -> Score:
        return Score(50.0, 0.9999) if 1 in spared else Score(math.nan, math.nan)

    found = spare_least([1.0] * 3, measure, Budget())
    assert found.met
    assert found.spared == (1,)
    assert shortfall(Budget(), Score(math.nan, math.nan)) == math.inf
    assert noise(Score(math.nan, math.nan)) == math.inf


def test_a_metric_can_be_the_budget() -> None:
    def measure(spared: tuple[int, ...]) -> Score:
        drop = 0.0 if 2 in spared else 3.0
        return Score(20.0, 0.9, {"accuracy": 90 - drop}, {"accuracy": drop})

    found = spare_least([1.0] * 4, measure, Budget(None, None, {"accuracy": 0.2}))
    assert found.spared == (2,)


def test_exploring_sweeps_although_nothing_is_missing() -> None:
    found = spare_least([1.0] * 3, Model([1e-4, 1e-5, 1e-6]), LEAST, everything=True)
    assert found.met
    assert found.spared == ()
    assert set(found.gains) == {0, 1, 2}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(1e-6, 0.1), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_the_result_keeps_the_budget_and_nothing_of_it_can_be_left_out(
    powers: list[float], seed: int
) -> None:
    model = Model(powers)
    found = spare_least([1.0 + (seed >> i) % 7 for i in range(len(powers))], model, LEAST)
    assert found.met
    assert not LEAST.misses(model(found.spared))
    for unit in found.spared:
        rest = tuple(u for u in found.spared if u != unit)
        assert LEAST.misses(model(rest)), "a spared unit was not needed"


@pytest.mark.parametrize("units", [1, 7, 300])
def test_the_number_of_measurements_is_bounded(units: int) -> None:
    model = Model([0.001] * units)
    found = spare_least([1.0] * units, model, LEAST)
    assert found.met
    assert model.calls <= 3 * units + 20
