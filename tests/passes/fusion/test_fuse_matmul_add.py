from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion.fuse_matmul_add import FuseMatMulAdd

PASS = FuseMatMulAdd()
BODY = """(float[5, 4] x) => (float y) {
    t = MatMul(x, w)
    y = Add(t, b)
}"""


@pytest.mark.parametrize("b", [(3,), (1, 3), (5, 1), (5, 3), (1, 1), (1,), ()])
@pytest.mark.parametrize("order", ["Add(t, b)", "Add(b, t)"])
def test_bias_shapes(build: Any, b: tuple[int, ...], order: str) -> None:
    model = build(BODY.replace("Add(t, b)", order), w=(4, 3), b=b)
    assert_rewrites(PASS, model, ops={"Gemm": 1})


@pytest.mark.parametrize("b", [(1, 5, 3), (2, 5, 3), (1, 1, 1)])
def test_bias_of_higher_rank_is_declined(build: Any, b: tuple[int, ...]) -> None:
    assert_refuses(PASS, build(BODY, w=(4, 3), b=b), "b is not known to broadcast")


def test_bias_that_enlarges_the_product_is_declined(build: Any) -> None:
    assert_refuses(PASS, build(BODY, w=(4, 1), b=(3,)), "b is not known to broadcast")
    assert_refuses(
        PASS, build(BODY.replace("5, 4", "1, 4"), w=(4, 3), b=(5, 3)), "b is not known to broadcast"
    )
    assert_refuses(
        PASS, build(BODY.replace("5, 4", "N, 4"), w=(4, 3), b=(5, 3)), "b is not known to broadcast"
    )


def test_operands_and_bias_need_not_be_constant(build: Any) -> None:
    body = BODY.replace("float[5, 4] x)", "float[N, K] x, float[K, M] w, float[N, M] b)")
    assert_rewrites(PASS, build(body), ops={"Gemm": 1})
    body = BODY.replace("float[5, 4] x)", "float[N, K] x, float[K, M] w, float[B] b)")
    assert_refuses(PASS, build(body), "b is not known to broadcast")


def test_residual_of_two_products(build: Any) -> None:
    body = """(float[5, 4] x) => (float y) {
        s = MatMul(x, w)
        t = MatMul(x, v)
        y = Add(s, t)
    }"""
    assert_rewrites(PASS, build(body, w=(4, 3), v=(4, 3)), ops={"MatMul": 1, "Gemm": 1})


def test_the_other_product_is_taken_where_the_first_has_readers(build: Any) -> None:
    body = """(float[5, 4] x) => (float y, float s) {
        s = MatMul(x, w)
        t = MatMul(x, v)
        y = Add(s, t)
    }"""
    assert_rewrites(PASS, build(body, w=(4, 3), v=(4, 3)), ops={"MatMul": 1, "Gemm": 1})


@pytest.mark.parametrize("dims", ["N, 5, 4", "4"])
def test_other_ranks_are_no_candidates(build: Any, dims: str) -> None:
    done = apply(PASS, build(BODY.replace("5, 4", dims), w=(4, 3), b=(3,)))
    assert not done.journal.changes
    assert not done.reasons


def test_unknown_rank_is_declined(build: Any) -> None:
    body = """(float[N, 4] x, int64[r] s) => (float y) {
        v = Reshape(x, s)
        t = MatMul(v, w)
        y = Add(t, b)
    }"""
    assert_refuses(PASS, build(body, w=(4, 3), b=(3,)), "v is not known to be a matrix")


def test_gemm_without_bias(build: Any) -> None:
    body = BODY.replace("MatMul(x, w)", "Gemm <alpha=0.5, beta=3.0, transB=1> (x, w)")
    done = assert_rewrites(PASS, build(body, w=(3, 4), b=(3,)), ops={"Gemm": 1})
    assert done.model.graph.nodes[0].attrs == {"alpha": 0.5, "transB": 1}
    with_bias = BODY.replace("MatMul(x, w)", "Gemm(x, w, b)")
    assert not apply(PASS, build(with_bias, w=(4, 3), b=(3,))).journal.changes


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64"])
def test_integers_are_declined(build: Any, dtype: str) -> None:
    model = build(BODY.replace("float", dtype), w=np.ones((4, 3), dtype), b=np.ones(3, dtype))
    assert_refuses(PASS, model, "floating point")


@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "float16"), (np.float64, "double")])
def test_element_types(build: Any, dtype: Any, name: str) -> None:
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((4, 3)).astype(dtype), rng.standard_normal(3).astype(dtype)
    assert_rewrites(PASS, build(BODY.replace("float", name), w=w, b=b), ops={"Gemm": 1})


def test_other_reader_and_output_are_declined(build: Any) -> None:
    body = BODY.replace("}", " z = Relu(t) }").replace(" y) {", " y, float z) {")
    assert_refuses(PASS, build(body, w=(4, 3), b=(3,)), "has another reader")
    body = BODY.replace(" y) {", " y, float t) {")
    assert_refuses(PASS, build(body, w=(4, 3), b=(3,)), "is a graph output")
    body = BODY.replace("Add(t, b)", "Add(t, t)")
    assert_refuses(PASS, build(body, w=(4, 3)), "has another reader")


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 14, 22])
def test_if_body_and_opsets(build: Any, opset: int) -> None:
    body = """(float[N, 4] x, bool flag) => (float y) {
        y = If (flag) <
            then_branch = then_g () => (float t) { m = MatMul(x, w)  t = Add(b, m) },
            else_branch = else_g () => (float e) { e = Identity(x) }>
    }"""
    model = build(body, opset=opset, w=(4, 3), b=(3,))
    assert_rewrites(PASS, model, ops={"Gemm": 1, "If": 1, "Identity": 1})


def test_broadcasting_by_attribute_is_left_alone(build: Any) -> None:
    body = BODY.replace("Add(t", "Add <broadcast=1> (t")
    assert not apply(PASS, build(body, opset=6, w=(4, 3), b=(3,))).journal.changes


def test_a_quantized_product_stays() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y)
        <float s = {0.1}, uint8 z = {128}, float[2, 2] w = {1, 2, 3, 4}, float[2] b = {1, 2}>
        { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) p = MatMul(d, w) y = Add(p, b) }"""
    assert_refuses(FuseMatMulAdd(), text, "quantized")
