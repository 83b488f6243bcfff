from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion.fold_affine_gemm import FoldAffineGemm

PASS = FoldAffineGemm()
GEMM = """(float[5, 4] x) => (float y) {
    a = Mul(x, c)
    y = Gemm <transB=0> (a, w, b)
}"""
MATMUL = """(float[N, 4] x) => (float y) {
    a = Mul(x, c)
    y = MatMul(a, w)
}"""
ROW = np.array([0.5, -2.0, 3.0, 1.5], np.float32)
TWO = np.float32(2)


@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("attrs", ["transB=0, alpha=0.5, beta=2.0", "transB=1, alpha=3.0"])
@pytest.mark.parametrize("bias", [(3,), (), (5, 3), None])
@pytest.mark.parametrize("c", [ROW, ROW.reshape(1, 4), TWO, TWO.reshape(1, 1)], ids=lambda c: str(c.shape))
def test_gemm(build: Any, op: str, attrs: str, bias: tuple[int, ...] | None, c: Any) -> None:
    w = (3, 4) if "transB=1" in attrs else (4, 3)
    body = GEMM.replace("transB=0", attrs).replace("= Mul", f"= {op}")
    weights = {"w": w, "c": c} | ({} if bias is None else {"b": bias})
    model = build(body if bias is not None else body.replace(", b)", ")"), **weights)
    assert_rewrites(PASS, model, ops={"Gemm": 1})


def test_transposed_left_operand(build: Any) -> None:
    body = GEMM.replace("transB=0", "transA=1").replace("5, 4", "4, 5")
    column = ROW.reshape(4, 1)
    assert_rewrites(PASS, build(body, w=(4, 3), b=(3,), c=column), ops={"Gemm": 1})
    assert_rewrites(PASS, build(body.replace("= Mul", "= Add"), w=(4, 3), b=(3,), c=column), ops={"Gemm": 1})
    square = body.replace("4, 5", "4, 4")
    assert_refuses(PASS, build(square, w=(4, 3), b=(3,), c=ROW), "c is not known to be one number")


@pytest.mark.parametrize("dims", ["N, 4", "N, T, 4", "4"])
@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("c", [ROW, TWO])
def test_matmul_of_any_rank(build: Any, dims: str, op: str, c: Any) -> None:
    model = build(MATMUL.replace("N, 4", dims).replace("= Mul", f"= {op}"), w=(4, 3), c=c)
    assert_rewrites(PASS, model, ops={"MatMul": 1})


def test_right_operand(build: Any) -> None:
    body = MATMUL.replace("(a, w)", "(w, a)").replace("N, 4", "4, N")
    for c in (TWO, ROW.reshape(4, 1)):
        assert_rewrites(PASS, build(body, w=(3, 4), c=c), ops={"MatMul": 1})
    square = body.replace("4, N", "4, 4")
    assert_refuses(PASS, build(square, w=(3, 4), c=ROW), "c is not known to be one number")
    vector = body.replace("4, N", "4")
    assert_rewrites(PASS, build(vector, w=(3, 4), c=ROW), ops={"MatMul": 1})
    stack = body.replace("4, N", "2, 4, N")
    assert_rewrites(PASS, build(stack, w=(3, 4), c=ROW.reshape(1, 4, 1)), ops={"MatMul": 1})


@pytest.mark.parametrize("trans", [0, 1])
def test_right_operand_of_gemm(build: Any, trans: int) -> None:
    body = GEMM.replace("(a, w, b)", "(w, a, b)").replace("transB=0", f"transB={trans}, alpha=0.5")
    body = body.replace("5, 4", "5, 4" if trans else "4, 5")
    c = ROW if trans else ROW.reshape(4, 1)
    assert_rewrites(PASS, build(body, w=(3, 4), b=(5,), c=c), ops={"Gemm": 1})
    # A shift at the right would be a bias by row.
    done = apply(PASS, build(body.replace("= Mul", "= Add"), w=(3, 4), b=(5,), c=c))
    assert not done.journal.changes


def test_shift_before_matmul_makes_a_gemm_of_matrices_only(build: Any) -> None:
    model = build(MATMUL.replace("= Mul", "= Add"), w=(4, 3), c=ROW)
    assert_rewrites(PASS, model, ops={"Gemm": 1})
    model = build(MATMUL.replace("= Mul", "= Add").replace("N, 4", "N, 2, 4"), w=(4, 3), c=ROW)
    assert_refuses(PASS, model, "not known to be matrices")
    model = build(MATMUL.replace("= Mul", "= Add"), w=(2, 4, 3), c=ROW)
    assert_refuses(PASS, model, "no bias of MatMul")


def test_number_goes_into_alpha_where_nothing_is_constant(build: Any) -> None:
    body = GEMM.replace("[5, 4] x)", "[5, 4] x, float[4, 3] w, float[3] b)").replace("transB=0", "beta=0.5")
    done = assert_rewrites(PASS, build(body, c=TWO), ops={"Gemm": 1})
    assert done.model.graph.nodes[0].attrs == {"alpha": 2.0, "beta": 0.5}
    assert_refuses(PASS, build(body, c=ROW), "c is not known to be one number")


@pytest.mark.parametrize("shape", [(5, 1), (5, 4), (1, 1, 4), (1, 1, 1)])
def test_constants_along_other_axes_are_declined(build: Any, shape: tuple[int, ...]) -> None:
    model = build(GEMM.replace("Gemm <transB=0> (a, w, b)", "MatMul(a, w)"), w=(4, 3), c=shape)
    assert_refuses(PASS, model, "c is not known to be one number")


@pytest.mark.parametrize("dims", ["N, 1", "N, K", "1"])
def test_inputs_that_are_broadcast_are_declined(build: Any, dims: str) -> None:
    model = build(MATMUL.replace("N, 4", dims), w=(4, 3), c=ROW)
    assert_refuses(PASS, model, "c is not known to be one number")


def test_a_scalar_input_is_not_taken_for_a_vector(build: Any) -> None:
    body = """(float x) => (float y) {
        a = Mul(x, c)
        y = MatMul(a, w)
    }"""
    model = build(body, w=(1, 3), c=np.ones(1, np.float32))
    model.graph.input[0].type.tensor_type.shape.SetInParent()
    assert_refuses(PASS, model, "c is not known to be one number")


@pytest.mark.parametrize("op", ["Sub", "Div"])
def test_constant_first_is_declined(build: Any, op: str) -> None:
    model = build(MATMUL.replace("Mul(x, c)", f"{op}(c, x)"), w=(4, 3), c=ROW)
    assert_refuses(PASS, model, f"{op} takes the constant c first")


def test_large_shift_is_declined(build: Any) -> None:
    model = build(GEMM.replace("= Mul", "= Sub"), w=(4, 3), b=(3,), c=np.float32(127.5))
    assert_refuses(PASS, model, "cancel")


def test_other_reader_and_output_are_declined(build: Any) -> None:
    body = MATMUL.replace("}", " z = Relu(a) }").replace(" y) {", " y, float z) {")
    assert_refuses(PASS, build(body, w=(4, 3), c=ROW), "has another reader")
    body = MATMUL.replace(" y) {", " y, float a) {")
    assert_refuses(PASS, build(body, w=(4, 3), c=ROW), "is a graph output")
    body = MATMUL.replace("(a, w)", "(a, a)").replace("N, 4", "4, 4")
    assert not apply(PASS, build(body, c=ROW)).journal.changes


def test_bias_that_is_not_constant(build: Any) -> None:
    body = GEMM.replace("[5, 4] x)", "[5, 4] x, float[3] b)")
    assert_rewrites(PASS, build(body, w=(4, 3), c=ROW), ops={"Gemm": 1})
    assert_refuses(PASS, build(body.replace("= Mul", "= Add"), w=(4, 3), c=ROW), "the bias b of Gemm")


@pytest.mark.parametrize("opset", [7, 9, 13, 22])
def test_if_body_and_opsets(build: Any, opset: int) -> None:
    body = """(float[N, 4] x, bool flag) => (float y) {
        y = If (flag) <
            then_branch = then_g () => (float t) { a = Div(x, c)  t = MatMul(a, w) },
            else_branch = else_g () => (float e) { e = Identity(x) }>
    }"""
    model = build(body, opset=opset, w=(4, 3), c=ROW)
    assert_rewrites(PASS, model, ops={"MatMul": 1, "If": 1, "Identity": 1})


GELU = """(float[N, 4] x) => (float y) {
    d = Div(x, root)
    e = Erf(d)
    f = Add(e, one)
    g = Mul(x, f)
    h = Mul(g, half)
    y = MatMul(h, w)
}"""
CONSTANTS = {"root": np.float32(1.41421), "one": np.float32(1), "half": np.float32(0.5)}


def test_the_end_of_a_spelled_out_activation_is_left_alone(build: Any) -> None:
    reason = "Mul may end an activation"
    assert_refuses(PASS, build(GELU, w=(4, 3), **CONSTANTS), reason)
    norm = """(float[N, 4] x) => (float y) {
        m = ReduceMean <axes=[-1]> (x)
        d = Sub(x, m)
        q = Mul(d, d)
        v = ReduceMean <axes=[-1]> (q)
        s = Sqrt(v)
        n = Div(d, s)
        g = Mul(n, gamma)
        b = Add(g, beta)
        y = MatMul(b, w)
    }"""
    assert_refuses(PASS, build(norm, gamma=(4,), beta=(4,), w=(4, 3)), "Add may end an activation")
