from __future__ import annotations

import numpy as np
import pytest
from weight_models import build, weights_of

from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.quantization.orient_gemm import OrientGemm
from graphopt_passes.quantization.quantize_weights import QuantizeWeights

BODY = "(float[M, 12] x) => (float[M, 5] y) { y = Gemm<transB=1, alpha=0.5>(x, w, b) }"


@pytest.mark.parametrize("opset", [9, 13, 21])
@pytest.mark.parametrize("bias", [(5,), (1, 5)])
def test_matrix_and_bias(opset: int, bias: tuple[int, ...]) -> None:
    model = build(BODY, opset=opset, ir=8, w=(5, 12), b=bias)
    done = assert_rewrites(OrientGemm(), model, ops={"Gemm": 1})
    found = weights_of(done.proto)
    assert sorted(tuple(t.dims) for t in found.values()) == [(5,), (12, 5)]
    (node,) = done.model.graph.nodes
    assert set(node.attrs) == {"alpha"}


def test_half_precision_and_bias_that_stays() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((5, 12)).astype(np.float16), rng.standard_normal((1, 1)).astype(np.float16)
    done = assert_rewrites(OrientGemm(), build(BODY.replace("float[", "float16["), w=w, b=b))
    assert [t.dims for t in weights_of(done.proto).values() if t.dims == [1, 1]]


def test_what_stands_right_is_left_alone() -> None:
    assert not apply(OrientGemm(), build(BODY.replace("transB=1, ", ""), w=(12, 5), b=(5,))).journal.changes
    given = BODY.replace("x)", "x, float[5, 12] w)", 1)
    assert not apply(OrientGemm(), build(given, b=(5,))).journal.changes
    assert not apply(OrientGemm(), build(given, b=(5,), w=(5, 12))).journal.changes


def test_other_readers() -> None:
    body = BODY.replace("(float[M, 5] y)", "(float[M, 5] y, float z)").replace(" }", " z = Relu(w) }")
    assert_refuses(OrientGemm(), build(body, w=(5, 12), b=(5,)), "another reader")
    body = BODY.replace("(float[M, 5] y)", "(float[M, 5] y, float[5, 12] w)")
    assert_refuses(OrientGemm(), build(body, w=(5, 12), b=(5,)), "is an output")
    assert_refuses(OrientGemm(), build(BODY, w=(5, 12), b=(5,)), "is kept", keep=["y"])
    assert not apply(OrientGemm(), build(BODY, w=(5, 12), b=(5,)), keep=["w"]).journal.changes


def test_if_body() -> None:
    body = """(float[3, 12] x, bool c) => (float y) {
        y = If (c) <then_branch = t () => (float[3, 5] a) { a = Gemm<transB=1>(x, w) },
                    else_branch = e () => (float[3, 5] d) { d = Gemm(x, v) }>
    }"""
    assert_rewrites(OrientGemm(), build(body, w=(5, 12), v=(12, 5)), ops={"If": 1, "Gemm": 2})


def test_before_quantizing() -> None:
    model = build(BODY.replace("[M, 12]", "[M, 64]"), w=(5, 64), b=(1, 5))
    done = apply([OrientGemm(), QuantizeWeights(bits=4, block_size=32)], model)
    assert [64, 5] in [t.dims for t in weights_of(done.proto).values()]
