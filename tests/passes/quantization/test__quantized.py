"""Finding nodes with quantized weights, and giving them other weights and biases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt.passkit import Numerics, Pass, PassContext, RefusedRewrite, Rewriter
from graphopt.quantkit import QUANT_TYPES, Grid, grid_for_range, weight_grid
from graphopt.runtime.session import open_session
from graphopt.testing import Applied, apply
from graphopt_passes.quantization._quantized import (
    QuantizedNode,
    bias_array,
    bias_scale,
    find_quantized,
    set_bias,
    set_weight,
    weight_array,
)

Arrays = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Do(Pass):
    """Call a function on the graph; a pass is the only one that gets a Rewriter."""

    name: ClassVar[str] = "do"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    act: Callable[[Rewriter], None] = field(default=lambda graph: None)

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        self.act(graph)


class Text:
    """A model under construction, all of whose weights and activations are quantized."""

    def __init__(self, *dims: int, dtype: int = 1) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", dtype, list(dims))]

    def constant(self, name: str, values: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def op(self, op: str, inputs: list[str], output: str, **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}_node", **attrs))
        return output

    def weight(self, name: str, w: Arrays, grid: Grid) -> str:
        ins = [
            self.constant(f"{name}_q", grid.quantize(w)),
            self.constant(f"{name}_s", grid.scale),
            self.constant(f"{name}_z", grid.zero_points()),
        ]
        attrs = {} if grid.axis is None else {"axis": grid.axis}
        if grid.block:
            attrs["block_size"] = grid.block
        return self.op("DequantizeLinear", ins, f"{name}_dq", **attrs)

    def activation(self, x: str, grid: Grid) -> str:
        ins = [self.constant(f"{x}_s", grid.scale), self.constant(f"{x}_z", grid.zero_points())]
        return self.op("DequantizeLinear", [self.op("QuantizeLinear", [x, *ins], f"{x}_q"), *ins], f"{x}_dq")

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            self.inputs,
            [helper.make_tensor_value_info(o, 1, None) for o in outputs],
            self.constants,
        )
        for o in graph.output:
            o.type.tensor_type.shape.SetInParent()
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(_without_output_shapes(model))
        return inferred


def _without_output_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    for o in model.graph.output:
        o.type.tensor_type.ClearField("shape")
    return model


def run(model: onnx.ModelProto, x: Arrays) -> dict[str, Arrays]:
    with open_session(model, optimize="none") as session:
        return {k: np.asarray(v) for k, v in session.run({"x": x}).items()}


def on(model: onnx.ModelProto, act: Callable[[Rewriter], None]) -> Applied:
    return apply(Do(act), model)


def found(model: onnx.ModelProto) -> list[tuple[str, int, Grid, dict[int, Grid], Arrays, Arrays | None]]:
    out: list[Any] = []

    def look(graph: Rewriter) -> None:
        for q in find_quantized(graph):
            out.append(
                (q.node.op, q.slot, q.grid, dict(q.inputs), weight_array(graph, q), bias_array(graph, q))
            )

    on(model, look)
    return out


ACT = grid_for_range(-3.0, 3.0, QUANT_TYPES["uint8"])
INT8 = QUANT_TYPES["int8"]


def conv(bias: str = "int32", op: str = "Conv", axis: int | None = 0) -> tuple[onnx.ModelProto, Arrays]:
    text = Text(1, 4, 6, 6)
    w = RNG.standard_normal((4, 4, 3, 3)).astype(np.float32)
    grid = weight_grid(w, INT8, axis=axis)
    inputs = [text.activation("x", ACT), text.weight("w", w, grid)]
    if bias == "int32":
        scale = np.broadcast_to(ACT.scale * grid.scale, (4,)).astype(np.float32)
        wide = Grid(QUANT_TYPES["int32"], np.array(scale), None, 0)
        inputs.append(text.weight("b", np.arange(4, dtype=np.float32), wide))
    elif bias == "float":
        inputs.append(text.constant("b", np.arange(4, dtype=np.float32)))
    text.op(op, inputs, "y")
    return text.model("y"), w


@pytest.mark.parametrize("bias", ["int32", "float", "none"])
def test_conv(bias: str) -> None:
    model, w = conv(bias)
    ((op, slot, grid, inputs, values, b),) = found(model)
    assert (op, slot, list(inputs), grid.axis) == ("Conv", 1, [0], 0)
    assert inputs[0].same_as(ACT)
    assert values.tobytes() == grid.fake(w).tobytes()
    if bias == "none":
        assert b is None
    else:
        assert b is not None
        np.testing.assert_allclose(b, np.arange(4), atol=1e-3)


def test_conv_transpose_and_one_scale() -> None:
    ((op, _, grid, _, _, _),) = found(conv(op="ConvTranspose", axis=1)[0])
    assert (op, grid.axis) == ("ConvTranspose", 1)
    ((_, _, grid, _, _, _),) = found(conv(axis=None)[0])
    assert (grid.axis, grid.scale.shape) == (None, ())


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_products(op: str, slot: int) -> None:
    text = Text(8, 8)
    w = RNG.standard_normal((8, 8)).astype(np.float32)
    both = [text.activation("x", ACT), text.weight("w", w, weight_grid(w, INT8, axis=None))]
    text.op(op, both if slot else both[::-1], "y")
    ((found_op, found_slot, _, inputs, _, _),) = found(text.model("y"))
    assert (found_op, found_slot, list(inputs)) == (op, slot, [1 - slot])


def test_blocks_of_a_weight_only_matmul() -> None:
    text = Text(2, 32)
    w = RNG.standard_normal((32, 8)).astype(np.float32)
    grid = weight_grid(w, QUANT_TYPES["int4"], axis=0, block=16)
    text.op("MatMul", ["x", text.weight("w", w, grid)], "y")
    ((_, _, got, inputs, values, _),) = found(text.model("y"))
    assert got.same_as(grid)
    assert not inputs
    assert values.tobytes() == grid.fake(w).tobytes()


def test_embedding() -> None:
    text = Text(3, dtype=onnx.TensorProto.INT64)
    w = RNG.standard_normal((9, 4)).astype(np.float32)
    text.op("Gather", [text.weight("w", w, weight_grid(w, INT8, axis=0)), "x"], "y")
    ((op, slot, grid, inputs, _, _),) = found(text.model("y"))
    assert (op, slot, grid.axis, inputs) == ("Gather", 0, 0, {})


def test_float_weights_and_computed_scales_are_not_found() -> None:
    text = Text(8, 8)
    text.op("MatMul", [text.activation("x", ACT), text.constant("w", np.eye(8, dtype=np.float32))], "y")
    assert not found(text.model("y"))
    text = Text(8, 8)
    scale = text.op("ReduceMax", ["x"], "m", keepdims=0)
    q = text.constant("q", np.eye(8, dtype=np.int8))
    text.op("MatMul", ["x", text.op("DequantizeLinear", [q, scale], "w")], "y")
    assert not found(text.model("y"))


def test_another_weight_for_one_of_two_readers() -> None:
    text = Text(8, 8)
    w = RNG.standard_normal((8, 8)).astype(np.float32)
    grid = weight_grid(w, INT8, axis=1)
    weight = text.weight("w", w, grid)
    text.op("MatMul", ["x", weight], "y")
    text.op("MatMul", ["x", weight], "z")
    model = text.model("y", "z")
    fresh = grid.quantize(-w)

    def act(graph: Rewriter) -> None:
        q = set_weight(graph, find_quantized(graph)[0], fresh, "other integers")
        assert weight_array(graph, q).tobytes() == grid.dequantize(fresh).tobytes()

    done = on(model, act)
    assert [c.why for c in done.journal.changes] == ["other integers"]
    x = RNG.standard_normal((8, 8)).astype(np.float32)
    before, after = run(model, x), run(done.proto, x)
    np.testing.assert_allclose(after["y"], x @ grid.dequantize(fresh), rtol=1e-4, atol=1e-4)
    assert after["z"].tobytes() == before["z"].tobytes()
    # The old scale is still there once.
    assert sum(1 for i in done.proto.graph.initializer if i.dims == [8] and i.data_type == 1) == 1


def test_another_grid_takes_the_integer_bias_along() -> None:
    model, w = conv("int32")
    coarse = Grid(INT8, weight_grid(w, INT8, axis=0).scale * 2, None, 0)

    def act(graph: Rewriter) -> None:
        (q,) = find_quantized(graph)
        q = set_weight(graph, q, coarse.quantize(w), "coarser", grid=coarse)
        assert q.grid.same_as(coarse)
        b = bias_array(graph, q)
        assert b is not None
        np.testing.assert_allclose(b, np.arange(4), atol=1e-3)

    done = on(model, act)
    assert len(done.journal.changes) == 1
    x = RNG.standard_normal((1, 4, 6, 6)).astype(np.float32)
    assert np.abs(run(done.proto, x)["y"] - run(model, x)["y"]).max() < 1.0


@pytest.mark.parametrize(("bias", "kind"), [("int32", 6), ("float", 1), ("none", 6)])
def test_another_bias(bias: str, kind: int) -> None:
    model, _ = conv(bias)
    wanted = np.array([3.0, -1.0, 0.5, 100.0], np.float32)

    def act(graph: Rewriter) -> None:
        (q,) = find_quantized(graph)
        q = set_bias(graph, q, wanted, "corrected")
        got = bias_array(graph, q)
        assert got is not None
        np.testing.assert_allclose(got, wanted, atol=1e-3)
        source = q.bias if q.bias_dq is None else q.bias_dq.inputs[0]
        assert graph.dtype(source) == kind

    done = on(model, act)
    x = np.zeros((1, 4, 6, 6), np.float32)
    np.testing.assert_allclose(run(done.proto, x)["y"][0, :, 0, 0], wanted, atol=1e-3)


def test_a_bias_that_would_overflow_saturates() -> None:
    model, _ = conv("int32")

    def act(graph: Rewriter) -> None:
        (q,) = find_quantized(graph)
        set_bias(graph, q, np.full(4, 3e38, np.float32), "huge")

    done = on(model, act)
    assert np.isfinite(run(done.proto, np.zeros((1, 4, 6, 6), np.float32))["y"]).all()


def test_bias_of_a_matmul_is_the_add_behind_it() -> None:
    text = Text(2, 8)
    w = RNG.standard_normal((8, 4)).astype(np.float32)
    text.op("MatMul", ["x", text.weight("w", w, weight_grid(w, INT8, axis=1))], "p")
    text.op("Add", [text.constant("b", np.ones(4, np.float32)), "p"], "y")
    model = text.model("y")

    def act(graph: Rewriter) -> None:
        (q,) = find_quantized(graph)
        b = bias_array(graph, q)
        assert b is not None
        assert b.tolist() == [1] * 4
        set_bias(graph, q, np.full(4, 2.0), "corrected")

    done = on(model, act)
    x = np.zeros((2, 8), np.float32)
    assert (run(done.proto, x)["y"] == 2).all()


def test_a_matmul_without_a_bias_has_no_place_for_one() -> None:
    text = Text(2, 8)
    w = RNG.standard_normal((8, 4)).astype(np.float32)
    text.op("MatMul", ["x", text.weight("w", w, weight_grid(w, INT8, axis=1))], "y")

    def act(graph: Rewriter) -> None:
        (q,) = find_quantized(graph)
        with pytest.raises(RefusedRewrite, match="no place"):
            set_bias(graph, q, np.ones(4), "corrected")

    assert not on(text.model("y"), act).journal.changes


def test_what_an_accumulator_is_worth() -> None:
    w = weight_grid(np.eye(4), INT8, axis=0)
    scale = bias_scale(ACT, w)
    assert scale is not None
    assert scale.dtype == np.float32
    assert scale.tobytes() == (ACT.scale * w.scale).tobytes()
    assert bias_scale(ACT, weight_grid(np.eye(4), INT8, axis=0, block=2)) is None


def test_kept_nodes_stay() -> None:
    model, w = conv()

    def act(graph: Rewriter) -> None:
        (q,) = find_quantized(graph)
        assert isinstance(q, QuantizedNode)
        set_weight(graph, q, q.grid.quantize(-w), "other integers")

    done = apply(Do(act), model, keep=["y"])
    assert not done.journal.changes
    assert any("kept" in r for r in done.reasons)
