from collections.abc import Sequence

import numpy as np
import pytest

from graphopt_passes.quantization._half_search import find_noisy


class Additive:
    """Noise that adds up, and how often it was asked for."""

    def __init__(self, noise: Sequence[float]) -> None:
        self.noise, self.calls = noise, 0

    def __call__(self, units: Sequence[int]) -> float:
        self.calls += 1
        return float(sum(self.noise[u] for u in units))


def test_nothing_is_noisy() -> None:
    noise = Additive([1e-6] * 500)
    assert find_noisy(500, noise, 1e-3) == []
    assert noise.calls == 1
    assert find_noisy(0, noise, 0.0) == []


@pytest.mark.parametrize("bad", [[0], [499], [17], [3, 250], [100, 101, 102]])
def test_a_few_are_found_among_many(bad: list[int]) -> None:
    values = np.full(500, 1e-6)
    values[bad] = 1.0
    noise = Additive(values)  # type: ignore[arg-type]
    assert find_noisy(500, noise, 1e-3) == bad
    assert noise.calls < 64


def test_no_more_than_needed() -> None:
    assert find_noisy(4, Additive([1.0, 0.1, 0.5, 0.0]), 0.7) == [0]


def test_when_all_are_noisy_the_search_ends() -> None:
    noise = Additive([1.0] * 1000)
    assert find_noisy(1000, noise, 1e-3) == list(range(1000))
    assert noise.calls < 150


def test_noise_that_cannot_be_measured_is_the_worst() -> None:
    def noise(units: Sequence[int]) -> float:
        return float("nan") if 5 in units else 0.0

    assert find_noisy(16, noise, 1e-3) == [5]
