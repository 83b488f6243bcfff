"""What onnxruntime executes, traced back to the nodes of the model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt.model import Model
from graphopt.runtime.kernels import Executed, Ran, executed
from graphopt.runtime.session import RuntimeFailure

HEAD = '<ir_version: 9, opset_import: ["" : 17]>'
CONV = f"""{HEAD} g (float[1, 4, 8, 8] x) => (float[1, 8, 8, 8] y) {{
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear(w, s, wz)
    a = Conv <pads = [1, 1, 1, 1]> (xd, wd, b)
    r = Relu(a)
    OUTPUT
}}"""
CONSTANTS = {
    "s": np.float32(0.1),
    "z": np.uint8(0),
    "w": np.ones((8, 4, 3, 3), np.int8),
    "wz": np.int8(0),
    "b": np.zeros(8, np.float32),
}


def model(text: str, constants: Mapping[str, object] = CONSTANTS) -> Model:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return Model.load(proto)


def by_op(source: Model, found: Executed) -> dict[str, Ran]:
    return {n.op: found.nodes[n] for body in source.bodies() for n in body.nodes if n in found.nodes}


def test_a_quantized_convolution() -> None:
    m = model(CONV.replace("OUTPUT", "yq = QuantizeLinear(r, s, z) y = DequantizeLinear(yq, s, z)"))
    found = executed(m)
    ran = by_op(m, found)
    assert ran["Conv"] == Ran("QLinearConv", integer=True)
    assert ran["Relu"] == Ran("QLinearConv", integer=True, merged=True)
    assert found.ops["QLinearConv"] == 1
    assert [(c.op, c.place) for c in found.conversions] == [
        ("QuantizeLinear", "input"),
        ("DequantizeLinear", "output"),
    ]
    assert [c.node.outputs[0].name for c in found.conversions if c.node] == ["xq", "y"]


def test_a_convolution_that_stays_float() -> None:
    m = model(CONV.replace("OUTPUT", "y = Neg(r)"))
    found = executed(m)
    ran = by_op(m, found)
    assert not ran["Conv"].integer
    assert ran["Relu"].merged  # fused into the float convolution
    assert sorted(c.place for c in found.conversions) == ["input", "inside", "weight"]


def test_matmul_and_add_become_one_kernel() -> None:
    m = model(
        f"""{HEAD} g (float[2, 4] x) => (float[2, 8] y) {{
            xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear(w, s, wz)
            p = MatMul(xd, wd) a = Add(p, b) yq = QuantizeLinear(a, s, z) y = DequantizeLinear(yq, s, z)
        }}""",
        CONSTANTS | {"w": np.ones((4, 8), np.int8)},
    )
    ran = by_op(m, executed(m))
    assert ran["MatMul"] == Ran("QGemm", integer=True)
    assert ran["Add"] == Ran("QGemm", integer=True, merged=True)


def test_inside_of_an_if() -> None:
    m = model(
        f"""{HEAD} g (float[1, 4, 8, 8] x, bool c) => (float[1, 4, 8, 8] y) {{
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            y = If (c) <
                then_branch = t () => (float[1, 4, 8, 8] u) {{
                    d = DequantizeLinear(xq, s, z) a = Sigmoid(d) q = QuantizeLinear(a, s, z)
                    u = DequantizeLinear(q, s, z) }},
                else_branch = e () => (float[1, 4, 8, 8] v) {{ v = Neg(xd) }}
            >
        }}""",
        {"s": np.float32(0.1), "z": np.uint8(0)},
    )
    ran = by_op(m, executed(m))
    assert ran["Sigmoid"] == Ran("QLinearSigmoid", integer=True)
    assert ran["Neg"] == Ran("Neg", integer=False)


def test_moves_of_integers() -> None:
    m = model(
        f"""{HEAD} g (float[2, 3, 4] x) => (float[2, 4, 3] y) {{
            xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
            t = Transpose <perm = [0, 2, 1]> (xd)
            yq = QuantizeLinear(t, s, z) y = DequantizeLinear(yq, s, z)
        }}""",
        {"s": np.float32(0.1), "z": np.uint8(0)},
    )
    assert by_op(m, executed(m))["Transpose"] == Ran("Transpose", integer=True)


def test_names_do_not_matter_and_the_model_stays_as_it_is() -> None:
    m = model(CONV.replace("OUTPUT", "yq = QuantizeLinear(r, s, z) y = DequantizeLinear(yq, s, z)"))
    for node in m.graph.nodes:
        node.name = "same"
    before = m.to_proto().SerializeToString(deterministic=True)
    assert by_op(m, executed(m))["Conv"].op == "QLinearConv"
    assert m.to_proto().SerializeToString(deterministic=True) == before


def test_what_was_computed_while_loading() -> None:
    m = model(
        f"{HEAD} g (float[2] x) => (float[2] y) {{ c = Neg(k) y = Add(x, c) }}", {"k": np.ones(2, np.float32)}
    )
    assert by_op(m, executed(m))["Neg"].op == "constant"


def test_a_model_that_does_not_load() -> None:
    m = model(
        '<ir_version: 9, opset_import: ["" : 17, "none" : 1]> g (float[2] x) => (float[2] y) { y = none.Op(x) }',
        {},
    )
    with pytest.raises(RuntimeFailure):
        executed(m)
