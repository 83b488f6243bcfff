"""fuse-layer-norm: spellings, parameters, casts, opsets, and the look-alikes that it must refuse."""

from __future__ import annotations

import re

import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.fusion.fuse_layer_norm import FuseLayerNorm

CONSTANTS = {
    "eps": "float eps = {0.00001}",
    "one": "float one = {1}",
    "two": "float two = {2}",
    "three": "float three = {3}",
    "half": "float half = {0.5}",
    "mhalf": "float mhalf = {-0.5}",
    "w": "float[4] w = {1, 2, 3, 4}",
    "b": "float[4] b = {0.1, 0.2, 0.3, 0.4}",
    "scalar": "float scalar = {3}",
    "rows": "float[3, 1] rows = {1, 2, 3}",
    "last": "int64[1] last = {-1}",
}
MEAN = "m=ReduceMean<axes=[-1]>(x) d=Sub(x,m)"
VARIANCE = "q=Pow(d,two) v=ReduceMean<axes=[-1]>(q) e=Add(v,eps)"
CORE = f"{MEAN} {VARIANCE} s=Sqrt(e) n=Div(d,s)"
AFFINE = "g=Mul(n,w) y=Add(g,b)"
LN = f"{CORE} {AFFINE}"


def model(
    body: str, opset: int = 17, x: str = "float[N, 3, 4] x", y: str = "float[N, 3, 4] y", inits: str = ""
) -> str:
    used = set(re.findall(r"\w+", body))
    declared = ", ".join([v for k, v in CONSTANTS.items() if k in used] + [inits] * bool(inits))
    return f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => ({y}) <{declared}> {{ {body} }}'


def attributes(done: object) -> dict[str, object]:
    (node,) = (n for n in done.proto.graph.node if n.op_type == "LayerNormalization")  # type: ignore[attr-defined]
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize(
    "body",
    [
        LN,
        f"{CORE} g=Mul(w,n) y=Add(b,g)",
        f"{MEAN} q=Mul(d,d) v=ReduceMean<axes=[2]>(q) e=Add(eps,v) s=Sqrt(e) n=Div(d,s) {AFFINE}",
        f"{MEAN} {VARIANCE} s=Sqrt(e) i=Reciprocal(s) n=Mul(d,i) {AFFINE}",
        f"{MEAN} {VARIANCE} s=Sqrt(e) i=Div(one,s) n=Mul(i,d) {AFFINE}",
        f"{MEAN} {VARIANCE} i=Pow(e,mhalf) n=Mul(d,i) {AFFINE}",
        f"{MEAN} {VARIANCE} s=Pow(e,half) n=Div(d,s) {AFFINE}",
        f"{MEAN} d2=Sub(x,m) q=Pow(d2,two) v=ReduceMean<axes=[-1]>(q) e=Add(v,eps) s=Sqrt(e) n=Div(d,s) {AFFINE}",
        f"{MEAN} m2=ReduceMean<axes=[2]>(x) d2=Sub(x,m2) q=Mul(d2,d2) v=ReduceMean<axes=[-1]>(q) e=Add(v,eps) "
        f"s=Sqrt(e) n=Div(d,s) {AFFINE}",
    ],
)
def test_spellings(body: str) -> None:
    done = assert_rewrites(FuseLayerNorm(), model(body), ops={"LayerNormalization": 1})
    assert attributes(done) == {"axis": -1, "epsilon": pytest.approx(1e-5)}
    assert {t.name for t in done.proto.graph.initializer} == {"w", "b"}


def test_axes_as_an_input() -> None:
    body = LN.replace("<axes=[-1]>(x)", "(x,last)").replace("<axes=[-1]>(q)", "(q,last)")
    assert_rewrites(FuseLayerNorm(), model(body, opset=18), ops={"LayerNormalization": 1})


def test_axes_of_an_input_that_can_be_overridden() -> None:
    body = LN.replace("<axes=[-1]>(x)", "(x,a)").replace("<axes=[-1]>(q)", "(q,a)")
    text = model(body, opset=18, x="float[N, 3, 4] x, int64[1] a", inits="int64[1] a = {-1}")
    assert_refuses(FuseLayerNorm(), text, "axes of ReduceMean are not known")


def test_several_axes_and_all_of_them() -> None:
    body = CORE.replace("[-1]", "[2,1]").replace("n=Div", "y=Div")
    done = assert_rewrites(FuseLayerNorm(), model(body), ops={"LayerNormalization": 1})
    assert attributes(done)["axis"] == -2
    fixed = {"x": "float[2, 3, 4] x", "y": "float[2, 3, 4] y"}
    done = assert_rewrites(
        FuseLayerNorm(), model(body.replace("<axes=[2,1]>", ""), **fixed), ops={"LayerNormalization": 1}
    )
    assert attributes(done)["axis"] == -3


def test_parameters_of_several_axes_and_broadcast_ones() -> None:
    body = f"{CORE.replace('[-1]', '[1,2]')} g=Mul(n,k) y=Add(g,b)"
    text = model(body, inits="float[1, 3, 1] k = {1, 2, 3}")
    done = assert_rewrites(FuseLayerNorm(), text, ops={"LayerNormalization": 1})
    assert [list(t.dims) for t in done.proto.graph.initializer] == [[3, 4], [3, 4]]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (f"{CORE} y=Mul(n,w)", {}),
        (f"{CORE} y=Add(n,b)", {}),
        (CORE.replace("n=", "y="), {}),
        (f"{CORE} g=Mul(n,scalar) y=Add(g,b)", {}),
        (f"{CORE} g=Mul(n,w) y=Add(g,x)", {"Add": 1}),
        (f"{CORE} g=Mul(n,x) y=Add(g,b)", {"Mul": 1, "Add": 1}),
        (f"{CORE} g=Mul(n,rows) y=Add(g,b)", {"Mul": 1, "Add": 1}),
        (f"{CORE} g=Mul(n,n) y=Add(g,b)", {"Mul": 1, "Add": 1}),
    ],
)
def test_parameters_are_optional(body: str, left: dict[str, int]) -> None:
    assert_rewrites(FuseLayerNorm(), model(body), ops={"LayerNormalization": 1, **left})


def test_parameters_that_enlarge_the_result_stay() -> None:
    text = model(f"{CORE} g=Mul(n,big) y=Add(g,b)", x="float[N, 3, 1] x", inits="float[4] big = {1, 2, 3, 4}")
    assert_rewrites(FuseLayerNorm(), text, ops={"LayerNormalization": 1, "Mul": 1, "Add": 1})
    text = model(
        f"{CORE} y=Mul(n,big)", y="float[1, N, 3, 4] y", inits="float[1, 1, 1, 4] big = {1, 2, 3, 4}"
    )
    assert_rewrites(FuseLayerNorm(), text, ops={"LayerNormalization": 1, "Mul": 1})


def test_parameters_need_not_be_constant() -> None:
    text = model(LN.replace("w)", "ww)"), x="float[N, 3, 4] x, float[4] ww")
    assert_rewrites(FuseLayerNorm(), text, ops={"LayerNormalization": 1})
    symbolic = model(
        LN.replace("w)", "ww)").replace(",b)", ",bb)"),
        x="float[N, 3, C] x, float[C] ww, float[C] bb",
        y="float[N, 3, C] y",
    )
    assert_rewrites(FuseLayerNorm(), symbolic, ops={"LayerNormalization": 1})


def test_no_scale_and_no_shape_to_make_one() -> None:
    text = model(CORE.replace("n=", "y="), x="float[N, 3, C] x", y="float[N, 3, C] y")
    assert_refuses(FuseLayerNorm(), text, "the shape of x is not known")


def test_opset_without_it() -> None:
    assert_refuses(FuseLayerNorm(), model(LN, opset=16), "at opset 16")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (LN.replace("Pow(d,two)", "Pow(d,three)"), "the exponent is 3.0, not 2"),
        (LN.replace("Pow(d,two)", "Pow(d,w)"), "the exponent is None"),
        (LN.replace("(q)", "(x)").replace("q=Pow(d,two)", ""), None),
        (LN.replace("[-1]>(x)", "[1]>(x)"), "not run over the last axes"),
        (LN.replace("[-1]>(x)", "[1,2]>(x)"), "different axes"),
        (LN.replace("[-1]", "[1]"), "not run over the last axes"),
        (LN.replace("Sub(x,m)", "Sub(m,x)"), "what is subtracted is not a mean"),
        (LN.replace(">(x)", ">(r)").replace("m=", "r=Relu(x) m="), "the mean is that of another tensor"),
        (LN.replace("Pow(d,two)", "Pow(x,two)"), "the variance is that of another tensor"),
        (LN.replace("Add(v,eps)", "Add(v,w)"), "epsilon (w) is not a constant scalar"),
        (LN.replace("Add(v,eps)", "Sub(v,eps)"), None),
        (LN.replace("Div(d,s)", "Div(s,d)"), None),
        (LN.replace("Div(d,s)", "Div(x,s)"), None),
        (LN.replace("Mul(n,w)", "Mul(n,w)").replace("Div(d,s)", "Mul(d,s)"), None),
        (LN.replace("s=Sqrt(e)", "s=Exp(e)"), None),
        (LN.replace("ReduceMean<axes=[-1]>(q)", "ReduceSum(q,last)"), None),
    ],
)
def test_look_alikes(body: str, reason: str | None) -> None:
    assert_refuses(FuseLayerNorm(), model(body), reason)


def test_dropped_axes() -> None:
    # Both means happen to broadcast, along another axis than the one they are taken over.
    body = LN.replace("<axes=[-1]>", "<axes=[-1], keepdims=0>")
    square = {"x": "float[4, 4] x", "y": "float[4, 4] y"}
    assert_refuses(FuseLayerNorm(), model(body, **square), "drops the axes")


def test_an_epsilon_of_higher_rank() -> None:
    body = LN.replace("eps", "z")
    fine = model(body, inits="float[1, 1, 1] z = {0.001}")
    assert_rewrites(FuseLayerNorm(), fine, ops={"LayerNormalization": 1})
    grows = model(body, y="float[1, N, 3, 4] y", inits="float[1, 1, 1, 1] z = {0.001}")
    assert_refuses(FuseLayerNorm(), grows, "rank 4 broadcasts x of rank 3")


@pytest.mark.parametrize("tensor", ["m", "d", "v", "s", "n", "g"])
def test_an_intermediate_result_is_needed_elsewhere(tensor: str) -> None:
    shape = "[N, 3, 4]" if tensor in "dng" else "[N, 3, 1]"
    y = f"float[N, 3, 4] y, float{shape} {tensor}"
    other = f"float[N, 3, 4] y, float{shape} z"
    if tensor in "ng":  # what comes after is left alone
        rest = {"Add": 1, "Mul": 1} if tensor == "n" else {"Add": 1}
        assert_rewrites(FuseLayerNorm(), model(LN, y=y), ops={"LayerNormalization": 1, **rest})
        return
    assert_refuses(FuseLayerNorm(), model(LN, y=y), f"output {tensor} is a graph output")
    assert_refuses(FuseLayerNorm(), model(f"{LN} z=Relu({tensor})", y=other), "has another reader")


def test_kept_nodes() -> None:
    assert_refuses(FuseLayerNorm(), model(LN), "kept", keep=["v"])
    assert_rewrites(FuseLayerNorm(), model(LN), ops={"LayerNormalization": 1, "Mul": 1, "Add": 1}, keep=["g"])


def retyped(text: str, dtype: int) -> onnx.ModelProto:
    """The model with another float type throughout."""
    proto = onnx.parser.parse_model(text)
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = dtype
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return proto


def test_other_types() -> None:
    half = retyped(model(LN), onnx.TensorProto.FLOAT16)
    assert_rewrites(FuseLayerNorm(), half, ops={"LayerNormalization": 1})
    assert_refuses(FuseLayerNorm(), retyped(model(LN), onnx.TensorProto.DOUBLE), "double")


def test_casts_around_half_precision() -> None:
    core = f"x=Cast<to=1>(h) {CORE} c=Cast<to=10>(n)"
    io = {"x": "float16[N, 3, 4] h, float16[4] u", "y": "float16[N, 3, 4] y"}
    done = assert_rewrites(FuseLayerNorm(), model(f"{core} y=Mul(c,u)", **io), ops={"LayerNormalization": 1})
    assert done.proto.graph.node[0].input[0] == "h"
    # Without the cast back the operator stays in float.
    body = f"x=Cast<to=1>(h) {LN}"
    io["y"] = "float[N, 3, 4] y"
    assert_rewrites(FuseLayerNorm(), model(body, **io), ops={"LayerNormalization": 1, "Cast": 1})
    # Parameters applied in float, before the cast, stay in float too.
    body = f"x=Cast<to=1>(h) {LN.replace('y=', 'o=')} y=Cast<to=10>(o)"
    io["y"] = "float16[N, 3, 4] y"
    assert_rewrites(FuseLayerNorm(), model(body, **io), ops={"LayerNormalization": 1, "Cast": 2})


def test_in_a_loop_body_and_a_branch() -> None:
    body = LN.replace("y=", "r=")
    branch = f"y = If(c) <then_branch = t () => (float[N, 3, 4] r) {{ {body} }}, "
    branch += "else_branch = f () => (float[N, 3, 4] o) { o = Relu(x) }>"
    text = model(branch, x="float[N, 3, 4] x, bool c")
    assert_rewrites(FuseLayerNorm(), text, ops={"If": 1, "LayerNormalization": 1, "Relu": 1})
    loop = "y = Loop(trips, c, x0) <body = t (int64 i, bool ci, float[N, 3, 4] x) => "
    loop += f"(bool co, float[N, 3, 4] r) {{ co = Identity(ci) {body} }}>"
    text = model(loop, x="float[N, 3, 4] x0, bool c", inits="int64 trips = {2}")
    assert_rewrites(FuseLayerNorm(), text, ops={"Loop": 1, "Identity": 1, "LayerNormalization": 1})


def test_nothing_to_normalize() -> None:
    """Runtimes refuse the operator on an axis of size 0, and compute its parts."""
    before = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 0] x) => (float[N, 0] y) <float eps = {{0.00001}}> {{
          {MEAN} q=Mul(d,d) v=ReduceMean<axes=[-1]>(q) e=Add(v,eps) s=Sqrt(e) y=Div(d,s)
        }}
    """
    assert_refuses(FuseLayerNorm(), before, "is empty")
