"""fuse-rms-norm: spellings, casts, the standard operator and ONNX Runtime's own, look-alikes."""

from __future__ import annotations

import re

import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from graphopt.model import Model
from graphopt.pipeline.manager import Settings, execute
from graphopt.pipeline.targets import get_target
from graphopt.testing import Numerics, assert_refuses, assert_rewrites, assert_same_numbers, count_ops
from graphopt_passes.fusion.fuse_rms_norm import FuseRmsNorm

CONSTANTS = {
    "eps": "float eps = {0.00001}",
    "one": "float one = {1}",
    "two": "float two = {2}",
    "three": "float three = {3}",
    "half": "float half = {0.5}",
    "mhalf": "float mhalf = {-0.5}",
    "w": "float[4] w = {1, 2, 3, 4}",
    "last": "int64[1] last = {-1}",
}
SQUARE = "q=Pow(x,two) v=ReduceMean(q,last) e=Add(v,eps)"
CORE = f"{SQUARE} s=Sqrt(e) n=Div(x,s)"
RMS = f"{CORE} y=Mul(n,w)"


def model(
    body: str, opset: int = 23, x: str = "float[N, 3, 4] x", y: str = "float[N, 3, 4] y", inits: str = ""
) -> str:
    used = set(re.findall(r"\w+", body))
    declared = ", ".join([v for k, v in CONSTANTS.items() if k in used] + [inits] * bool(inits))
    return f'<ir_version: 10, opset_import: ["" : {opset}]> g ({x}) => ({y}) <{declared}> {{ {body} }}'


@pytest.mark.parametrize(
    "body",
    [
        RMS,
        f"{CORE} y=Mul(w,n)",
        "q=Mul(x,x) v=ReduceMean(q,last) e=Add(eps,v) s=Sqrt(e) n=Div(x,s) y=Mul(n,w)",
        f"{SQUARE} s=Sqrt(e) i=Reciprocal(s) n=Mul(x,i) y=Mul(w,n)",
        f"{SQUARE} s=Sqrt(e) i=Div(one,s) n=Mul(i,x) y=Mul(w,n)",
        f"{SQUARE} i=Pow(e,mhalf) n=Mul(x,i) y=Mul(w,n)",
        f"{SQUARE} s=Pow(e,half) n=Div(x,s) y=Mul(w,n)",
        CORE.replace("n=", "y="),
    ],
)
def test_spellings(body: str) -> None:
    done = assert_rewrites(FuseRmsNorm(), model(body), ops={"RMSNormalization": 1})
    found = {a.name: onnx.helper.get_attribute_value(a) for a in done.proto.graph.node[0].attribute}
    assert found == {"axis": -1, "epsilon": pytest.approx(1e-5)}


def test_what_follows_and_is_no_scale_stays() -> None:
    assert_rewrites(FuseRmsNorm(), model(f"{CORE} y=Mul(n,x)"), ops={"RMSNormalization": 1, "Mul": 1})
    assert_rewrites(FuseRmsNorm(), model(f"{CORE} y=Add(n,w)"), ops={"RMSNormalization": 1, "Add": 1})


def test_below_opset_23_there_is_no_standard_operator() -> None:
    assert_refuses(FuseRmsNorm(), model(RMS, opset=22), "at opset 22 and target portable")


@pytest.mark.parametrize("opset", [13, 20])
def test_onnx_runtimes_own_operator(opset: int) -> None:
    text = model(RMS, opset=opset)
    if opset < 18:
        text = text.replace("ReduceMean(q,last)", "ReduceMean<axes=[-1]>(q)")
    before = onnx.parser.parse_model(text)
    loaded = Model.load(before)
    done = execute(loaded, [FuseRmsNorm()], Settings(get_target("ort-cpu")))
    assert count_ops(done.model) == {"SimplifiedLayerNormalization": 1}
    assert_same_numbers(before, done.model.to_proto(weights="inline"), Numerics.CLOSE)


def test_a_layer_normalization_is_left_to_onnx_runtime() -> None:
    body = f"m=ReduceMean<axes=[-1]>(z) x=Sub(z,m) {RMS}".replace(
        "ReduceMean(q,last)", "ReduceMean<axes=[-1]>(q)"
    )
    text = model(body, opset=13, x="float[N, 3, 4] z")
    assert_refuses(FuseRmsNorm(), text, "which onnxruntime fuses whole", target="ort-cpu")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (RMS.replace("Pow(x,two)", "Pow(x,three)"), "the exponent is 3.0, not 2"),
        (RMS.replace("Add(v,eps)", "Add(v,w)"), "epsilon (w) is not a constant scalar"),
        (RMS.replace("Div(x,s)", "Div(s,x)"), None),
        (RMS.replace("Div(x,s)", "Mul(x,s)"), None),
        (RMS.replace("Div(x,s)", "Div(r,s)").replace("q=", "r=Relu(x) q="), None),
        (RMS.replace("ReduceMean", "ReduceSum"), None),
        (RMS.replace("(q,last)", "<noop_with_empty_axes=1>(q)"), "reduces nothing"),
    ],
)
def test_look_alikes(body: str, reason: str | None) -> None:
    assert_refuses(FuseRmsNorm(), model(body), reason)


def test_all_axes() -> None:
    body = RMS.replace("(q,last)", "(q)")
    text = model(body, x="float[2, 3, 4] x", y="float[2, 3, 4] y")
    done = assert_rewrites(FuseRmsNorm(), text, ops={"RMSNormalization": 1})
    # w is as good a scale when it is repeated along the other axes.
    assert [list(t.dims) for t in done.proto.graph.initializer] == [[2, 3, 4]]


def test_a_middle_axis() -> None:
    text = model(RMS.replace("last", "a"), inits="int64[1] a = {1}")
    assert_refuses(FuseRmsNorm(), text, "not run over the last axes")


@pytest.mark.parametrize("tensor", ["q", "s", "v"])
def test_an_intermediate_result_is_needed_elsewhere(tensor: str) -> None:
    shape = "[N, 3, 4]" if tensor == "q" else "[N, 3, 1]"
    assert_refuses(FuseRmsNorm(), model(RMS, y=f"float[N, 3, 4] y, float{shape} {tensor}"), "graph output")
    text = model(f"{RMS} z=Relu({tensor})", y=f"float[N, 3, 4] y, float{shape} z")
    assert_refuses(FuseRmsNorm(), text, "has another reader")


def test_casts_around_half_precision() -> None:
    body = f"x=Cast<to=1>(h) {CORE} c=Cast<to=10>(n) y=Mul(u,c)"
    text = model(body, x="float16[N, 3, 4] h, float16[4] u", y="float16[N, 3, 4] y")
    done = assert_rewrites(FuseRmsNorm(), text, ops={"RMSNormalization": 1})
    assert list(done.proto.graph.node[0].input) == ["h", "u"]
    # The cast is read by others as well: it stays, the operator still starts before it.
    body += " z=Relu(x)"
    text = model(body, x="float16[N, 3, 4] h, float16[4] u", y="float16[N, 3, 4] y, float[N, 3, 4] z")
    done = assert_rewrites(FuseRmsNorm(), text, ops={"RMSNormalization": 1, "Cast": 1, "Relu": 1})


def test_double_is_left_alone() -> None:
    proto = onnx.parser.parse_model(model(RMS))
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for t in proto.graph.initializer:
        if t.data_type == onnx.TensorProto.FLOAT:
            t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t).astype("f8"), t.name))
    assert_refuses(FuseRmsNorm(), proto, "double")


def test_in_a_branch() -> None:
    branch = f"y = If(c) <then_branch = t () => (float[N, 3, 4] r) {{ {RMS.replace('y=', 'r=')} }}, "
    branch += "else_branch = f () => (float[N, 3, 4] o) { o = Relu(x) }>"
    text = model(branch, x="float[N, 3, 4] x, bool c")
    assert_rewrites(FuseRmsNorm(), text, ops={"If": 1, "RMSNormalization": 1, "Relu": 1})
