from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion.fold_bn_conv import FoldBatchNormConv

PASS = FoldBatchNormConv()
BODY = """(float[N, 4, 6, 6] x) => (float[N, M, H, W] y) {
    n = BatchNormalization <epsilon=0.01> (x, gamma, beta, mean, var)
    y = Conv <group=1> (n, w)
}"""


def stats(**given: Any) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    gamma, beta, mean = rng.standard_normal((3, 4)).astype(np.float32)
    return {"gamma": gamma, "beta": beta, "mean": mean, "var": rng.random(4, np.float32) + 0.5} | given


def unshifted() -> dict[str, Any]:
    return stats(beta=np.zeros(4, np.float32), mean=np.zeros(4, np.float32))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_folds(build: Any, groups: int, bias: bool) -> None:
    weights = {"w": (8, 4 // groups, 3, 3), **stats()} | ({"b": (8,)} if bias else {})
    body = BODY.replace("group=1", f"group={groups}, strides=[2, 1], dilations=[1, 2]")
    model = build(body.replace("(n, w)", "(n, w, b)" if bias else "(n, w)"), **weights)
    done = assert_rewrites(PASS, model, ops={"Conv": 1})
    assert len(done.proto.graph.initializer) == 2


@pytest.mark.parametrize("opset", [7, 9, 13, 15, 22])
def test_opsets(build: Any, opset: int) -> None:
    assert_rewrites(PASS, build(BODY, opset=opset, w=(8, 4, 3, 3), **stats()), ops={"Conv": 1})


def test_valid_is_no_padding(build: Any) -> None:
    body = BODY.replace("group=1", 'auto_pad="VALID"')
    assert_rewrites(PASS, build(body, w=(8, 4, 3, 3), **stats()), ops={"Conv": 1})
    body = BODY.replace("group=1", "pads=[0, 0, 0, 0]")
    assert_rewrites(PASS, build(body, w=(8, 4, 3, 3), **stats()), ops={"Conv": 1})


@pytest.mark.parametrize("padding", ["pads=[0, 0, 0, 1]", 'auto_pad="SAME_UPPER"', 'auto_pad="SAME_LOWER"'])
def test_shift_meets_padding(build: Any, padding: str) -> None:
    body = BODY.replace("group=1", padding)
    assert_refuses(PASS, build(body, w=(8, 4, 3, 3), **stats()), "Conv pads with zeros")
    done = assert_rewrites(PASS, build(body, w=(8, 4, 3, 3), **unshifted()), ops={"Conv": 1})
    assert len(done.proto.graph.initializer) == 1


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose_takes_a_scale_only(build: Any, groups: int) -> None:
    body = BODY.replace("Conv <group=1", f"ConvTranspose <group={groups}, strides=[2, 2]")
    assert_refuses(PASS, build(body, w=(4, 6 // groups, 3, 3), **stats()), "ConvTranspose")
    assert_rewrites(PASS, build(body, w=(4, 6 // groups, 3, 3), **unshifted()), ops={"ConvTranspose": 1})


def test_means_far_from_zero_are_declined(build: Any) -> None:
    far = stats(mean=np.full(4, 1000, np.float32))
    assert_refuses(PASS, build(BODY, w=(8, 4, 3, 3), **far), "cancel")
    # Far in number, not in deviations.
    wide = stats(mean=np.full(4, 1000, np.float32), var=np.full(4, 1e6, np.float32))
    feeds = {"x": (np.random.default_rng(0).standard_normal((2, 4, 6, 6)) * 1000).astype(np.float32)}
    assert_rewrites(PASS, build(BODY, w=(8, 4, 3, 3), **wide), ops={"Conv": 1}, inputs=feeds)


def test_other_reader_and_output_are_declined(build: Any) -> None:
    body = BODY.replace("}", " z = Relu(n) }").replace(" y) {", " y, float[N, M, H, W] z) {")
    assert_refuses(PASS, build(body, w=(8, 4, 3, 3), **stats()), "has another reader")
    body = BODY.replace(" y) {", " y, float[N, M, H, W] n) {")
    assert_refuses(PASS, build(body, w=(8, 4, 3, 3), **stats()), "is a graph output")
    body = BODY.replace("}", " z = Conv(n, w) }").replace(" y) {", " y, float[N, M, H, W] z) {")
    assert_refuses(PASS, build(body, w=(8, 4, 3, 3), **stats()), "has another reader")


def test_parameters_that_are_not_constant_are_declined(build: Any) -> None:
    body = BODY.replace(" x)", " x, float[4] beta)")
    assert_refuses(PASS, build(body, w=(8, 4, 3, 3), **stats()), "beta of BatchNormalization is not constant")
    body = BODY.replace(" x)", " x, float[8, 4, 3, 3] w)")
    assert_refuses(PASS, build(body, **stats()), "w of Conv is not constant")
    body = BODY.replace(" x)", " x, float[8] b)").replace("(n, w)", "(n, w, b)")
    assert_refuses(PASS, build(body, w=(8, 4, 3, 3), **stats()), "b of Conv is not constant")


def test_training_is_declined(build: Any) -> None:
    body = BODY.replace("epsilon=0.01", "training_mode=1").replace("n = B", "n, m, v = B")
    assert_refuses(PASS, build(body, w=(8, 4, 3, 3), **stats()), "training mode")


def test_no_other_operand_is_looked_at(build: Any) -> None:
    body = """(float[N, 4, 6, 6] x) => (float y) {
        n = BatchNormalization(w, gamma, beta, mean, var)
        y = Conv(x, n)
    }"""
    assert not apply(PASS, build(body, w=(8, 4, 3, 3), **stats())).journal.changes


def test_loop_body(build: Any) -> None:
    body = """(float[2, 4, 5, 5] x, int64 n, bool go) => (float[2, 4, 5, 5] y) {
        y = Loop (n, go, x) <body = step (int64 i, bool c, float[2, 4, 5, 5] s)
            => (bool d, float[2, 4, 5, 5] t) {
                d = Identity(c)
                m = BatchNormalization(s, gamma, beta, mean, var)
                t = Conv(m, w)
        }>
    }"""
    feeds = {"x": np.ones((2, 4, 5, 5), np.float32), "n": np.array(2), "go": np.array(True)}
    model = build(body, w=(4, 4, 1, 1), **stats())
    assert_rewrites(PASS, model, ops={"Loop": 1, "Identity": 1, "Conv": 1}, inputs=feeds)
