"""merge-clips: every pair of bounds, reversed and open ones, opsets, types, what must stay apart."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx
import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.fusion._bounds import Bounds
from graphopt_passes.fusion.merge_clips import MergeClips

INITS = "float zero = {0}, float one = {1}, float six = {6}, float minus = {-1}, float[1] vec = {0.5}"
STEPS = [
    "Relu({})",
    "Clip({},minus,one)",
    "Clip({},one,minus)",
    "Clip({},zero)",
    "Clip({},,six)",
    "Clip({})",
    "Max({},minus)",
    "Min(one,{})",
    "Max(vec,{})",
]
SPECIAL = np.array([[np.nan, np.inf, -np.inf, 3.4e38], [-3.4e38, -0.5, 0.25, 7.0]], np.float32)


def model(
    body: str, opset: int = 17, x: str = "float[N, 4] x", y: str = "float[N, 4] y", inits: str = INITS
) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => ({y}) <{inits}> {{ {body} }}'


@pytest.mark.parametrize(("first", "second"), list(itertools.product(STEPS, STEPS)))
def test_every_pair(first: str, second: str) -> None:
    body = f"a={first.format('x')} y={second.format('a')}"
    done = assert_rewrites(MergeClips(), model(body), inputs={"x": SPECIAL})
    assert done.ops.total() == 1


@pytest.mark.parametrize(
    ("body", "op"),
    [
        ("a=Relu(x) y=Relu(a)", "Relu"),
        ("a=Relu(x) y=Clip(a,zero,six)", "Clip"),
        ("a=Clip(x,minus,six) y=Relu(a)", "Clip"),
        ("a=Max(x,zero) y=Relu(a)", "Relu"),
        ("a=Max(x,one) y=Max(a,minus)", "Max"),
        ("a=Min(x,six) y=Min(a,one)", "Min"),
        ("a=Max(x,zero) y=Min(a,six)", "Clip"),
        ("a=Relu(x) b=Relu(a) c=Clip(b,zero,six) y=Min(c,one)", "Clip"),
    ],
)
def test_the_plainest_operator(body: str, op: str) -> None:
    assert_rewrites(MergeClips(), model(body), ops={op: 1}, inputs={"x": SPECIAL})


def test_an_omitted_bound_is_the_largest_finite_number() -> None:
    done = assert_rewrites(
        MergeClips(), model("a=Relu(x) y=Clip(a,,)"), ops={"Clip": 1}, inputs={"x": SPECIAL}
    )
    assert len(done.proto.graph.node[0].input) == 2
    done = assert_rewrites(MergeClips(), model("a=Clip(x,,six) y=Clip(a,,one)"), ops={"Clip": 1})
    assert done.proto.graph.node[0].input[1] == ""


def test_composition() -> None:
    values = (-math.inf, -2, -1, 0, 1, 2, math.inf)
    x = object()
    for a, b, c, d in itertools.product(values, repeat=4):
        merged = Bounds(x, c, d).inside(Bounds(x, a, b))  # type: ignore[arg-type]
        for v in values:
            assert min(max(v, merged.low), merged.high) == min(max(min(max(v, a), b), c), d)
        assert merged.low <= merged.high


def test_bounds_as_attributes() -> None:
    body = "a=Clip<min=-1.0, max=6.0>(x) y=Relu(a)"
    done = assert_rewrites(MergeClips(), model(body, opset=10), ops={"Clip": 1})
    found = {a.name: a.f for a in done.proto.graph.node[0].attribute}
    assert found == {"min": 0.0, "max": 6.0}
    # Reversed bounds would be right, but ONNX Runtime does not load them.
    body = "a=Clip<min=6.0, max=6.0>(x) y=Clip<min=-3.0, max=3.0>(a)"
    done = assert_rewrites(MergeClips(), model(body, opset=10), ops={"Clip": 1})
    found = {a.name: a.f for a in done.proto.graph.node[0].attribute}
    assert found == {"min": 3.0, "max": 3.0}
    # The default of the attribute is finite: infinity is mapped to it.
    body = "a=Clip<min=0.0>(x) y=Relu(a)"
    assert_rewrites(MergeClips(), model(body, opset=10), ops={"Clip": 1}, inputs={"x": SPECIAL})


@pytest.mark.parametrize(("dtype", "kind"), [("int32", np.int32), ("uint8", np.uint8), ("int64", np.int64)])
def test_integers(dtype: str, kind: type) -> None:
    # At the far ends of int64, float arithmetic would not do.
    high = int(np.iinfo(kind).max)
    inits = f"{dtype} lo = {{1}}, {dtype} hi = {{{high - 1}}}"
    text = model("a=Clip(x,lo) y=Clip(a,,hi)", x=f"{dtype}[4] x", y=f"{dtype}[4] y", inits=inits)
    feeds = {"x": np.array([0, 1, high, high - 1], kind)}
    assert_rewrites(MergeClips(), text, ops={"Clip": 1}, inputs=feeds)


def test_integer_relu() -> None:
    text = model("a=Relu(x) y=Relu(a)", x="int32[4] x", y="int32[4] y", inits="")
    assert_rewrites(MergeClips(), text, ops={"Relu": 1})


def test_a_type_without_a_clip() -> None:
    # There is no Clip for int16, nor one for double before opset 12.
    inits = "double lo = {0}, double hi = {6}"
    text = model("a=Max(x,lo) y=Min(a,hi)", x="double[4] x", y="double[4] y", inits=inits)
    assert_rewrites(MergeClips(), text, ops={"Clip": 1})
    old = text.replace(": 17]", ": 11]")
    assert_refuses(MergeClips(), old, "not commonly implemented")


@pytest.mark.parametrize(
    "body",
    [
        "a=Relu(x) y=Sigmoid(a)",
        "a=Max(x,x) y=Relu(a)",
        "a=Max(x,zero,one) y=Relu(a)",
        "r=Abs(zero) a=Max(x,r) y=Relu(a)",
        "a=Max(x,four) y=Relu(a)",
        "a=Clip(x,nan) y=Relu(a)",
    ],
)
def test_no_candidates(body: str) -> None:
    inits = INITS + ", float[4] four = {1, 2, 3, 4}"
    proto = onnx.parser.parse_model(model(body.replace("nan", "zero"), inits=inits))
    if "nan" in body:
        for t in proto.graph.initializer:
            t.CopyFrom(onnx.numpy_helper.from_array(np.full(t.dims, np.nan, np.float32), t.name))
    assert_refuses(MergeClips(), proto)


def test_an_overridable_bound() -> None:
    text = model("a=Max(x,zero) y=Min(a,six)", x="float[N, 4] x, float six")
    assert_refuses(MergeClips(), text)


def test_a_bound_of_higher_rank() -> None:
    inits = "float[1, 1, 1] r3 = {0}, float six = {6}"
    text = model("a=Max(x,r3) y=Min(a,six)", y="float[1, N, 4] y", inits=inits)
    assert_refuses(MergeClips(), text, "rank 3 broadcasts x")


def test_the_inner_result_is_needed_elsewhere() -> None:
    body = "a=Relu(x) y=Clip(a,zero,six)"
    assert_refuses(MergeClips(), model(body, y="float[N, 4] y, float[N, 4] a"), "a is a graph output")
    text = model(body + " z=Sigmoid(a)", y="float[N, 4] y, float[N, 4] z")
    assert_refuses(MergeClips(), text, "a has another reader")
    assert_refuses(MergeClips(), model(body), "kept", keep=["a"])


def test_in_a_branch() -> None:
    text = model(
        "y = If(b) <then_branch = t () => (float[N, 4] r) { p=Relu(x) r=Clip(p,zero,six) }, "
        "else_branch = f () => (float[N, 4] q) { q=Relu(x) }>",
        x="float[N, 4] x, bool b",
    )
    assert_rewrites(MergeClips(), text, ops={"If": 1, "Clip": 1, "Relu": 1})
    # The inner Relu stands outside, where others may read it.
    text = model(
        "p=Relu(x) y = If(b) <then_branch = t () => (float[N, 4] r) { r=Clip(p,zero,six) }, "
        "else_branch = f () => (float[N, 4] q) { q=Abs(x) }>",
        x="float[N, 4] x, bool b",
    )
    assert_refuses(MergeClips(), text)
