from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.pipeline.base import Limits
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion.fold_conv_affine import FoldConvAffine

PASS = FoldConvAffine()
BODY = """(float[N, 4, 5, 5] x) => (float y) {
    a = Conv <group=1> (x, w)
    y = Mul(a, c)
}"""


def column(channels: int = 3, seed: int = 2) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(channels).astype(np.float32)
    return (values + np.sign(values) * 0.2).reshape(-1, 1, 1)


@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("bias", [False, True])
def test_folds_each_operator(build: Any, op: str, bias: bool) -> None:
    weights = {"w": (3, 4, 3, 3), "c": column()} | ({"b": (3,)} if bias else {})
    body = BODY.replace("= Mul", f"= {op}").replace("(x, w)", "(x, w, b)" if bias else "(x, w)")
    done = assert_rewrites(PASS, build(body, **weights), ops={"Conv": 1})
    assert len(done.proto.graph.initializer) == 1 + (bias or op in ("Add", "Sub"))


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_operands_in_either_order(build: Any, op: str) -> None:
    body = BODY.replace("Mul(a, c)", f"{op}(c, a)")
    assert_rewrites(PASS, build(body, w=(3, 4, 3, 3), c=column()), ops={"Conv": 1})


@pytest.mark.parametrize("op", ["Sub", "Div"])
def test_constant_first_is_declined(build: Any, op: str) -> None:
    body = BODY.replace("Mul(a, c)", f"{op}(c, a)")
    assert_refuses(PASS, build(body, w=(3, 4, 3, 3), c=column()), f"{op} takes the constant c first")


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (1, 1, 1, 1), (1, 3, 1, 1), (3, 1, 1)])
def test_shapes_that_are_per_channel(build: Any, shape: tuple[int, ...]) -> None:
    values = column().reshape(shape) if 3 in shape else np.full(shape, 1.5, np.float32)
    for op in ("Mul", "Add"):
        assert_rewrites(
            PASS, build(BODY.replace("= Mul", f"= {op}"), w=(3, 4, 3, 3), c=values), ops={"Conv": 1}
        )


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3), (3, 3), (2, 1, 1, 1), (1, 1, 1, 1, 1), (1, 3, 1, 3)])
def test_shapes_that_are_not_are_declined(build: Any, shape: tuple[int, ...]) -> None:
    """The output is 3x3 with 3 channels, so a vector of 3 fits both the width and the channels."""
    for op in ("Mul", "Add"):
        model = build(BODY.replace("= Mul", f"= {op}"), w=(3, 4, 3, 3), c=shape)
        assert_refuses(PASS, model, "c is not one number per output channel")


def test_a_constant_that_enlarges_the_output_is_declined(build: Any) -> None:
    assert_refuses(PASS, build(BODY, w=(1, 4, 3, 3), c=column()), "c is not one number")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("op", ["Mul", "Sub"])
def test_conv_transpose(build: Any, groups: int, op: str) -> None:
    body = BODY.replace("Conv <group=1", f"ConvTranspose <group={groups}, strides=[2, 2]").replace(
        "= Mul", f"= {op}"
    )
    model = build(body, w=(4, 6 // groups, 3, 3), c=column(6))
    assert_rewrites(PASS, model, ops={"ConvTranspose": 1})


def test_padding_does_not_matter_behind_the_conv(build: Any) -> None:
    body = BODY.replace("group=1", 'auto_pad="SAME_UPPER"').replace("= Mul", "= Add")
    assert_rewrites(PASS, build(body, w=(3, 4, 3, 3), c=column()), ops={"Conv": 1})


@pytest.mark.parametrize("opset", [7, 11, 13, 14, 22])
def test_opsets(build: Any, opset: int) -> None:
    assert_rewrites(PASS, build(BODY, opset=opset, w=(3, 4, 3, 3), c=column()), ops={"Conv": 1})


def test_broadcasting_by_attribute_is_left_alone(build: Any) -> None:
    body = BODY.replace("Mul(", "Mul <broadcast=1, axis=1> (")
    done = apply(PASS, build(body, opset=6, w=(3, 4, 3, 3), c=column().reshape(3)))
    assert not done.journal.changes


def test_chain_folds_to_one_conv(build: Any) -> None:
    body = """(float[N, 4, 5, 5] x) => (float y) {
        a = Conv(x, w)
        d = Div(a, c)
        e = Add(s, d)
        f = Mul(e, c)
        y = Sub(f, c)
    }"""
    assert_rewrites(PASS, build(body, w=(3, 4, 3, 3), c=column(), s=np.float32(2)), ops={"Conv": 1})


def test_division_by_zero_is_declined(build: Any) -> None:
    values = column()
    values[1] = 0
    assert_refuses(PASS, build(BODY.replace("= Mul", "= Div"), w=(3, 4, 3, 3), c=values), "divides by zero")


def test_numbers_that_are_not_finite_are_declined(build: Any) -> None:
    model = build(BODY.replace("= Mul", "= Add"), w=(3, 4, 3, 3), c=np.float32(-np.inf))
    assert_refuses(PASS, model, "not finite")
    model = build(BODY, w=np.full((3, 4, 3, 3), 1e20, np.float32), c=np.float32(1e20))
    assert_refuses(PASS, model, "not finite in float32")


def test_float16(build: Any) -> None:
    w = np.random.default_rng(0).standard_normal((3, 4, 3, 3)).astype(np.float16)
    body = BODY.replace("float", "float16")
    assert_rewrites(PASS, build(body, w=w, c=column().astype(np.float16)), ops={"Conv": 1})
    assert_refuses(PASS, build(body, w=w, c=np.float16(1e-6)), "too small for float16")


def test_other_reader_and_output_are_declined(build: Any) -> None:
    body = BODY.replace("}", " z = Relu(a) }").replace(" y) {", " y, float z) {")
    assert_refuses(PASS, build(body, w=(3, 4, 3, 3), c=column()), "has another reader")
    body = BODY.replace(" y) {", " y, float a) {")
    assert_refuses(PASS, build(body, w=(3, 4, 3, 3), c=column()), "is a graph output")


def test_what_is_not_constant_is_declined(build: Any) -> None:
    body = BODY.replace(" x)", " x, float[3, 1, 1] c)")
    assert not apply(PASS, build(body, w=(3, 4, 3, 3), c=column())).journal.changes
    body = BODY.replace(" x)", " x, float[3, 4, 3, 3] w)")
    assert_refuses(PASS, build(body, c=column()), "w of Conv is not constant")


def test_shared_weight_is_copied_only_while_small(build: Any) -> None:
    body = BODY.replace("}", " z = Conv(x, w) }").replace(" y) {", " y, float z) {")
    model = build(body, w=(3, 4, 3, 3), c=column())
    assert_rewrites(PASS, model, ops={"Conv": 2})
    assert_refuses(PASS, model, "w has other readers", limits=Limits(growth_bytes=64))
    # An Add leaves the weight alone, so that it is no copy.
    adds = build(body.replace("= Mul", "= Add"), w=(3, 4, 3, 3), c=column())
    assert_rewrites(PASS, adds, ops={"Conv": 2}, limits=Limits(growth_bytes=64))


def test_if_body(build: Any) -> None:
    body = """(float[N, 4, 5, 5] x, bool flag) => (float y) {
        y = If (flag) <
            then_branch = then_g () => (float t) { a = Conv(x, w)  t = Mul(a, c) },
            else_branch = else_g () => (float e) { e = Conv(x, w) }>
    }"""
    done = assert_rewrites(PASS, build(body, w=(3, 4, 3, 3), c=column()), ops={"Conv": 2, "If": 1})
    assert [t.name for t in done.proto.graph.initializer] == ["w"]


def test_a_capture_counts_as_a_reader(build: Any) -> None:
    body = """(float[N, 4, 5, 5] x, bool flag) => (float y, float z) {
        a = Conv(x, w)
        y = Mul(a, c)
        z = If (flag) <
            then_branch = then_g () => (float t) { t = Relu(a) },
            else_branch = else_g () => (float e) { e = Neg(x) }>
    }"""
    assert_refuses(PASS, build(body, w=(3, 4, 3, 3), c=column()), "has another reader")
