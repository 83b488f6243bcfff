from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion.fold_affine_conv import FoldAffineConv

PASS = FoldAffineConv()
BODY = """(float[N, 4, 5, 5] x) => (float y) {
    a = Mul(x, c)
    y = Conv <group=1> (a, w)
}"""
PADDED = BODY.replace("group=1", "pads=[1, 1, 1, 1]")


def column(channels: int = 4) -> np.ndarray:
    values = np.random.default_rng(2).standard_normal(channels).astype(np.float32)
    return (values + np.sign(values) * 0.2).reshape(-1, 1, 1)


@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_folds_each_operator(build: Any, op: str, bias: bool, groups: int) -> None:
    weights = {"w": (6, 4 // groups, 3, 3), "c": column()} | ({"b": (6,)} if bias else {})
    body = BODY.replace("= Mul", f"= {op}").replace("group=1", f"group={groups}")
    body = body.replace("(a, w)", "(a, w, b)" if bias else "(a, w)")
    assert_rewrites(PASS, build(body, **weights), ops={"Conv": 1})


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_one_number(build: Any, op: str) -> None:
    for c in (np.float32(2), np.full((1, 1, 1, 1), 2, np.float32)):
        body = BODY.replace("Mul(x, c)", f"{op}(c, x)")
        assert_rewrites(PASS, build(body, w=(6, 4, 3, 3), c=c), ops={"Conv": 1})


def test_scale_passes_padding_and_shift_does_not(build: Any) -> None:
    for padding in ("pads=[1, 1, 1, 1]", 'auto_pad="SAME_LOWER"'):
        body = BODY.replace("group=1", padding)
        assert_rewrites(PASS, build(body, w=(6, 4, 3, 3), c=column()), ops={"Conv": 1})
        model = build(body.replace("= Mul", "= Sub"), w=(6, 4, 3, 3), c=column())
        assert_refuses(PASS, model, "Conv pads with zeros, which Sub does not shift")


@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose(build: Any, groups: int) -> None:
    body = BODY.replace("Conv <group=1", f"ConvTranspose <group={groups}, strides=[2, 2], pads=[1, 1, 1, 1]")
    assert_rewrites(PASS, build(body, w=(4, 3, 3, 3), c=column()), ops={"ConvTranspose": 1})
    model = build(body.replace("= Mul", "= Add"), w=(4, 3, 3, 3), c=column())
    assert_refuses(PASS, model, "ConvTranspose")


@pytest.mark.parametrize("op", ["Sub", "Div"])
def test_constant_first_is_declined(build: Any, op: str) -> None:
    body = BODY.replace("Mul(x, c)", f"{op}(c, x)")
    assert_refuses(PASS, build(body, w=(6, 4, 3, 3), c=column()), "takes the constant c first")


@pytest.mark.parametrize("shape", [(5,), (5, 1), (2, 1, 1, 1), (4, 5, 5)])
def test_constants_along_other_axes_are_declined(build: Any, shape: tuple[int, ...]) -> None:
    assert_refuses(PASS, build(BODY, w=(6, 4, 3, 3), c=shape), "c is not one number per input channel")


def test_a_vector_lies_along_the_width(build: Any) -> None:
    body = BODY.replace("4, 5, 5", "4, 5, 4")
    assert_refuses(PASS, build(body, w=(6, 4, 3, 3), c=(4,)), "c is not one number per input channel")


@pytest.mark.parametrize("dims", ["N, 1, 5, 5", "N, K, 5, 5", "1, 5, 5"])
def test_inputs_that_are_broadcast_are_declined(build: Any, dims: str) -> None:
    c = column().reshape(1, 4, 1, 1)
    assert_refuses(PASS, build(BODY.replace("N, 4, 5, 5", dims), w=(6, 4, 3, 3), c=c), "x is not known to")


def test_unknown_rank(build: Any) -> None:
    body = """(float[N, 4, 5, 5] x, int64[r] s) => (float y) {
        v = Reshape(x, s)
        a = Mul(v, c)
        y = Conv(a, w)
    }"""
    feeds = {"x": np.ones((2, 4, 5, 5), np.float32), "s": np.array([2, 4, 5, 5])}
    scalar = build(body, w=(6, 4, 3, 3), c=np.float32(3))
    assert_rewrites(PASS, scalar, ops={"Reshape": 1, "Conv": 1}, inputs=feeds)
    assert_refuses(PASS, build(body, w=(6, 4, 3, 3), c=column()), "v is not known to have 4 channels")
    ones = build(body, w=(6, 4, 3, 3), c=np.ones((1, 1, 1, 1), np.float32))
    assert_refuses(PASS, ones, "v is not known to have rank 4")


def test_large_shift_is_declined(build: Any) -> None:
    model = build(BODY.replace("= Mul", "= Sub"), w=(6, 4, 3, 3), c=np.float32(127.5))
    assert_refuses(PASS, model, "cancel")


def test_numbers_that_are_not_finite_are_declined(build: Any) -> None:
    w = np.full((6, 4, 3, 3), 1e30, np.float32)
    assert_refuses(PASS, build(PADDED, w=w, c=np.float32(1e30)), "not finite in float32")
    model = build(PADDED.replace("= Mul", "= Div"), w=(6, 4, 3, 3), c=np.float32(0))
    assert_refuses(PASS, model, "divides by zero")


def test_other_reader_and_output_are_declined(build: Any) -> None:
    body = BODY.replace("}", " z = Relu(a) }").replace(" y) {", " y, float z) {")
    assert_refuses(PASS, build(body, w=(6, 4, 3, 3), c=column()), "has another reader")
    body = BODY.replace(" y) {", " y, float a) {")
    assert_refuses(PASS, build(body, w=(6, 4, 3, 3), c=column()), "is a graph output")


def test_weight_that_is_not_constant_is_declined(build: Any) -> None:
    body = BODY.replace(" x)", " x, float[6, 4, 3, 3] w)")
    assert_refuses(PASS, build(body, c=column()), "w of Conv is not constant")


def test_two_variables_are_no_candidate(build: Any) -> None:
    done = apply(PASS, build(BODY.replace("Mul(x, c)", "Mul(x, x)"), w=(6, 4, 3, 3)))
    assert not done.journal.changes
    assert not done.reasons


def test_if_body_and_opset_7(build: Any) -> None:
    body = """(float[N, 4, 5, 5] x, bool flag) => (float y) {
        y = If (flag) <
            then_branch = then_g () => (float t) { a = Mul(x, c)  t = Conv(a, w) },
            else_branch = else_g () => (float e) { e = Identity(x) }>
    }"""
    for opset in (7, 17):
        model = build(body, opset=opset, w=(4, 4, 1, 1), c=column())
        assert_rewrites(PASS, model, ops={"Conv": 1, "If": 1, "Identity": 1})


def test_the_end_of_a_spelled_out_activation_is_left_alone(build: Any) -> None:
    body = """(float[N, 4, 5, 5] x) => (float y) {
        s = Sigmoid(x)
        m = Mul(x, s)
        a = Mul(m, c)
        y = Conv(a, w)
    }"""
    assert_refuses(PASS, build(body, w=(6, 4, 3, 3), c=np.float32(2)), "Mul may end an activation")
