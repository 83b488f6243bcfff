"""Grids: bit for bit ONNX Runtime's QuantizeLinear and DequantizeLinear; ranges; weight scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import helper, numpy_helper

from graphopt.quantization.grid import (
    QUANT_TYPES,
    Grid,
    grid_for_range,
    quant_type,
    reduced,
    weight_grid,
)
from graphopt.runtime.session import open_session

EIGHT_AND_SIXTEEN = ("uint8", "int8", "uint16", "int16")
FINITE = st.floats(-1e6, 1e6, width=32)
BOUND = st.floats(0, 1e4, width=32)


def on_runtime(x: np.ndarray[Any, Any], grid: Grid) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What the runtime's kernels make of `x`: the integers (as int32) and the dequantized values."""
    attrs: dict[str, Any] = {} if grid.axis is None else {"axis": grid.axis}
    if grid.block:
        attrs["block_size"] = grid.block
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(grid.scale), "s"),
        numpy_helper.from_array(grid.zero_points(), "z"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attrs),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attrs),
        helper.make_node("Cast", ["q"], ["i"], to=onnx.TensorProto.INT32),
    ]
    dims = list(x.shape)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, dims)],
        [helper.make_tensor_value_info("y", 1, dims), helper.make_tensor_value_info("i", 6, dims)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with open_session(model, optimize="none") as session:
        out = session.run({"x": x})
    return np.asarray(out["i"]), np.asarray(out["y"])


def check(x: np.ndarray[Any, Any], grid: Grid) -> None:
    q, y = on_runtime(x, grid)
    stored = grid.quantize(x)
    assert stored.dtype == grid.type.dtype
    np.testing.assert_array_equal(stored.astype(np.int32), q)
    assert grid.dequantize(stored).tobytes() == y.tobytes()
    assert grid.fake(x).tobytes() == y.tobytes()


@settings(max_examples=60, deadline=None)
@given(
    x=arrays(np.float32, (4, 6), elements=FINITE),
    name=st.sampled_from([*EIGHT_AND_SIXTEEN, "int4", "uint4"]),
    low=BOUND,
    high=BOUND,
    symmetric=st.booleans(),
    power_of_two=st.booleans(),
)
def test_per_tensor(
    x: np.ndarray[Any, Any], name: str, low: float, high: float, symmetric: bool, power_of_two: bool
) -> None:
    kind = QUANT_TYPES[name]
    check(x, grid_for_range(-low, high, kind, symmetric=symmetric, power_of_two=power_of_two))


@settings(max_examples=40, deadline=None)
@given(
    x=arrays(np.float32, (2, 3, 4), elements=FINITE),
    name=st.sampled_from(EIGHT_AND_SIXTEEN),
    high=arrays(np.float32, (3,), elements=st.floats(0.125, 1e4, width=32)),
)
def test_per_axis(x: np.ndarray[Any, Any], name: str, high: np.ndarray[Any, Any]) -> None:
    check(x, grid_for_range(-0.3 * high, high, QUANT_TYPES[name], axis=1))


@settings(max_examples=30, deadline=None)
@given(
    x=arrays(np.float32, (10, 3), elements=st.floats(-9, 9, width=32)),
    name=st.sampled_from([*EIGHT_AND_SIXTEEN, "int4", "uint4"]),
    block=st.sampled_from([2, 4, 5, 16]),
    axis=st.sampled_from([0, 1]),
)
def test_blocked(x: np.ndarray[Any, Any], name: str, block: int, axis: int) -> None:
    kind = QUANT_TYPES[name]
    grid = weight_grid(x, kind, axis=axis, block=block, symmetric=kind.signed)
    assert grid.scale.shape == tuple(-(-d // block) if i == axis else d for i, d in enumerate(x.shape))
    check(x, grid)


def test_halves_round_to_even_and_ends_saturate() -> None:
    grid = Grid(QUANT_TYPES["uint8"], np.array(2.0, np.float32), np.array(3, np.uint8))
    x = np.array([1, 3, 5, -1, -3, 1e30, -1e30, np.inf, -np.inf], np.float32)
    assert grid.quantize(x).tolist() == [3, 5, 5, 3, 1, 255, 0, 255, 0]
    check(x, grid)


def test_int32_is_dequantized_per_axis() -> None:
    grid = Grid(QUANT_TYPES["int32"], np.array([0.5, 0.25], np.float32), axis=0)
    assert grid.dequantize(np.array([7, -9], np.int32)).tolist() == [3.5, -2.25]
    assert grid.quantize(np.array([3.5, -2.25], np.float32)).tolist() == [7, -9]


@pytest.mark.parametrize("name", sorted(QUANT_TYPES))
def test_types_hold_their_bounds(name: str) -> None:
    kind = QUANT_TYPES[name]
    ends = np.array([kind.qmin, kind.qmax]).astype(kind.dtype)
    assert ends.astype(np.int64).tolist() == [kind.qmin, kind.qmax]
    assert quant_type(kind.onnx_type) is kind
    assert kind.levels == 2**kind.bits - 1


def test_other_types_are_none() -> None:
    assert quant_type(onnx.TensorProto.FLOAT) is None
    assert quant_type(None) is None


def test_reduced_uses_seven_bits() -> None:
    assert (reduced(QUANT_TYPES["uint8"]).qmin, reduced(QUANT_TYPES["uint8"]).qmax) == (0, 127)
    assert (reduced(QUANT_TYPES["int8"]).qmin, reduced(QUANT_TYPES["int8"]).qmax) == (-64, 63)
    grid = grid_for_range(-1.0, 1.0, reduced(QUANT_TYPES["int8"]), symmetric=True)
    q = grid.quantize(np.linspace(-2, 2, 99, dtype=np.float32)).astype(int)
    assert (q.min(), q.max()) == (-64, 63)


@given(
    low=BOUND, high=BOUND, name=st.sampled_from(sorted(set(QUANT_TYPES) - {"int32"})), symmetric=st.booleans()
)
def test_ranges_are_covered_and_zero_is_exact(low: float, high: float, name: str, symmetric: bool) -> None:
    grid = grid_for_range(-low, high, QUANT_TYPES[name], symmetric=symmetric)
    step = float(grid.scale)
    x = np.array([-low, 0.0, high], np.float32)
    y = grid.fake(x)
    assert y[1] == 0.0
    # An asymmetric range loses up to half a step where the zero point is rounded, besides rounding itself.
    assert np.abs(y - x).max() <= 1.001 * step + 1e-6 * max(low, high)


def test_a_range_that_starts_at_zero_puts_the_zero_point_at_the_end() -> None:
    for name in ("uint8", "uint16", "int8"):
        kind = QUANT_TYPES[name]
        assert int(grid_for_range(0.0, 6.0, kind).zero_points()) == kind.qmin
        # A range that does not reach 0 is widened to it.
        assert int(grid_for_range(2.0, 6.0, kind).zero_points()) == kind.qmin
        assert int(grid_for_range(-6.0, -2.0, kind).zero_points()) == kind.qmax


@pytest.mark.parametrize("symmetric", [False, True])
def test_degenerate_ranges(symmetric: bool) -> None:
    for low, high in ((0.0, 0.0), (0.0, 1e-45), (-3.4e38, 3.4e38), (5.0, 5.0)):
        for name in ("uint8", "int8", "int4"):
            grid = grid_for_range(low, high, QUANT_TYPES[name], symmetric=symmetric)
            assert np.isfinite(grid.scale)
            assert grid.scale > 0
            assert float(grid.fake(np.zeros(1, np.float32))[0]) == 0.0


def test_ranges_that_are_none() -> None:
    with pytest.raises(ValueError, match="not finite"):
        grid_for_range(0.0, np.inf, QUANT_TYPES["uint8"])
    with pytest.raises(ValueError, match="swapped"):
        grid_for_range(2.0, 1.0, QUANT_TYPES["uint8"])


def test_symmetric_makes_use_of_the_value_that_only_negatives_have() -> None:
    kind = QUANT_TYPES["int4"]
    assert float(grid_for_range(-8.0, 5.0, kind, symmetric=True).scale) == 1.0
    assert float(grid_for_range(-5.0, 7.0, kind, symmetric=True).scale) == 1.0
    assert int(grid_for_range(-1.0, 1.0, QUANT_TYPES["uint8"], symmetric=True).zero_points()) == 128


@given(high=st.floats(1e-30, 1e30))
def test_powers_of_two(high: float) -> None:
    scale = float(grid_for_range(-high, high, QUANT_TYPES["int8"], symmetric=True, power_of_two=True).scale)
    assert np.frexp(scale)[0] == 0.5
    assert scale * 127 >= high * (1 - 1e-6)
    assert scale * 127 <= 2.001 * high


def weights(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_t(4, (6, 8, 3, 3)).astype(np.float32)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("name", ["int8", "int4", "uint8"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mse_is_never_worse_than_minmax(axis: int | None, name: str, symmetric: bool) -> None:
    w, kind = weights(), QUANT_TYPES[name]
    errors = []
    for method in ("minmax", "mse"):
        grid = weight_grid(w, kind, axis=axis, symmetric=symmetric, method=method)
        assert grid.scale.shape == (() if axis is None else (w.shape[axis],))
        errors.append(float(((grid.fake(w) - w) ** 2).sum()))
    assert errors[1] <= errors[0]
    if name == "int4" and symmetric:
        assert errors[1] < 0.95 * errors[0]  # heavy tails: it must find something


def test_mse_with_four_bits_is_close_to_an_exhaustive_search() -> None:
    w, kind = weights(3).reshape(6, -1), QUANT_TYPES["int4"]
    grid = weight_grid(w, kind, axis=0, method="mse")
    got = ((grid.fake(w) - w) ** 2).sum(axis=1)
    for row, error in zip(w, got, strict=True):
        scales = np.abs(row).max() / 7 * np.linspace(0.1, 1.0, 2000, dtype=np.float32)
        least = min(
            float(((Grid(kind, s.reshape(())).fake(row) - row) ** 2).sum()) for s in scales.astype(np.float32)
        )
        assert error <= 1.02 * least


def test_mse_of_blocks_and_powers_of_two() -> None:
    w = weights(1).reshape(48, 9)
    plain = weight_grid(w, QUANT_TYPES["int4"], axis=0, block=16)
    best = weight_grid(w, QUANT_TYPES["int4"], axis=0, block=16, method="mse")
    fixed = weight_grid(w, QUANT_TYPES["int4"], axis=0, block=16, method="mse", power_of_two=True)
    assert plain.scale.shape == best.scale.shape == (3, 9)
    assert ((best.fake(w) - w) ** 2).sum() < ((plain.fake(w) - w) ** 2).sum()
    assert (np.frexp(fixed.scale)[0] == 0.5).all()


def test_weights_of_zeros_and_of_no_elements() -> None:
    kind = QUANT_TYPES["int8"]
    for shape in ((3, 4), (3, 0), (0, 4)):
        for method in ("minmax", "mse"):
            w = np.zeros(shape, np.float32)
            grid = weight_grid(w, kind, axis=0, method=method)
            assert grid.scale.shape == (shape[0],)
            assert not grid.fake(w).any()


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        weight_grid(np.array([1.0, np.nan]), QUANT_TYPES["int8"], axis=None)
    with pytest.raises(ValueError, match="axis"):
        weight_grid(np.ones(4), QUANT_TYPES["int8"], axis=None, block=2)


def test_opsets_that_grids_need() -> None:
    w = weights()
    assert weight_grid(w, QUANT_TYPES["int8"], axis=None).min_opset == 10
    assert weight_grid(w, QUANT_TYPES["int8"], axis=0).min_opset == 13
    assert weight_grid(w, QUANT_TYPES["int8"], axis=0, block=2).min_opset == 21
    assert weight_grid(w, QUANT_TYPES["int4"], axis=0).min_opset == 21
    assert weight_grid(w, QUANT_TYPES["int2"], axis=0).min_opset == 25


def test_equal_grids() -> None:
    a = grid_for_range(-1.0, 1.0, QUANT_TYPES["int8"], symmetric=True)
    assert a.same_as(Grid(a.type, a.scale))
    assert not a.same_as(grid_for_range(-1.0, 1.0, QUANT_TYPES["int8"]))
    assert not a.same_as(grid_for_range(-2.0, 2.0, QUANT_TYPES["int8"], symmetric=True))
