from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.fusion.fold_bn_gemm import FoldBatchNormGemm

PASS = FoldBatchNormGemm()
BODY = """(float[N, 4] x) => (float y) {
    n = BatchNormalization <epsilon=0.01> (x, gamma, beta, mean, var)
    y = Gemm <transB=0> (n, w, b)
}"""
MATMUL = BODY.replace("Gemm <transB=0> (n, w, b)", "MatMul(n, w)")


def stats(**given: Any) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    gamma, beta, mean = rng.standard_normal((3, 4)).astype(np.float32)
    return {"gamma": gamma, "beta": beta, "mean": mean, "var": rng.random(4, np.float32) + 0.5} | given


@pytest.mark.parametrize("attrs", ["transB=0", "transB=0, alpha=0.5, beta=2.0", "transB=1, alpha=-2.0"])
@pytest.mark.parametrize("bias", [(3,), (1, 3), (), (1, 1), (5, 3), None])
def test_gemm(build: Any, attrs: str, bias: tuple[int, ...] | None) -> None:
    w = (3, 4) if "transB=1" in attrs else (4, 3)
    body = BODY.replace("transB=0", attrs).replace("N, 4", "5, 4")
    weights = {"w": w, **stats()} | ({} if bias is None else {"b": bias})
    model = build(body if bias is not None else body.replace(", b)", ")"), **weights)
    assert_rewrites(PASS, model, ops={"Gemm": 1})


def test_matmul(build: Any) -> None:
    assert_rewrites(PASS, build(MATMUL, w=(4, 3), **stats()), ops={"Gemm": 1})
    zero = np.zeros(4, np.float32)
    assert_rewrites(PASS, build(MATMUL, w=(4, 3), **stats(beta=zero, mean=zero)), ops={"MatMul": 1})


def test_bias_that_is_not_constant(build: Any) -> None:
    body = BODY.replace(" x)", " x, float[3] b)")
    assert_refuses(PASS, build(body, w=(4, 3), **stats()), "the bias b of Gemm is not constant")
    zero = np.zeros(4, np.float32)
    assert_rewrites(PASS, build(body, w=(4, 3), **stats(beta=zero, mean=zero)), ops={"Gemm": 1})


def test_transposed_operand_is_declined(build: Any) -> None:
    body = BODY.replace("transB=0", "transA=1").replace("N, 4", "4, 4")
    assert_refuses(PASS, build(body, w=(4, 3), b=(3,), **stats()), "Gemm transposes")


def test_stack_of_matrices_is_declined(build: Any) -> None:
    body = MATMUL.replace("N, 4", "N, 4, 4")
    assert_refuses(PASS, build(body, w=(4, 3), **stats()), "x is not known to be a matrix")


def test_stack_of_weights_is_declined(build: Any) -> None:
    assert_refuses(PASS, build(MATMUL, w=(2, 4, 3), **stats()), "is no bias of MatMul")


def test_means_far_from_zero_are_declined(build: Any) -> None:
    far = stats(mean=np.full(4, 1000, np.float32))
    assert_refuses(PASS, build(MATMUL, w=(4, 3), **far), "cancel")


def test_bias_by_row_is_declined(build: Any) -> None:
    model = build(BODY.replace("N, 4", "5, 4"), w=(4, 3), b=(5, 1), **stats())
    assert_refuses(PASS, model, "varies by row")


def test_weight_that_is_not_constant_is_declined(build: Any) -> None:
    body = BODY.replace(" x)", " x, float[4, 3] w)")
    assert_refuses(PASS, build(body, b=(3,), **stats()), "w is not a constant")


def test_other_reader_and_output_are_declined(build: Any) -> None:
    body = BODY.replace("}", " z = Relu(n) }").replace(" y) {", " y, float z) {")
    assert_refuses(PASS, build(body, w=(4, 3), b=(3,), **stats()), "has another reader")
    body = BODY.replace(" y) {", " y, float n) {")
    assert_refuses(PASS, build(body, w=(4, 3), b=(3,), **stats()), "is a graph output")


@pytest.mark.parametrize("opset", [7, 9, 13, 22])
def test_if_body_and_opsets(build: Any, opset: int) -> None:
    body = """(float[N, 4] x, bool flag) => (float y) {
        y = If (flag) <
            then_branch = then_g () => (float t) {
                n = BatchNormalization(x, gamma, beta, mean, var)
                t = Gemm(n, w, b)
            },
            else_branch = else_g () => (float e) { e = Identity(x) }>
    }"""
    model = build(body, opset=opset, w=(4, 3), b=(3,), **stats())
    assert_rewrites(PASS, model, ops={"Gemm": 1, "If": 1, "Identity": 1})
