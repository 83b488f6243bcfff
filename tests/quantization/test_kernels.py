"""Which integer kernels are predicted, and what people are told where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.graph.view import GraphView
from graphopt.model import Model
from graphopt.quantization.kernels import Prediction, has_integer_kernel, predict

X = "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)"
W = "wd = DequantizeLinear(w, ws, wz)"
Y = "yq = QuantizeLinear(a, s, z) y = DequantizeLinear(yq, s, z)"
CONV = f"{X} {W} a = Conv <pads = [1, 1, 1, 1]> (xd, wd) {Y}"
CONSTANTS: dict[str, Any] = {
    "s": np.float32(0.1),
    "z": np.uint8(0),
    "w": np.ones((4, 4, 3, 3), np.int8),
    "ws": np.float32(0.02),
    "wz": np.int8(0),
    "m": np.ones((8, 8), np.int8),
    "b": np.zeros(4, np.float32),
}


def rows(
    nodes: str,
    constants: Mapping[str, Any] | None = None,
    *,
    target: str = "ort-cpu",
    opset: int = 17,
    x: str = "float[1, 4, 8, 8] x",
    y: str = "float[1, 4, 8, 8] y",
) -> dict[str, Prediction]:
    text = f'<ir_version: 9, opset_import: ["" : {opset}]> g ({x}) => ({y}) {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    values = CONSTANTS | dict(constants or {})
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in values.items())
    model = Model.load(proto)
    state = GraphState(model, infer(model))
    return {p.node.op: p for body in model.bodies() for p in predict(GraphView(state, body), target)}


def test_a_convolution() -> None:
    found = rows(CONV)["Conv"]
    assert (found.kernel, found.reason, found.fix) == ("QLinearConv", "", "")
    assert found.quantized
    assert found.eligible
    assert not found.moves_data


@pytest.mark.parametrize(
    ("nodes", "constants", "reason", "fix"),
    [
        (f"{X} {W} y = Conv <pads = [1, 1, 1, 1]> (xd, wd)", {}, "its output is not quantized", "after it"),
        (f"{W} a = Conv <pads = [1, 1, 1, 1]> (x, wd) {Y}", {}, "its input x is not quantized", "on x"),
        (
            f"{X} {W} a = Conv <pads = [1, 1, 1, 1]> (xd, wd) {Y} o = Neg(a)",
            {},
            "also read by Neg",
            "read the dequantized output",
        ),
        (
            f"{X} {W} c = Conv <pads = [1, 1, 1, 1]> (xd, wd) a = Relu(c) {Y}",
            {"z": np.uint8(9)},
            "the Relu behind it cannot be part of the kernel",
            "start at 0",
        ),
        (
            f"{X} {W} c = Conv <pads = [1, 1, 1, 1]> (xd, wd) a = Clip(c, lo, hi) {Y}",
            {"lo": np.float32(0), "hi": np.float32(6)},
            "the Clip behind it cannot be part",
            "within the Clip's bounds",
        ),
        (
            f"{X} {W} bd = DequantizeLinear(bq, bs) a = Conv <pads = [1, 1, 1, 1]> (xd, wd, bd) {Y}",
            {"bq": np.ones(4, np.int32), "bs": np.float32(0.004)},
            "is not the product of its input's and its weight's scales",
            "with that product",
        ),
        (
            f"{X} {W} a = Conv <pads = [1, 1, 1, 1]> (xd, wd) {Y} d = DequantizeLinear(xq, s, z) o = Neg(d)",
            {"z": np.int8(-128)},
            "int8",
            "quantize activations to uint8",
        ),
    ],
)
def test_why_a_convolution_stays_float(nodes: str, constants: dict[str, Any], reason: str, fix: str) -> None:
    outputs = "float[1, 4, 8, 8] y" + (", float[1, 4, 8, 8] o" if "o = " in nodes else "")
    found = rows(nodes, constants, y=outputs)["Conv"]
    assert found.kernel is None
    assert reason in found.reason
    assert fix in found.fix


@pytest.mark.parametrize("bias", [0.002, 0.00201])
def test_an_int32_bias_with_the_scale_of_the_product(bias: float) -> None:
    nodes = f"{X} {W} bd = DequantizeLinear(bq, bs) a = Conv <pads = [1, 1, 1, 1]> (xd, wd, bd) {Y}"
    assert rows(nodes, {"bq": np.ones(4, np.int32), "bs": np.float32(bias)})["Conv"].kernel == "QLinearConv"


def test_float_biases_and_weights_are_quantized_by_onnxruntime() -> None:
    assert rows(f"{X} {W} a = Conv <pads = [1, 1, 1, 1]> (xd, wd, b) {Y}")["Conv"].kernel == "QLinearConv"
    nodes = f"{X} a = Conv <pads = [1, 1, 1, 1]> (xd, w) {Y}"
    assert rows(nodes, {"w": np.ones((4, 4, 3, 3), np.float32)})["Conv"].kernel == "QLinearConv"


def test_implied_activations_are_part_of_the_kernel() -> None:
    found = rows(f"{X} {W} c = Conv <pads = [1, 1, 1, 1]> (xd, wd) a = Relu(c) {Y}")
    assert found["Conv"].kernel == found["Relu"].kernel == "QLinearConv"
    assert found["Relu"].merged


MATRIX = {"x": "float[2, 8] x", "y": "float[2, 8] y"}
M = "wd = DequantizeLinear(m, ws, wz)"


def test_matrix_products() -> None:
    assert rows(f"{X} {M} a = MatMul(xd, wd) {Y}", **MATRIX)["MatMul"].kernel == "QLinearMatMul"
    assert rows(f"{X} {M} y = MatMul(xd, wd)", **MATRIX)["MatMul"].kernel == "MatMulIntegerToFloat"
    assert rows(f"{M} y = MatMul(x, wd)", **MATRIX)["MatMul"].kernel == "MatMulNBits"
    bias = {"b": np.zeros(8, np.float32)}
    found = rows(f"{X} {M} p = MatMul(xd, wd) a = Add(p, b) {Y}", bias, **MATRIX)
    assert found["MatMul"].kernel == found["Add"].kernel == "QGemm"
    assert found["Add"].merged
    alone = rows(f"{X} {M} p = MatMul(xd, wd) y = Add(p, b)", bias, **MATRIX)["MatMul"]
    assert alone.kernel is None
    assert "its bias is float and its output is not quantized" in alone.reason


def test_matmul_before_an_unquantized_relu() -> None:
    found = rows(f"{X} {M} p = MatMul(xd, wd) r = Relu(p) y = Neg(r)", **MATRIX)["MatMul"]
    assert found.kernel is None
    assert found.reason == "the Relu behind it is not quantized"


def test_gemm_wants_zero_points() -> None:
    wd = "wd = DequantizeLinear(m, ws)"
    found = rows(f"{X} {wd} a = Gemm(xd, wd) {Y}", **MATRIX)["Gemm"]
    assert "the zero point of wd is left out" in found.reason
    assert rows(f"{X} {M} a = Gemm(xd, wd) {Y}", **MATRIX)["Gemm"].kernel == "QGemm"
    scaled = f"{X} {M} a = Gemm <alpha = 0.5> (xd, wd, b) {Y}"
    assert "alpha" in rows(scaled, {"b": np.zeros(8, np.float32)}, **MATRIX)["Gemm"].reason


def test_sixteen_bits() -> None:
    found = rows(CONV, {"z": np.uint16(0)}, opset=21)["Conv"]
    assert "there are no 16-bit kernels" in found.reason


def test_residuals_need_both_inputs() -> None:
    assert "its input x is not quantized" in rows(f"{X} a = Add(xd, x) {Y}")["Add"].reason
    assert rows(f"{X} a = Add(xd, xd) {Y}")["Add"].kernel == "QLinearAdd"
    ones = {"s": np.full(1, 0.1, np.float32), "z": np.zeros(1, np.uint8)}
    assert "rank 0" in rows(f"{X} a = Add(xd, xd) {Y}", ones)["Add"].reason


def test_moves_of_data() -> None:
    same = rows(f"{X} a = Transpose <perm = [0, 1, 3, 2]> (xd) {Y}")["Transpose"]
    assert same.kernel == "Transpose"
    assert same.moves_data
    other = "yq = QuantizeLinear(a, s2, z) y = DequantizeLinear(yq, s2, z)"
    found = rows(f"{X} a = Flatten(xd) {other}", {"s2": np.float32(0.2)}, y="float[1, 256] y")["Flatten"]
    assert "different scales" in found.reason


def test_operators_without_a_kernel() -> None:
    found = rows(f"{X} a = Tanh(xd) {Y}")["Tanh"]
    assert "no integer kernel for Tanh" in found.reason
    assert found.quantized
    assert not found.eligible
    assert rows("y = Tanh(x)")["Tanh"].reason == "not quantized"


def test_inside_of_a_body() -> None:
    inner = CONV.replace("y = ", "u = ")
    found = rows(
        f"""y = If (c) <
            then_branch = t () => (float[1, 4, 8, 8] u) {{ {inner} }},
            else_branch = e () => (float[1, 4, 8, 8] v) {{ v = Neg(x) }}
        >""",
        x="float[1, 4, 8, 8] x, bool c",
    )
    assert found["Conv"].kernel == "QLinearConv"
    assert "If" not in found


def test_other_targets() -> None:
    cuda = rows(CONV, target="ort-cuda")["Conv"]
    assert cuda.kernel is None
    assert "no integer kernels but MatMulNBits" in cuda.reason
    assert rows(f"{M} y = MatMul(x, wd)", target="ort-cuda", **MATRIX)["MatMul"].kernel == "MatMulNBits"
    assert has_integer_kernel("MatMul", "ort-cuda")
    assert not has_integer_kernel("Conv", "ort-cuda")


def test_tensorrt() -> None:
    symmetric = {"z": np.int8(0)}
    assert rows(CONV, symmetric, target="tensorrt")["Conv"].kernel == "int8"
    assert "TensorRT takes int8 only" in rows(CONV, target="tensorrt")["Conv"].reason
    asymmetric = rows(CONV, {"z": np.int8(3)}, target="tensorrt")["Conv"]
    assert "zero point other than 0" in asymmetric.reason
    bias = f"{X} {W} bd = DequantizeLinear(bq, bs) a = Conv <pads = [1, 1, 1, 1]> (xd, wd, bd) {Y}"
    found = rows(bias, {**symmetric, "bq": np.ones(4, np.int32), "bs": np.float32(0.002)}, target="tensorrt")
    assert "rejects the quantized bias" in found["Conv"].reason
    assert "is not quantized" in rows(f"{X} a = Add(xd, x) {Y}", symmetric, target="tensorrt")["Add"].reason


DYNAMIC = """
    q, qs, qz = DynamicQuantizeLinear(x)
    i = MatMulInteger(q, m, qz, wz)
    f = Cast <to = 1> (i)
    k = Mul(qs, ws)
    p = Mul(f, k)
"""


def test_dynamic_products() -> None:
    found = rows(f"{DYNAMIC} y = Add(p, b)", {"b": np.zeros(8, np.float32)}, **MATRIX)
    assert {op: p.kernel for op, p in found.items()} == dict.fromkeys(
        ("MatMulInteger", "Cast", "Mul", "Add"), "DynamicQuantizeMatMul"
    )
    shared = rows(
        f"{DYNAMIC} y = Neg(p) o = Cast <to = 1> (q)", x=MATRIX["x"], y="float[2, 8] y, float[2, 8] o"
    )
    assert shared["MatMulInteger"].kernel == "MatMulIntegerToFloat"
    plain = rows(
        f"{DYNAMIC} y = Identity(p) j = Identity(f)", x=MATRIX["x"], y="float[2, 8] y, float[2, 8] j"
    )
    assert plain["MatMulInteger"].kernel == "MatMulInteger"


def test_embeddings_stored_as_integers() -> None:
    nodes = "g = Gather(m, ids) y = DequantizeLinear(g, ws, wz)"
    found = rows(nodes, x="int64[2] ids", y="float[2, 8] y")["Gather"]
    assert found.kernel == "Gather"
    assert found.moves_data
