from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.pipeline.base import Limits
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion.fold_gemm_bn import FoldGemmBatchNorm

PASS = FoldGemmBatchNorm()
BODY = """(float[N, 4] x) => (float y) {
    g = Gemm <transB=0> (x, w, b)
    y = BatchNormalization <epsilon=0.01> (g, gamma, beta, mean, var)
}"""
MATMUL = BODY.replace("Gemm <transB=0> (x, w, b)", "MatMul(x, w)")


def stats(channels: int = 3, **given: Any) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    gamma, beta, mean = rng.standard_normal((3, channels)).astype(np.float32)
    return {"gamma": gamma, "beta": beta, "mean": mean, "var": rng.random(channels, np.float32) + 0.5} | given


@pytest.mark.parametrize(
    "attrs", ["transB=0", "transB=0, alpha=0.5, beta=2.0", "transB=1, alpha=-2.0", "transA=1"]
)
@pytest.mark.parametrize("bias", [(3,), (1, 3), (), (1,), (1, 1), (5, 3), None])
def test_gemm(build: Any, attrs: str, bias: tuple[int, ...] | None) -> None:
    w = (3, 4) if "transB=1" in attrs else (4, 3)
    body = BODY.replace("transB=0", attrs).replace("N, 4", "4, 5" if "transA" in attrs else "5, 4")
    weights = {"w": w, **stats()} | ({} if bias is None else {"b": bias})
    model = build(body if bias is not None else body.replace(", b)", ")"), **weights)
    done = assert_rewrites(PASS, model, ops={"Gemm": 1})
    assert "beta" not in {a.name for a in done.proto.graph.node[0].attribute}


def test_matmul_becomes_gemm(build: Any) -> None:
    assert_rewrites(PASS, build(MATMUL, w=(4, 3), **stats()), ops={"Gemm": 1})


def test_matmul_stays_matmul_without_a_shift(build: Any) -> None:
    zero = np.zeros(3, np.float32)
    assert_rewrites(PASS, build(MATMUL, w=(4, 3), **stats(beta=zero, mean=zero)), ops={"MatMul": 1})


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 22])
def test_opsets(build: Any, opset: int) -> None:
    assert_rewrites(PASS, build(BODY, opset=opset, w=(4, 3), b=(3,), **stats()), ops={"Gemm": 1})


def test_axis_1_of_a_stack_of_matrices_is_not_its_columns(build: Any) -> None:
    body = MATMUL.replace("N, 4", "N, 3, 4")
    assert_refuses(PASS, build(body, w=(4, 3), **stats()), "not known to be matrices")
    body = MATMUL.replace("(x, w)", "(w, x)").replace("N, 4", "2, 4, 3")
    assert_refuses(PASS, build(body, w=(4, 4), **stats(4)), "not known to be matrices")


def test_unknown_rank_is_declined(build: Any) -> None:
    body = """(float[N, 4] x, int64[r] s) => (float y) {
        v = Reshape(x, s)
        g = MatMul(v, w)
        y = BatchNormalization(g, gamma, beta, mean, var)
    }"""
    assert_refuses(PASS, build(body, w=(4, 3), **stats()), "not known to be matrices")


def test_bias_by_row_is_declined(build: Any) -> None:
    model = build(BODY.replace("N, 4", "5, 4"), w=(4, 3), b=(5, 1), **stats())
    assert_refuses(PASS, model, "the bias b of Gemm varies by row")


def test_what_is_not_constant_is_declined(build: Any) -> None:
    body = BODY.replace(" x)", " x, float[3] b)")
    assert_refuses(PASS, build(body, w=(4, 3), **stats()), "the bias b of Gemm is not constant")
    body = BODY.replace(" x)", " x, float[4, 3] w)")
    assert_refuses(PASS, build(body, b=(3,), **stats()), "w is not a constant")
    body = BODY.replace(" x)", " x, float[3] var)")
    assert_refuses(PASS, build(body, w=(4, 3), b=(3,), **stats()), "var of BatchNormalization")


def test_training_and_bad_statistics_are_declined(build: Any) -> None:
    body = BODY.replace("epsilon=0.01", "training_mode=1").replace("y = B", "y, m, v = B")
    assert_refuses(PASS, build(body, w=(4, 3), b=(3,), **stats()), "training mode")
    bad = stats(var=np.full(3, -1, np.float32))
    assert_refuses(PASS, build(BODY, w=(4, 3), b=(3,), **bad), "not finite")


def test_other_reader_and_output_are_declined(build: Any) -> None:
    body = BODY.replace("}", " z = Relu(g) }").replace(" y) {", " y, float z) {")
    assert_refuses(PASS, build(body, w=(4, 3), b=(3,), **stats()), "has another reader")
    body = BODY.replace(" y) {", " y, float g) {")
    assert_refuses(PASS, build(body, w=(4, 3), b=(3,), **stats()), "is a graph output")


def test_shared_weight_is_copied_only_while_small(build: Any) -> None:
    body = BODY.replace("}", " z = MatMul(x, w) }").replace(" y) {", " y, float z) {")
    model = build(body.replace("N, 4", "N, 40"), w=(40, 3), b=(3,), **stats())
    assert_rewrites(PASS, model, ops={"Gemm": 1, "MatMul": 1})
    assert_refuses(PASS, model, "w has other readers", limits=Limits(growth_bytes=0))


def test_if_body(build: Any) -> None:
    body = """(float[N, 4] x, bool flag) => (float y) {
        y = If (flag) <
            then_branch = then_g () => (float t) {
                g = MatMul(x, w)
                t = BatchNormalization(g, gamma, beta, mean, var)
            },
            else_branch = else_g () => (float e) { e = Identity(x) }>
    }"""
    done = assert_rewrites(PASS, build(body, w=(4, 3), **stats()), ops={"Gemm": 1, "If": 1, "Identity": 1})
    assert not done.proto.graph.initializer


def test_integers_are_no_candidate(build: Any) -> None:
    body = MATMUL.replace("float[N, 4]", "int32[N, 4]").replace("y = B", "f = Cast <to=1> (g)\n y = B")
    body = body.replace("(g, gamma", "(f, gamma")
    assert not apply(PASS, build(body, w=np.ones((4, 3), np.int32), **stats())).journal.changes
