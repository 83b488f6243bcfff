"""Layers as rows and columns: what they compute must be what ONNX Runtime computes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from weight_models import build

from graphopt.passkit import Numerics, Pass, PassContext, RefusedRewrite, Rewriter
from graphopt.quantkit import QUANT_TYPES
from graphopt.runtime.session import open_session
from graphopt.testing import apply
from graphopt_passes.linear.moments import LayerMoments
from graphopt_passes.linear.rows import MatrixRows, thinning
from graphopt_passes.linear.sweeps import by_depth
from graphopt_passes.quantization._layers import Layer, bits_used, read_layer
from graphopt_passes.quantization._quantized import find_quantized, weight_array
from graphopt_passes.quantization.quantize_weights import QuantizeWeights

RNG = np.random.default_rng(3)


@dataclass(frozen=True, eq=False)
class Read(Pass):
    """Collect the layers of a model."""

    name: ClassVar[str] = "read"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    found: list[tuple[Layer, Any, Any]] = field(default_factory=list)
    levels: list[list[str]] = field(default_factory=list)

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        layers = []
        for quantized in find_quantized(graph):
            try:
                layer = read_layer(graph, quantized)
            except RefusedRewrite as refused:
                graph.refuse(quantized.node, refused.reason)
                continue
            self.found.append((layer, weight_array(graph, quantized), graph.array(quantized.q)))
            layers.append(layer)
        self.levels.extend([x.quantized.node.op for x in level] for level in by_depth(graph, layers))


def read(model: onnx.ModelProto, **options: Any) -> tuple[Read, onnx.ModelProto, list[str]]:
    collect = Read()
    done = apply([QuantizeWeights(min_elements=1, **options), collect], model)
    return collect, done.proto, done.reasons


CASES = {
    "conv": ("(float[N, 6, 9, 8] x) => (float y) { y = Conv(x, w) }", (4, 6, 3, 2)),
    "padded": (
        "(float[N, 6, 9, 8] x) => (float y) "
        "{ y = Conv<pads=[1, 0, 2, 1], strides=[2, 1], dilations=[1, 2]>(x, w) }",
        (4, 6, 3, 2),
    ),
    "same_upper": (
        '(float[N, 6, 9, 8] x) => (float y) { y = Conv<auto_pad="SAME_UPPER", strides=[2, 2]>(x, w) }',
        (4, 6, 4, 3),
    ),
    "same_lower": (
        '(float[N, 6, 9, 8] x) => (float y) { y = Conv<auto_pad="SAME_LOWER">(x, w) }',
        (4, 6, 4, 2),
    ),
    "valid": ('(float[N, 6, 9, 8] x) => (float y) { y = Conv<auto_pad="VALID">(x, w) }', (4, 6, 3, 3)),
    "grouped": ("(float[N, 6, 9, 8] x) => (float y) { y = Conv<group=2>(x, w) }", (4, 3, 3, 3)),
    "depthwise": (
        "(float[N, 6, 9, 8] x) => (float y) { y = Conv<group=6, pads=[1, 1, 1, 1]>(x, w) }",
        (12, 1, 3, 3),
    ),
    "conv1d": ("(float[N, 6, 9] x) => (float y) { y = Conv<dilations=[2]>(x, w) }", (4, 6, 3)),
    "conv3d": ("(float[N, 2, 5, 4, 6] x) => (float y) { y = Conv<group=2>(x, w) }", (12, 1, 2, 3, 2)),
    "matmul": ("(float[N, 5, 12] x) => (float y) { y = MatMul(x, w) }", (12, 7)),
    "left": ("(float[N, 12, 5] x) => (float y) { y = MatMul(w, x) }", (7, 12)),
    "gemm": ("(float[N, 12] x) => (float y) { y = Gemm<alpha=0.5>(x, w) }", (12, 7)),
    "gemm_b": ("(float[N, 12] x) => (float y) { y = Gemm<transB=1>(x, w) }", (7, 12)),
    "gemm_a": ("(float[12, N] x) => (float y) { y = Gemm<transA=1, transB=1>(x, w) }", (7, 12)),
    "gemm_left": ("(float[12, 3] x) => (float y) { y = Gemm(w, x) }", (7, 12)),
    "gemm_left_ab": ("(float[3, 12] x) => (float y) { y = Gemm<transA=1, transB=1>(w, x) }", (12, 7)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [{}, {"bits": 4, "symmetric": False}])
def test_rows_times_weights_are_the_outputs(case: str, options: dict[str, Any]) -> None:
    body, shape = CASES[case]
    collect, proto, _ = read(build(body, w=shape), **options)
    ((layer, weight, q),) = collect.found
    dims = [d.dim_value or 4 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = RNG.standard_normal(dims).astype(np.float32)
    with open_session(proto, optimize="none") as session:
        y = np.asarray(session.run({"x": x})["y"])
    rows = layer.to_rows(weight)
    assert rows.shape == layer.shape
    assert (layer.from_rows(rows) == weight).all()
    for inputs, outputs in layer.unfolding.blocks(x, y):
        np.testing.assert_allclose(inputs @ np.swapaxes(rows, 1, 2), outputs, rtol=1e-4, atol=1e-4)
    # The lattice stands for the same values as the grid.
    lattice = layer.lattice(q)
    values = lattice.values(layer.to_rows(q.astype(np.int32)).astype(np.float64))
    np.testing.assert_allclose(values, rows, rtol=1e-6)


@pytest.mark.parametrize("block", [0, 16])
def test_scales_of_rows_and_of_blocks(block: int) -> None:
    body, shape = "(float[N, 40] x) => (float y) { y = MatMul(x, w) }", (40, 7)
    ((layer, _, q),) = read(build(body, w=shape), bits=4, block_size=block)[0].found
    groups = layer.scale_groups()
    assert groups is not None
    assert groups.tolist() == ([0] * 40 if not block else [0] * 16 + [1] * 16 + [2] * 8)
    lattice = layer.lattice(q)
    assert lattice.scale.shape == ((1, 7, 40) if block else (1, 7, 1))
    doubled = layer.with_scales(dataclasses.replace(lattice, scale=lattice.scale * 2))
    assert (doubled.scale == layer.quantized.grid.scale * 2).all()


def test_rows_that_share_a_scale_have_no_groups() -> None:
    body = "(float[N, 5, 12] x) => (float y) { y = MatMul(x, w) }"
    ((layer, _, _),) = read(build(body, w=(12, 7)))[0].found
    grid = dataclasses.replace(
        layer.quantized.grid, scale=np.array(0.1, np.float32), zero_point=None, axis=None
    )
    one = dataclasses.replace(layer, quantized=dataclasses.replace(layer.quantized, grid=grid))
    assert one.scale_groups() is None


def test_large_outputs_are_thinned_out() -> None:
    assert thinning((64, 64), 512) == 1
    assert thinning((65, 64), 512) == 3
    assert thinning((224, 224), 512) == 5
    assert thinning((100_000,), 512) == 25
    body = "(float[N, 1, 100, 90] x) => (float y) { y = Conv<strides=[1, 1]>(x, w) }"
    ((layer, _, _),) = read(build(body, w=(16, 1, 3, 3)))[0].found
    x = RNG.standard_normal((2, 1, 100, 90)).astype(np.float32)
    rows = np.concatenate([b[0] for b in layer.unfolding.blocks(x)], axis=1)
    # Nine inputs per output need 1,024 positions at most: every 3rd along both axes.
    assert rows.shape == (1, 2 * 33 * 30, 9)
    assert (rows[0, 31] == x[0, 0, 3:6, 3:6].reshape(-1)).all()


def test_depth() -> None:
    collect, _, _ = read(
        build(
            "(float[N, 16] x) => (float y) { a = MatMul(x, v)  b = MatMul(x, w)  c = Add(a, b)  y = Gemm(c, w) }",
            v=(16, 16),
            w=(16, 16),
        )
    )
    assert collect.levels == [["MatMul", "MatMul"], ["Gemm"]]


@pytest.mark.parametrize(
    ("body", "shape", "ops", "reason"),
    [
        ("(float[N, 3, 12] x) => (float y) { y = MatMul(x, w) }", (3, 12, 7), "MatMul", "3 axes, not 2"),
        (
            "(float[N, 6, 5, 5] x) => (float y) { y = ConvTranspose(x, w) }",
            (6, 4, 3, 3),
            "ConvTranspose",
            "ConvTranspose is no convolution",
        ),
    ],
)
def test_what_is_no_layer(body: str, shape: tuple[int, ...], ops: str, reason: str) -> None:
    collect, _, reasons = read(build(body, w=shape), ops=(ops,))
    assert not collect.found
    assert any(reason in r for r in reasons), reasons


def test_bits_in_use() -> None:
    int8, uint4 = QUANT_TYPES["int8"], QUANT_TYPES["uint4"]
    assert bits_used(np.array([-127, 90]), int8) == (-128, 127)
    assert bits_used(np.array([-64, 63]), int8) == (-64, 63)
    assert bits_used(np.array([0, 7]), uint4) == (0, 7)
    assert bits_used(np.array([3, 8]), uint4) == (0, 15)
    assert bits_used(np.array([-1, 0, 1]), int8) == (-2, 1)


def test_moments_are_those_of_all_rows() -> None:
    body, shape = CASES["grouped"]
    ((layer, _, _),) = read(build(body, w=shape))[0].found
    x = RNG.standard_normal((5, 6, 9, 8)).astype(np.float32)
    mine, wanted = (RNG.standard_normal((5, 4, 7, 6)).astype(np.float32) for _ in range(2))
    moments = LayerMoments(layer.unfolding)
    one, other = moments.fresh(), moments.fresh()
    assert one.key == other.key == moments.key
    one.update(x[:3], mine[:3], wanted[:3])
    other.update(x[3:], mine[3:], wanted[3:])
    one.merge(other)
    total = one.total
    ((rows, d, y),) = layer.unfolding.blocks(x, wanted - mine, wanted)
    turned = np.swapaxes(rows, 1, 2)
    assert total.count == rows.shape[1] == 5 * 42
    for name, expected in {
        "xx": turned @ rows,
        "x": rows.sum(axis=1),
        "xd": turned @ d,
        "d": d.sum(axis=1),
        "dd": (d**2).sum(axis=1),
        "y": y.sum(axis=1),
        "yy": (y**2).sum(axis=1),
    }.items():
        np.testing.assert_allclose(getattr(total, name), expected, rtol=1e-3, atol=1e-3)
    assert all(abs(half.count - 105) <= 1 for half in one.halves)
    with pytest.raises(ValueError, match="shape"):
        one.update(x, mine, wanted[:, :2])
    with pytest.raises(ValueError, match="different kinds"):
        one.merge(LayerMoments(MatrixRows()))


def test_rows_that_are_not_finite_are_left_out() -> None:
    body, shape = CASES["matmul"]
    ((layer, _, _),) = read(build(body, w=shape))[0].found
    x = RNG.standard_normal((2, 5, 12)).astype(np.float32)
    mine, wanted = (RNG.standard_normal((2, 5, 7)).astype(np.float32) for _ in range(2))
    clean = LayerMoments(layer.unfolding)
    clean.update(*(np.delete(v.reshape(10, -1), [1, 8], axis=0) for v in (x, mine, wanted)))
    x[0, 1, 3], wanted[1, 3, 0] = np.nan, np.inf
    dirty = LayerMoments(layer.unfolding)
    dirty.update(x, mine, wanted)
    assert dirty.left_out == 2
    np.testing.assert_allclose(dirty.total.xx, clean.total.xx, rtol=1e-5)
    np.testing.assert_allclose(dirty.total.xd, clean.total.xd, rtol=1e-4, atol=1e-5)
    assert dirty.total.count == 8
