from __future__ import annotations

import onnx.parser
import pytest

from graphopt.graph.cost import CostModel
from graphopt.graph.shapes import infer
from graphopt.model import Model


def cost(text: str, opset: int = 17, **sizes: int) -> tuple[int, int, int, set[str]]:
    header = f'<ir_version: 9, opset_import: ["" : {opset}]>'
    model = Model.load(onnx.parser.parse_model(f"{header} g {text}"))
    counter = CostModel(infer(model), sizes)
    found = counter.body(model.graph)
    return found.flops, found.bytes, found.unknown, {s for s in counter.assumed if not s.startswith("?")}


@pytest.mark.parametrize(
    ("text", "flops"),
    [
        (
            "(float[2,3,8,8] x, float[16,3,3,3] w) => (float[a,b,c,d] y) { y = Conv(x, w) }",
            2 * 2 * 16 * 36 * 27,
        ),
        (
            "(float[1,4,8,8] x, float[4,1,3,3] w) => (float[a,b,c,d] y) { y = Conv<group = 4>(x, w) }",
            2 * 4 * 36 * 9,
        ),
        (
            "(float[1,4,5,5] x, float[4,6,3,3] w) => (float[a,b,c,d] y) { y = ConvTranspose(x, w) }",
            2 * 4 * 25 * 6 * 9,
        ),
        ("(float[2,7,5] x, float[5,3] w) => (float[a,b,c] y) { y = MatMul(x, w) }", 2 * 2 * 7 * 3 * 5),
        ("(float[5] x, float[5] w) => (float y) { y = MatMul(x, w) }", 2 * 5),
        ("(float[5,7] x, float[5,3] w) => (float[a,b] y) { y = Gemm<transA = 1>(x, w) }", 2 * 7 * 3 * 5),
        (
            "(float[6,2,8] x, float[1,12,8] w, float[1,12,3] r) => (float[a,b,c,d] y)"
            " { y = LSTM<hidden_size = 3>(x, w, r) }",
            2 * 4 * 6 * 2 * 3 * (8 + 3),
        ),
        (
            "(float[2,3,4] x, float[2,4,5] w) => (float[a,b,c] y)"
            ' { y = Einsum<equation = "bij,bjk->bik">(x, w) }',
            2 * 2 * 3 * 4 * 5,
        ),
        ("(float[2,3] x) => (float[a,b] y) { y = Relu(x) }", 6),
        ("(float[2,30] x) => (float[a] y) { y = ReduceMax<axes = [1], keepdims = 0>(x) }", 60),
        ("(float[2,3] x) => (float[a,b] y) { y = Transpose(x) }", 0),
    ],
)
def test_operations(text: str, flops: int) -> None:
    assert cost(text)[0] == flops


def test_attention() -> None:
    text = """(float[2,8,5,16] q, float[2,4,7,16] k, float[2,4,7,12] v) => (float[a,b,c,d] y)
              { y = Attention(q, k, v) }"""
    assert cost(text, opset=23)[0] == 2 * 2 * 8 * 5 * 7 * (16 + 12)


def test_symbolic_dims_count_as_one_until_they_are_given() -> None:
    text = "(float[n,4] x, float[4,3] w) => (float[n,3] y) { y = MatMul(x, w) }"
    assert cost(text) == (24, 4 * (4 + 12 + 3), 0, {"n"})
    assert cost(text, n=10) == (240, 4 * (40 + 12 + 30), 0, set())


def test_what_cannot_be_counted_is_said() -> None:
    model = Model.load(
        onnx.parser.parse_model("""
            <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
            g (float[2] x) => (float[2] y) { y = local.F(x) }
            <domain: "local", opset_import: ["" : 17]> F(a) => (r) { r = Neg(a) }
        """)
    )
    found = CostModel(infer(model), {}).body(model.graph)
    assert (found.flops, found.unknown) == (0, 1)
