from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.pipeline.base import Limits
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion.fold_gemm_affine import FoldGemmAffine

PASS = FoldGemmAffine()
GEMM = """(float[5, 4] x) => (float y) {
    g = Gemm <transB=0> (x, w, b)
    y = Mul(g, c)
}"""
MATMUL = """(float[N, 4] x) => (float y) {
    g = MatMul(x, w)
    y = Mul(g, c)
}"""
ROW = np.array([0.5, -2.0, 3.0], np.float32)
TWO = np.float32(2)


@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("attrs", ["transB=0, alpha=0.5, beta=2.0", "transB=1"])
@pytest.mark.parametrize("bias", [(3,), (1, 3), (), (1, 1), (5, 3), None])
@pytest.mark.parametrize("c", [ROW, ROW.reshape(1, 3), TWO, TWO.reshape(1, 1)], ids=lambda c: str(c.shape))
def test_gemm(build: Any, op: str, attrs: str, bias: tuple[int, ...] | None, c: Any) -> None:
    w = (3, 4) if "transB=1" in attrs else (4, 3)
    body = GEMM.replace("transB=0", attrs).replace("= Mul", f"= {op}")
    weights = {"w": w, "c": c} | ({} if bias is None else {"b": bias})
    model = build(body if bias is not None else body.replace(", b)", ")"), **weights)
    assert_rewrites(PASS, model, ops={"Gemm": 1})


@pytest.mark.parametrize("dims", ["N, 4", "N, T, 4", "A, B, C, 4", "4"])
@pytest.mark.parametrize("op", ["Mul", "Div"])
@pytest.mark.parametrize("c", [ROW, TWO])
def test_matmul_of_any_rank(build: Any, dims: str, op: str, c: Any) -> None:
    model = build(MATMUL.replace("N, 4", dims).replace("= Mul", f"= {op}"), w=(4, 3), c=c)
    assert_rewrites(PASS, model, ops={"MatMul": 1})


def test_stack_of_weights(build: Any) -> None:
    model = build(MATMUL.replace("N, 4", "2, 5, 4"), w=(2, 4, 3), c=ROW)
    assert_rewrites(PASS, model, ops={"MatMul": 1})


def test_left_operand_takes_a_number(build: Any) -> None:
    body = MATMUL.replace("(x, w)", "(w, x)").replace("N, 4", "4, 3")
    assert_rewrites(PASS, build(body, w=(2, 4), c=TWO), ops={"MatMul": 1})
    assert_refuses(PASS, build(body, w=(2, 4), c=ROW), "c is not one number per column")


def test_bias_behind_matmul_is_another_pass(build: Any) -> None:
    done = apply(PASS, build(MATMUL.replace("= Mul", "= Add"), w=(4, 3), c=ROW))
    assert not done.journal.changes
    assert not done.reasons


def test_number_goes_into_alpha_and_beta_where_nothing_is_constant(build: Any) -> None:
    body = GEMM.replace("[5, 4] x)", "[5, 4] x, float[4, 3] w, float[3] b)").replace("transB=0", "beta=0.5")
    done = assert_rewrites(PASS, build(body, c=TWO), ops={"Gemm": 1})
    (node,) = done.model.graph.nodes
    assert node.attrs == {"alpha": 2.0}
    body = GEMM.replace("[5, 4] x)", "[5, 4] x, float[3] b)")
    done = assert_rewrites(PASS, build(body, w=(4, 3), c=TWO), ops={"Gemm": 1})
    assert done.model.graph.nodes[0].attrs == {"alpha": 2.0, "beta": 2.0}


def test_alpha_is_too_coarse_for_double(build: Any) -> None:
    body = GEMM.replace("[5, 4] x)", "[5, 4] x, double[4, 3] w)").replace(", b)", ")")
    body = body.replace("float[5", "double[5").replace("(float y", "(double y")
    assert_refuses(PASS, build(body, c=np.float64(0.1)), "float32, too coarse")
    assert_rewrites(PASS, build(body, c=np.float64(0.5)), ops={"Gemm": 1})
    # An operand holds what the attribute cannot.
    body = body.replace(", double[4, 3] w)", ")")
    w = np.random.default_rng(0).standard_normal((4, 3))
    done = assert_rewrites(PASS, build(body, w=w, c=np.float64(0.1)), ops={"Gemm": 1})
    np.testing.assert_array_equal(next(iter(done.model.graph.initializers)).values, w * 0.1)


def test_attention_scores_are_no_candidate(build: Any) -> None:
    done = apply(PASS, build(MATMUL.replace(" x)", " x, float[4, 3] w)"), c=TWO))
    assert not done.journal.changes
    assert not done.reasons


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (2,), (1, 1, 3), (1, 1, 1)])
def test_constants_that_are_not_per_column_are_declined(build: Any, shape: tuple[int, ...]) -> None:
    w = (4, 1) if shape == (2,) else (4, 3)
    assert_refuses(PASS, build(GEMM, w=w, b=(1,), c=shape), "c is not one number per column")


def test_unknown_rank(build: Any) -> None:
    body = """(float[N, 4] x, int64[r] s) => (float y) {
        v = Reshape(x, s)
        g = MatMul(v, w)
        y = Mul(g, c)
    }"""
    feeds = {"x": np.ones((2, 4), np.float32), "s": np.array([1, 2, 4])}
    assert_rewrites(PASS, build(body, w=(4, 3), c=ROW), ops={"MatMul": 1, "Reshape": 1}, inputs=feeds)
    # v may be a vector: then the product is one, and c makes a matrix of it.
    assert_refuses(PASS, build(body, w=(4, 3), c=ROW.reshape(1, 3)), "c is not one number per column")


@pytest.mark.parametrize("op", ["Sub", "Div"])
def test_constant_first_is_declined(build: Any, op: str) -> None:
    model = build(GEMM.replace("Mul(g, c)", f"{op}(c, g)"), w=(4, 3), b=(3,), c=ROW)
    assert_refuses(PASS, model, f"{op} takes the constant c first")


def test_bias_by_row(build: Any) -> None:
    assert_refuses(PASS, build(GEMM, w=(4, 3), b=(5, 1), c=ROW), "varies by row")
    assert_rewrites(PASS, build(GEMM, w=(4, 3), b=(5, 1), c=TWO), ops={"Gemm": 1})


def test_what_is_not_constant_is_declined(build: Any) -> None:
    body = GEMM.replace("[5, 4] x)", "[5, 4] x, float[3] b)")
    assert_refuses(PASS, build(body, w=(4, 3), c=ROW), "the bias b of Gemm is not constant")
    assert_refuses(PASS, build(body.replace("= Mul", "= Add"), w=(4, 3), c=TWO), "the bias b of Gemm is not")
    body = GEMM.replace("[5, 4] x)", "[5, 4] x, float[4, 3] w)")
    assert_refuses(PASS, build(body, b=(3,), c=ROW), "c is not one number per column")


def test_other_reader_and_output_are_declined(build: Any) -> None:
    body = GEMM.replace("}", " z = Relu(g) }").replace(" y) {", " y, float z) {")
    assert_refuses(PASS, build(body, w=(4, 3), b=(3,), c=ROW), "has another reader")
    body = GEMM.replace(" y) {", " y, float g) {")
    assert_refuses(PASS, build(body, w=(4, 3), b=(3,), c=ROW), "is a graph output")


def test_shared_weight_is_copied_only_while_small(build: Any) -> None:
    body = MATMUL.replace("}", " z = MatMul(x, w) }").replace(" y) {", " y, float z) {")
    model = build(body, w=(4, 3), c=ROW)
    assert_rewrites(PASS, model, ops={"MatMul": 2})
    assert_refuses(PASS, model, "w has other readers", limits=Limits(growth_bytes=0))


def test_numbers_that_do_not_fit_are_declined(build: Any) -> None:
    model = build(MATMUL, w=np.full((4, 3), 1e30, np.float32), c=np.float32(1e30))
    assert_refuses(PASS, model, "not finite in float32")
    assert_refuses(
        PASS, build(MATMUL.replace("= Mul", "= Div"), w=(4, 3), c=np.float32(0)), "divides by zero"
    )


def test_integers_are_declined(build: Any) -> None:
    body = MATMUL.replace("float", "int32")
    model = build(body, w=np.ones((4, 3), np.int32), c=np.int32(3))
    assert_refuses(PASS, model, "floating point")


def test_gemm_that_broadcasts_by_attribute_is_left_alone(build: Any) -> None:
    body = GEMM.replace("transB=0", "broadcast=1").replace("Mul(", "Mul <broadcast=1> (")
    assert not apply(PASS, build(body, opset=6, w=(4, 3), b=(3,), c=ROW)).journal.changes


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 22])
def test_if_body_and_opsets(build: Any, opset: int) -> None:
    body = """(float[5, 4] x, bool flag) => (float y) {
        y = If (flag) <
            then_branch = then_g () => (float t) { g = Gemm(x, w, b)  t = Mul(c, g) },
            else_branch = else_g () => (float e) { e = Identity(x) }>
    }"""
    model = build(body, opset=opset, w=(4, 3), b=(3,), c=ROW)
    assert_rewrites(PASS, model, ops={"Gemm": 1, "If": 1, "Identity": 1})


def test_a_bias_that_takes_the_place_of_the_constant_is_no_growth(build: Any) -> None:
    body = GEMM.replace(", b)", ")").replace("= Mul", "= Add")
    assert_rewrites(PASS, build(body, w=(4, 3), c=ROW), ops={"Gemm": 1}, limits=Limits(growth_bytes=0))
