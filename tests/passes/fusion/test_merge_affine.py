from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion.merge_affine import MergeAffine

PASS = MergeAffine()
BODY = """(float[N, 3] x) => (float y) {
    t = Mul(x, a)
    y = Mul(t, b)
}"""
A, B = np.array([0.5, -2.0, 3.0], np.float32), np.array([1.5, 0.25, -4.0], np.float32)
ADDITIVE = ["Add(x, {})", "Add({}, x)", "Sub(x, {})", "Sub({}, x)"]
MULTIPLICATIVE = ["Mul(x, {})", "Mul({}, x)", "Div(x, {})", "Div({}, x)"]


def chain(inner: str, outer: str) -> str:
    return BODY.replace("Mul(x, a)", inner.format("a")).replace(
        "Mul(t, b)", outer.format("b").replace("x", "t")
    )


@pytest.mark.parametrize("inner", ADDITIVE)
@pytest.mark.parametrize("outer", ADDITIVE)
def test_additive(build: Any, inner: str, outer: str) -> None:
    done = assert_rewrites(PASS, build(chain(inner, outer), a=A, b=B))
    assert len(done.model.graph.nodes) == 1


@pytest.mark.parametrize("inner", ADDITIVE)
@pytest.mark.parametrize("outer", ADDITIVE)
@pytest.mark.parametrize(("dtype", "name"), [(np.int32, "int32"), (np.uint32, "uint32"), (np.int64, "int64")])
def test_integers_wrap_around(build: Any, inner: str, outer: str, dtype: Any, name: str) -> None:
    last = np.iinfo(dtype).max
    body = chain(inner, outer).replace("float", name)
    done = assert_rewrites(
        PASS, build(body, a=np.array([1, last, 7], dtype), b=np.array([2, last, 3], dtype))
    )
    assert len(done.model.graph.nodes) == 1


@pytest.mark.parametrize("inner", MULTIPLICATIVE)
@pytest.mark.parametrize("outer", MULTIPLICATIVE)
def test_multiplicative(build: Any, inner: str, outer: str) -> None:
    model = build(chain(inner, outer), a=A, b=B)
    if inner == outer == "Div({}, x)":
        assert_refuses(PASS, model, "both Divs")
        return
    done = assert_rewrites(PASS, model)
    assert len(done.model.graph.nodes) == 1


def test_integer_products_and_quotients(build: Any) -> None:
    body = BODY.replace("float", "int32")
    a, b = np.array([1 << 20, 3, -5], np.int32), np.array([1 << 20, 4, 6], np.int32)
    assert_rewrites(PASS, build(body, a=a, b=b), ops={"Mul": 1})
    done = apply(PASS, build(body.replace("= Mul", "= Div"), a=a, b=b))
    assert not done.journal.changes, "7 / 2 / 2 is not 7 / 4 in integers that overflow"


def test_long_chain(build: Any) -> None:
    body = """(float[N, 3] x) => (float y) {
        t = Mul(x, a)
        u = Div(t, b)
        v = Add(u, a)
        w = Sub(b, v)
        y = Add(a, w)
    }"""
    assert_rewrites(PASS, build(body, a=A, b=B), ops={"Mul": 1, "Sub": 1})


@pytest.mark.parametrize("shapes", [((), (3,)), ((2, 1), (2, 3)), ((1, 1, 1), (3,)), ((1, 3), ())])
def test_broadcasting(build: Any, shapes: tuple[Any, Any]) -> None:
    body = BODY.replace("N, 3", "1, 3")
    for op in ("Mul", "Add"):
        model = build(body.replace("= Mul", f"= {op}"), a=shapes[0], b=shapes[1])
        assert_rewrites(PASS, model, ops={op: 1})


def test_a_constant_that_would_grow_is_declined(build: Any) -> None:
    body = BODY.replace("N, 3", "5, 3")
    assert_refuses(PASS, build(body, a=(5, 1), b=(1, 3)), "broadcast to a larger one")


def test_numbers_that_the_original_rounds_are_declined(build: Any) -> None:
    adds = BODY.replace("= Mul", "= Add")
    model = build(adds, a=np.float32(1e8), b=np.float32(-1e8))
    assert_refuses(PASS, model, "large and cancel")
    assert_rewrites(PASS, build(adds, a=np.float32(1e8), b=np.float32(1e8)), ops={"Add": 1})
    assert_refuses(PASS, build(BODY, a=np.float32(1e30), b=np.float32(1e-30)), "range of float32")
    assert_refuses(PASS, build(BODY, a=np.float32(np.nan), b=B), "range of float32")
    assert_refuses(PASS, build(adds, a=np.float32(3e38), b=np.float32(3e38)), "not finite")
    half = BODY.replace("float", "float16")
    assert_refuses(PASS, build(half, a=np.float16(1e-3), b=np.float16(1e3)), "range of float16")


def test_zero_is_a_factor_but_no_divisor(build: Any) -> None:
    zero = np.array([0, 1, 2], np.float32)
    assert_rewrites(PASS, build(BODY, a=zero, b=B), ops={"Mul": 1})
    model = build(chain("Div(x, {})", "Mul(x, {})"), a=zero, b=B)
    assert_refuses(PASS, model, "not finite")


def test_other_reader_and_output_are_declined(build: Any) -> None:
    body = BODY.replace("}", " z = Relu(t) }").replace(" y) {", " y, float z) {")
    assert_refuses(PASS, build(body, a=A, b=B), "has another reader")
    body = BODY.replace(" y) {", " y, float t) {")
    assert_refuses(PASS, build(body, a=A, b=B), "is a graph output")


def test_mixed_kinds_and_overridable_initializers_are_no_candidates(build: Any) -> None:
    assert not apply(PASS, build(BODY.replace("y = Mul", "y = Add"), a=A, b=B)).journal.changes
    body = BODY.replace(" x)", " x, float[3] b)")
    assert not apply(PASS, build(body, a=A, b=B)).journal.changes


@pytest.mark.parametrize("opset", [7, 13, 14, 22])
def test_loop_body_and_opsets(build: Any, opset: int) -> None:
    body = """(float[2] x, int64 n, bool go) => (float[2] y) {
        y = Loop (n, go, x) <body = step (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
            d = Identity(c)
            m = Add(s, a)
            t = Sub(m, b)
        }>
    }"""
    feeds = {"x": np.ones(2, np.float32), "n": np.array(2), "go": np.array(True)}
    model = build(body, opset=opset, a=np.float32(2), b=np.float32(0.5))
    assert_rewrites(PASS, model, ops={"Loop": 1, "Identity": 1, "Add": 1}, inputs=feeds)


def test_broadcasting_by_attribute_is_left_alone(build: Any) -> None:
    body = BODY.replace("= Mul", "= Mul <broadcast=1> ")
    assert not apply(PASS, build(body, opset=6, a=A, b=B)).journal.changes


def test_the_half_of_gelu_is_left_alone(build: Any) -> None:
    body = """(float[N, 3] x) => (float y) {
        e = Erf(x)
        f = Add(e, a)
        g = Mul(x, f)
        h = Mul(g, half)
        y = Mul(h, b)
    }"""
    assert_refuses(PASS, build(body, a=A, b=B, half=np.float32(0.5)), "Mul may end an activation")
    # A scale of a normalization takes up another one.
    model = build(body, a=A, b=B, half=A)
    assert_rewrites(PASS, model, ops={"Erf": 1, "Add": 1, "Mul": 2})
