"""remove-softmax-guard: only when promised or proven, and never when a masked row can be NaN."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from graphopt.testing import Numerics, assert_refuses, assert_rewrites
from graphopt_passes.fusion.remove_softmax_guard import RemoveSoftmaxGuard

PROMISED = RemoveSoftmaxGuard(assume_finite=True)
INITS = "float zero = {0}, float one = {1}, float low = {-3.4028235e38}, float scale = {0.125}"
MORE = "float inf = {0}, float two = {2}, float high = {3.4028235e38}"
GUARD = "p=Softmax(s) n=IsNaN(p) y=Where(n,zero,p)"


def model(
    body: str,
    x: str = "float[N, 4] q, float[4, 4] k, bool[N, 4] b",
    y: str = "float[N, 4] y",
    inits: str = INITS,
) -> str:
    return f'<ir_version: 8, opset_import: ["" : 17]> g ({x}) => ({y}) <{inits}> {{ {body} }}'


@pytest.mark.parametrize(
    "scores",
    [
        "s=MatMul(q,k)",
        "t=MatMul(q,k) s=Mul(t,scale)",
        "t=MatMul(q,k) m=Where(b,zero,low) s=Add(t,m)",
        "t=MatMul(q,k) u=Div(t,scale) s=Where(b,u,low)",
        "t=MatMul(q,k) f=Cast<to=1>(b) i=Sub(one,f) m=Mul(i,low) w=Transpose(m) v=Transpose(w) s=Add(v,t)",
    ],
)
def test_guards_that_a_promise_makes_needless(scores: str) -> None:
    text = model(f"{scores} {GUARD}")
    done = assert_rewrites(PROMISED, text, numerics=Numerics.EXACT)
    assert done.ops["IsNaN"] == 0
    assert_refuses(RemoveSoftmaxGuard(), text, "assume_finite")


def test_what_is_proven_needs_no_promise() -> None:
    assert_rewrites(RemoveSoftmaxGuard(), model(f"s=Where(b,zero,low) {GUARD}"), numerics=Numerics.EXACT)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ("t=MatMul(q,k) m=Where(b,zero,inf) s=Add(t,m)", "the mask may reach -inf"),
        ("t=MatMul(q,k) m=Where(b,zero,inf) n2=Neg(m) s=Add(t,n2)", "the mask may reach +inf"),
        ("t=MatMul(q,k) m=Where(b,zero,inf) s=Sub(t,m)", "the mask may reach +inf"),
        ("t=MatMul(q,k) f=Cast<to=1>(b) m=Mul(f,inf) s=Add(t,m)", "multiplies -inf"),
        ("t=MatMul(q,k) m=Where(b,zero,inf) o=Sub(m,m) s=Add(t,o)", "-inf less -inf"),
        ("t=MatMul(q,k) m=Where(b,zero,high) o=Add(m,high) s=Add(t,o)", "the mask may reach +inf"),
        ("t=MatMul(q,k) m=Where(b,zero,low) o=Add(m,m) s=Add(t,o)", "the mask may reach -inf"),
        ("t=MatMul(q,k) f=Cast<to=1>(b) m=Mul(f,low) n2=Mul(m,two) s=Add(t,n2)", "the mask may reach -inf"),
        ("t=MatMul(q,k) s=Add(t,q)", "q may hold -inf"),
        ("t=MatMul(q,k) e=Log(t) s=Add(t,e)", "may hold -inf"),
        ("t=MatMul(q,k) s=Add(t,t)", "several results"),
        ("t=MatMul(q,k) s=Mul(t,t)", "multiplies scores"),
        ("s=Identity(q)", "q may hold -inf"),
    ],
)
def test_guards_that_stay(scores: str, reason: str) -> None:
    assert_refuses(PROMISED, with_infinity(f"{scores} {GUARD}"), reason)


def with_infinity(body: str) -> onnx.ModelProto:
    """The model with the constant `inf` set to -inf, which the text form cannot say."""
    proto = onnx.parser.parse_model(model(body, inits=f"{INITS}, {MORE}"))
    (constant,) = (t for t in proto.graph.initializer if t.name == "inf")
    constant.CopyFrom(onnx.numpy_helper.from_array(np.array(-np.inf, np.float32), "inf"))
    return proto


def test_masks_of_minus_infinity_need_a_promise_of_their_own() -> None:
    proto = with_infinity(f"t=MatMul(q,k) m=Where(b,zero,inf) s=Add(t,m) {GUARD}")
    rng = np.random.default_rng(0)
    feeds = {
        "q": rng.standard_normal((3, 4)).astype(np.float32),
        "k": rng.standard_normal((4, 4)).astype(np.float32),
        "b": np.array([[1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]], bool),
    }
    both = RemoveSoftmaxGuard(assume_finite=True, assume_unmasked=True)
    assert_rewrites(both, proto, inputs=feeds, numerics=Numerics.EXACT)
    assert_refuses(RemoveSoftmaxGuard(assume_unmasked=True), proto, "assume_finite")
    assert_refuses(both, with_infinity(f"t=MatMul(q,k) m=Where(b,zero,inf) s=Sub(t,m) {GUARD}"), "+inf")


@pytest.mark.parametrize(
    "guard",
    [
        "p=Softmax(s) r=Relu(s) n=IsNaN(r) y=Where(n,zero,p)",
        "p=Softmax(s) n=IsNaN(p) y=Where(n,p,zero)",
        "p=Sigmoid(s) n=IsNaN(p) y=Where(n,zero,p)",
        "p=Softmax(s) n=IsInf(p) y=Where(n,zero,p)",
    ],
)
def test_look_alikes(guard: str) -> None:
    assert_refuses(PROMISED, model(f"s=MatMul(q,k) {guard}"))


def test_a_fallback_that_broadcasts() -> None:
    text = model(
        f"s=MatMul(q,k) {GUARD.replace('zero', 'z')}", y="float[1, N, 4] y", inits="float[1, 1, 1] z = {0}"
    )
    assert_refuses(PROMISED, text, "rank 3 broadcasts p")
    text = model(f"s=MatMul(q,k) {GUARD.replace('zero', 'z')}", inits="float[4] z = {0, 0, 0, 0}")
    assert_refuses(PROMISED, text, "not a constant scalar")


def test_half_precision_overflows() -> None:
    text = model(
        f"t=MatMul(q,k) m=Where(b,zero,low) s=Add(t,m) {GUARD}",
        inits=INITS.replace("-3.4028235e38", "-65504"),
    )
    proto = onnx.parser.parse_model(text)
    for info in (*proto.graph.input, *proto.graph.output):
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for t in proto.graph.initializer:
        t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t).astype("f2"), t.name))
    assert_refuses(PROMISED, proto, "the mask may reach -inf")


def test_outputs() -> None:
    # The Softmax computes y itself when it can, and nothing happens when it is an output, too.
    done = assert_rewrites(PROMISED, model(f"s=MatMul(q,k) {GUARD}"), ops={"MatMul": 1, "Softmax": 1})
    assert done.proto.graph.node[-1].output[0] == "y"
    text = model(f"s=MatMul(q,k) {GUARD}", y="float[N, 4] y, float[N, 4] p")
    assert_refuses(PROMISED, text, "p is an output itself")
    text = model(f"s=MatMul(q,k) {GUARD}", y="float[N, 4] y, bool[N, 4] n")
    assert_rewrites(PROMISED, text, ops={"MatMul": 1, "Softmax": 1, "IsNaN": 1})


def test_in_a_branch() -> None:
    guard = f"s=MatMul(q,k) {GUARD.replace('y=', 'r=')}"
    branch = f"y = If(c) <then_branch = t () => (float[N, 4] r) {{ {guard} }}, "
    branch += "else_branch = f () => (float[N, 4] o) { o = Relu(q) }>"
    text = model(branch, x="float[N, 4] q, float[4, 4] k, bool c")
    assert_rewrites(PROMISED, text, ops={"If": 1, "MatMul": 1, "Softmax": 1, "Relu": 1})
