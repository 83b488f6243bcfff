import math

import numpy as np
import pytest

from graphopt.calibration.observers import METHODS, Bins, _divergences, _error_integral, range_of
from graphopt.calibration.statistics import AbsMax, Histogram, MinMax, MovingMinMax
from graphopt.quantization.grid import QUANT_TYPES, grid_for_range, reduced

UINT8, INT8, INT4, INT16 = (QUANT_TYPES[n] for n in ("uint8", "int8", "int4", "int16"))
N = 100_000


def draw(kind):
    rng = np.random.default_rng(7)
    values = {
        "gauss": lambda: rng.standard_normal(N),
        "laplace": lambda: rng.laplace(size=N),
        "relu": lambda: np.maximum(rng.standard_normal(N), 0),
        "outlier": lambda: np.append(rng.standard_normal(N), [60.0, -40.0]),
        "uniform": lambda: rng.uniform(-1, 3, N),
    }
    return values[kind]().astype(np.float32)


def histogram(values, bins=2048, axis=None):
    result = Histogram(bins, axis)
    result.update(values)
    return result


def error(values, low, high, type_, symmetric):
    grid = grid_for_range(low, high, type_, symmetric=symmetric)
    return float(np.mean((values.astype(np.float64) - grid.fake(values)) ** 2))


KINDS = ("gauss", "laplace", "relu", "outlier", "uniform")
FORMS = [(UINT8, False), (INT8, True), (INT8, False), (INT4, True), (reduced(UINT8), False)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("type_", "symmetric"), FORMS)
def test_mse_is_the_best_of_all_methods(kind, type_, symmetric):
    values = draw(kind)
    counted = histogram(values)
    errors = {
        m: error(values, *range_of(counted, m, type_, symmetric=symmetric), type_, symmetric) for m in METHODS
    }
    assert errors["mse"] <= 1.01 * min(errors.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("type_", "symmetric"), [(INT8, True), (INT4, True)])
def test_mse_finds_what_trying_all_ranges_finds(kind, type_, symmetric):
    values = draw(kind)[-20_000:]
    top = float(np.abs(values).max())
    brute = min(
        error(values, max(-m, values.min()), min(m, values.max()), type_, symmetric)
        for m in np.linspace(top / 200, top, 400)
    )
    found = range_of(histogram(values), "mse", type_, symmetric=symmetric)
    assert error(values, *found, type_, symmetric) <= 1.01 * brute


def test_mse_with_powers_of_two_counts_with_the_rounded_scale():
    values = draw("gauss")
    low, high = range_of(histogram(values), "mse", INT8, symmetric=True, power_of_two=True)

    def loss(m):
        grid = grid_for_range(-m, m, INT8, symmetric=True, power_of_two=True)
        return float(np.mean((values - grid.fake(values)) ** 2))

    assert loss(max(-low, high)) <= 1.001 * min(loss(m) for m in np.linspace(0.5, 5, 50))


def test_optimal_clipping_of_a_gaussian_at_four_bits():
    # Banner et al. 2019, table 1: 2.55 sigma for 2^4 levels in the middle of the cells
    low, high = range_of(histogram(draw("gauss")), "mse", INT4, symmetric=True)
    assert 2.2 < max(-low, high) < 2.7


def test_the_error_integral_is_that_of_quantizing():
    grid = grid_for_range(-0.7, 1.9, QUANT_TYPES["uint4"])
    zero, scale = float(grid.zero_points().astype(np.int64)), float(grid.scale)
    x = np.linspace(-2, 3, 50_001)
    middle = (x[1:] + x[:-1]) / 2
    numeric = np.cumsum((middle - grid.fake(middle)) ** 2) * (x[1] - x[0])
    exact = _error_integral(x, np.float64(scale), (0 - zero) * scale, (15 - zero) * scale)
    np.testing.assert_allclose(exact[1:] - exact[0], numeric, atol=2e-5)


def naive_divergence(counts, start, end, groups):
    """KL(P || Q) as in TensorRT's slides, bin by bin."""
    p = counts[start:end].astype(float)
    inside = p.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[end:].sum()
    q = np.zeros(len(p))
    n = min(groups, len(p))
    for g in range(n):
        cell = slice(g * len(p) // n, (g + 1) * len(p) // n)
        support = p[cell] > 0
        if support.any():
            q[cell][support] = inside[cell].sum() / support.sum()
    p, q = p / p.sum(), q / q.sum() if q.sum() else q
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(p / q), 0).sum()


def test_divergences_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(30):
        counts = rng.integers(0, 5, 40).astype(float) * rng.integers(0, 2, 40)
        starts = rng.integers(0, 20, 12)
        ends = starts + rng.integers(1, 20, 12)
        found = _divergences(counts, starts, ends, 7)
        for s, e, value in zip(starts, ends, found, strict=True):
            expected = naive_divergence(counts, s, e, 7)
            if math.isfinite(expected):
                assert value == pytest.approx(expected, abs=1e-9)
            else:
                assert value == math.inf


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_clips_long_tails_and_nothing_else(symmetric):
    type_ = INT8 if symmetric else UINT8
    low, high = range_of(histogram(draw("uniform")), "entropy", type_, symmetric=symmetric)
    assert (low, high) == pytest.approx((-1, 3), abs=0.05)
    low, high = range_of(
        histogram(draw("laplace")),
        "entropy",
        QUANT_TYPES["int4" if symmetric else "uint4"],
        symmetric=symmetric,
    )
    assert 3 < high < 7


def test_entropy_of_wide_types_keeps_everything():
    values = draw("gauss")
    assert range_of(histogram(values), "entropy", INT16) == (values.min(), values.max())


@pytest.mark.parametrize("kind", KINDS)
def test_percentiles_are_those_of_the_values(kind):
    values = draw(kind)
    counted = histogram(values)
    width = float(np.diff(counted.edges()[:2])[0])
    low, high = range_of(counted, "percentile", UINT8, percentile=99)
    assert low == pytest.approx(np.quantile(values, 0.005, method="inverted_cdf"), abs=width)
    assert high == pytest.approx(np.quantile(values, 0.995, method="inverted_cdf"), abs=width)
    low, high = range_of(counted, "percentile", INT8, percentile=99, symmetric=True)
    assert high == pytest.approx(min(np.quantile(np.abs(values), 0.99), values.max()), abs=width)
    assert range_of(counted, "percentile", UINT8, percentile=100) == (values.min(), values.max())


def test_percentile_within_the_zeros():
    values = np.concatenate([np.zeros(99), [5.0]]).astype(np.float32)
    assert range_of(histogram(values), "percentile", UINT8, percentile=90) == (0, 0)


def test_minmax_of_every_statistic():
    values = draw("gauss").reshape(100, -1)
    ends = (values.min(), values.max())
    for statistic in (Histogram(), MinMax(), MovingMinMax()):
        assert range_of(statistic, "minmax", INT8) == (0, 0)
        statistic.update(values)
        assert range_of(statistic, "minmax", INT8) == ends
    absolute = AbsMax(axis=0)
    absolute.update(values)
    low, high = range_of(absolute, "minmax", INT8)
    np.testing.assert_array_equal(high, np.abs(values).max(axis=1))
    np.testing.assert_array_equal(low, -high)


@pytest.mark.parametrize("method", METHODS)
def test_each_channel_has_its_own_range(method):
    values = np.stack([draw("gauss"), draw("relu"), 100 * draw("uniform"), np.full(N, np.nan)])
    low, high = range_of(histogram(values, axis=0), method, UINT8)
    for c in range(3):
        assert (low[c], high[c]) == range_of(histogram(values[c]), method, UINT8)
    assert (low[3], high[3]) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "values",
    [[0.0], [3.5], [-2.0], [0.0, 1e-30], [1000, 1000.5, 1001], [-5, -5, -4], [1e38, -1e38], [1e-40, 2e-40]],
)
def test_odd_distributions_have_ranges(method, symmetric, values):
    values = np.array(values, np.float32)
    low, high = range_of(histogram(values), method, INT8, symmetric=symmetric)
    assert math.isfinite(low)
    assert values.min() <= low <= high <= values.max()


def test_bins_reach_zero():
    bins = Bins.of(histogram(np.linspace(1000, 1001, 5000)))
    assert bins.edges[0] == 0
    assert len(bins.counts) <= 8192
    assert bins.counts.sum() == 5000


def test_what_is_refused():
    with pytest.raises(ValueError, match="no method"):
        range_of(Histogram(), "best", INT8)
    with pytest.raises(ValueError, match="histogram"):
        range_of(MinMax(), "mse", INT8)
    with pytest.raises(ValueError, match="percentile"):
        range_of(Histogram(), "percentile", INT8, percentile=0)
