"""Operators in torch compute what onnxruntime does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

pytest.importorskip("torch")

from graphopt.distillation.torch_ops import OPS
from graphopt.distillation.torch_run import Interpreter
from graphopt.errors import UserError
from graphopt.model import Model

# Expressions of a (float[2, 4, 6, 5]), b (float[2, 4, 6, 5], above 0), i (int64[3] = 0, -1, 2).
CASES = [
    *(f"y = {op}(a)" for op in "Abs Cos Elu Erf Exp HardSigmoid Identity LeakyRelu Neg Relu Selu Sigmoid Sin Softplus Tanh".split()),
    *(f"y = {op}(b)" for op in ("Log", "Reciprocal", "Sqrt", "Dropout")),
    *(f"y = {op}(a, b)" for op in "Add Div Max Min Mul Sub Sum PRelu".split()),
    "y = Pow(b, a)",
    "y = Max(a, b, a)",
    "y = HardSwish(a)",
    "y = Gelu(a)",
    'y = Gelu<approximate = "tanh">(a)',
    "y = HardSigmoid<alpha = 0.3, beta = 0.4>(a)",
    "y = LeakyRelu<alpha = 0.3>(a)",
    "l = Constant<value_float = -0.2>() h = Constant<value_float = 0.3>() y = Clip(a, l, h)",
    'h = Constant<value_float = 0.3>() y = Clip(a, "", h)',
    "c = Less(a, b) y = Where(c, a, b)",
    "c = Greater(a, b) d = Not(c) e = Equal(a, a) f = And(d, e) g = Or(f, c) y = Where(g, a, b)",
    "c = LessOrEqual(a, b) d = GreaterOrEqual(a, b) f = Or(c, d) y = Where(f, a, b)",
    "y = Softmax<axis = 1>(a)",
    "y = LogSoftmax(a)",
    "y = Transpose<perm = [0, 2, 3, 1]>(a)",
    "y = Transpose(a)",
    "y = Flatten<axis = 2>(a)",
    "s = Constant<value_ints = [0, -1, 5]>() y = Reshape(a, s)",
    "s = Shape(a) y = Reshape(b, s)",
    "s = Shape<start = 1, end = 3>(a) z = ConstantOfShape(s) m = ReduceMean<keepdims = 0>(z) y = Add(a, m)",
    "s = Constant<value_ints = [1, 3]>() u = Unsqueeze(a, s) y = Squeeze(u, s)",
    "s = Constant<value_ints = [-1]>() y = Unsqueeze(a, s)",
    "y = Concat<axis = 1>(a, b)",
    "s = Constant<value_ints = [1, 3]>() y, z = Split<axis = 1>(a, s)",
    "z, y = Split<axis = 2, num_outputs = 2>(a)",
    "s = Constant<value_ints = [1, 4]>() e = Constant<value_ints = [3, -100]>() x = Constant<value_ints = [1, 2]>() t = Constant<value_ints = [1, -2]>() y = Slice(a, s, e, x, t)",
    "s = Constant<value_ints = [1]>() e = Constant<value_ints = [9]>() x = Constant<value_ints = [-1]>() y = Slice(a, s, e, x)",
    "y = Gather<axis = 2>(a, i)",
    "s = Constant<value_ints = [0, 0, 1, 2, 0, 1, 0, 0]>() v = Constant<value_float = 0.5>() y = Pad(a, s, v)",
    "s = Constant<value_ints = [3, 1, 1, 1, 1]>() y = Expand(a, s)",
    "h = Cast<to = 7>(b) y = Cast<to = 1>(h)",
    "y = GlobalAveragePool(a)",
    "y = GlobalMaxPool(a)",
    "y = MaxPool<kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 1]>(a)",
    'y = MaxPool<kernel_shape = [3, 3], auto_pad = "SAME_UPPER", strides = [2, 2]>(a)',
    "y = AveragePool<kernel_shape = [2, 2]>(a)",
    "y = AveragePool<kernel_shape = [2, 2], pads = [1, 1, 0, 0], count_include_pad = 1>(a)",
    *(f"s = Constant<value_ints = [1, -1]>() y = {op}<keepdims = {k}>(a, s)" for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2") for k in (0, 1)),
    "y = ReduceSum(a)",
    "y = ReduceSum<noop_with_empty_axes = 1>(a)",
    "y = Conv<pads = [1, 0, 2, 1], strides = [2, 1], dilations = [1, 2]>(a, w, v)",
    'y = Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(a, w)',
    'y = Conv<auto_pad = "VALID">(a, w)',
    "y = Conv<group = 4, pads = [1, 1, 1, 1]>(a, d)",
    "y = BatchNormalization(a, k, v, v, k)",
    "y = InstanceNormalization(a, k, v)",
    "y = LayerNormalization<axis = -1>(a, m, n)",
    "y = LayerNormalization<axis = -1, epsilon = 0.01>(a, m)",
    "t = Transpose<perm = [0, 1, 3, 2]>(b) y = MatMul(a, t)",
    "f = Flatten<axis = 3>(a) y = Gemm<transA = 1, alpha = 0.5, beta = 2.0>(f, f)",
    "f = Flatten<axis = 3>(a) y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(f, q, v)",
    "y = MatMul(a, r)",
]  # fmt: skip
SHAPES = {
    "w": (4, 4, 3, 3),
    "d": (4, 1, 3, 3),
    "k": (4,),
    "v": (4,),
    "m": (5,),
    "n": (5,),
    "q": (4, 5),
    "r": (5, 3),
}


def model(body: str) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[2, 4, 6, 5] a, float[2, 4, 6, 5] b, int64[3] i) => (float[] y) {{ {body} }}"""
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    rng = np.random.default_rng(1)
    read = {name for node in proto.graph.node for name in node.input}
    made = {name for node in proto.graph.node for name in node.output}
    for name, shape in SHAPES.items():
        if name in read - made:
            values = rng.standard_normal(shape).astype(np.float32)
            values = np.abs(values) + 0.5 if name == "k" else values
            proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return proto


def feeds() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((2, 4, 6, 5)).astype(np.float32)
    return {"a": a, "b": np.abs(a[::-1]).copy() + 0.1, "i": np.array([0, -1, 2])}


@pytest.mark.parametrize("body", CASES)
def test_as_onnxruntime(body: str) -> None:
    proto = model(body)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {x.name for x in session.get_inputs()}
    (expected,) = session.run(["y"], {k: v for k, v in feeds().items() if k in names})
    found = Interpreter(Model.load(proto)).run(feeds())["y"].detach().numpy()
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_all_operators_are_tested() -> None:
    tested = {node.op_type for body in CASES for node in model(body).graph.node}
    assert set(OPS) - tested == {"RMSNormalization"}  # onnxruntime has it from opset 23 on


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Celu(a)", "differentiate Celu"),
        ("y = AveragePool<kernel_shape = [2, 2], pads = [1, 1, 0, 0]>(a)", "padding that does not count"),
        ("s = Constant<value_ints = [0, 0, 1, 1, 0, 0, 1, 1]>() y = Pad<mode = \"edge\">(a, s)", "padding other"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(body: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Interpreter(Model.load(model(body))).run(feeds())
