"""fuse-gelu: every grouping of the three forms, what looks alike and is not, shared and nested regions."""

from __future__ import annotations

import math
import re

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from graphopt.graph.rewriter import Rewriter
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.model import Model
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion._algebra import polynomial
from graphopt_passes.fusion._region import Region
from graphopt_passes.fusion.fuse_gelu import FuseGelu

S2, R2 = repr(float(np.float32(math.sqrt(2)))), repr(float(np.float32(math.sqrt(0.5))))
SP = repr(float(np.float32(math.sqrt(2 / math.pi))))


def model(
    body: str,
    opset: int = 20,
    io: str = "(float[N, 4] x) => (float[N, 4] y)",
    more: str = "",
    inits: str = "",
) -> str:
    constants = {
        "half": "0.5", "one": "1", "two": "2", "three": "3", "mhalf": "-0.5",
        "s2": S2, "r2": R2, "mr2": f"-{R2}", "sp": SP, "c": "0.044715", "q": "1.702",
        "sp2": repr(2 * float(np.float32(math.sqrt(2 / math.pi)))),
    }  # fmt: skip
    used = set(re.findall(r"\w+", body))
    inits = ", ".join(
        [f"float {k} = {{{v}}}" for k, v in constants.items() if k in used] + [inits] * bool(inits)
    )
    return f'<ir_version: 8, opset_import: ["" : {opset}]{more}> g {io} <{inits}> {{ {body} }}'


ERF = {
    "x*0.5 * (1+erf)": "a=Div(x,s2) e=Erf(a) p=Add(e,one) h=Mul(x,half) y=Mul(h,p)",
    "0.5 * (x*(1+erf))": "a=Mul(x,r2) e=Erf(a) p=Add(one,e) h=Mul(x,p) y=Mul(half,h)",
    "(x*(1+erf))*0.5": "a=Mul(r2,x) e=Erf(a) p=Add(e,one) h=Mul(p,x) y=Mul(h,half)",
    "x * (0.5*(1+erf))": "a=Div(x,s2) e=Erf(a) p=Add(e,one) h=Mul(p,half) y=Mul(x,h)",
    "(x*(1+erf)) / 2": "a=Div(x,s2) e=Erf(a) p=Add(e,one) h=Mul(x,p) y=Div(h,two)",
    "x * (0.5 + 0.5*erf)": "a=Div(x,s2) e=Erf(a) f=Mul(e,half) p=Add(f,half) y=Mul(x,p)",
    "x*0.5 * (1 - erf(-x))": "a=Mul(x,mr2) e=Erf(a) p=Sub(one,e) h=Mul(x,half) y=Mul(h,p)",
    "x*0.5 * (1 - erf(Neg))": "n=Neg(x) a=Div(n,s2) e=Erf(a) p=Sub(one,e) h=Mul(x,half) y=Mul(h,p)",
}
HALF_GATE = "t=Tanh(u) p=Add(t,one) h=Mul(x,half) y=Mul(h,p)"
TANH = {
    "x + c*x^3": f"k=Pow(x,three) m=Mul(k,c) s=Add(x,m) u=Mul(s,sp) {HALF_GATE}",
    "x*x*x": f"k=Mul(x,x) l=Mul(x,k) m=Mul(c,l) s=Add(m,x) u=Mul(sp,s) {HALF_GATE}",
    "x*(1 + c*x*x)": f"m=Mul(x,c) k=Mul(m,x) s=Add(one,k) v=Mul(x,sp) u=Mul(v,s) {HALF_GATE}",
    "pow 2": f"k=Pow(x,two) m=Mul(k,c) s=Add(m,one) l=Mul(s,x) u=Mul(l,sp) {HALF_GATE}",
    "sigmoid": "k=Pow(x,three) m=Mul(k,c) s=Add(x,m) u=Mul(s,sp2) t=Sigmoid(u) y=Mul(x,t)",
}


@pytest.mark.parametrize("body", ERF.values(), ids=ERF)
def test_erf_form(body: str) -> None:
    done = assert_rewrites(FuseGelu(), model(body), ops={"Gelu": 1})
    assert not done.proto.graph.node[0].attribute
    assert not done.proto.graph.initializer


@pytest.mark.parametrize("body", TANH.values(), ids=TANH)
def test_tanh_form(body: str) -> None:
    done = assert_rewrites(FuseGelu(), model(body), ops={"Gelu": 1})
    assert done.proto.graph.node[0].attribute[0].s == b"tanh"


@pytest.mark.parametrize(
    ("body", "op"),
    [
        (ERF["x*0.5 * (1+erf)"], "Gelu"),
        (TANH["x + c*x^3"], "FastGelu"),
        ("u=Mul(x,q) s=Sigmoid(u) y=Mul(x,s)", "QuickGelu"),
    ],
)
def test_contrib_operators_only_under_a_target_that_has_them(body: str, op: str) -> None:
    before = model(body, opset=13)
    done = assert_rewrites(FuseGelu(), before, ops={f"com.microsoft::{op}": 1}, target="ort-cpu")
    assert {o.domain: o.version for o in done.proto.opset_import} == {"": 13, "com.microsoft": 1}
    assert_refuses(FuseGelu(), before, "at opset 13 and target portable")
    assert_refuses(FuseGelu(), before, "target tensorrt", target="tensorrt")


def test_standard_operator_is_preferred_under_every_target() -> None:
    assert_rewrites(FuseGelu(), model(ERF["x*0.5 * (1+erf)"]), ops={"Gelu": 1}, target="ort-cpu")


def test_quick_gelu_has_no_standard_operator() -> None:
    assert_refuses(FuseGelu(), model("u=Mul(x,q) s=Sigmoid(u) y=Mul(x,s)"), "sigmoid form")


def retyped(text: str, dtype: int) -> onnx.ModelProto:
    """The model with another float type throughout."""
    proto = onnx.parser.parse_model(text)
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = dtype
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return proto


@pytest.mark.parametrize("body", [ERF["x*0.5 * (1+erf)"], TANH["x + c*x^3"]])
def test_half_precision(body: str) -> None:
    assert_rewrites(FuseGelu(), retyped(model(body), onnx.TensorProto.FLOAT16), ops={"Gelu": 1})


def test_bfloat16_and_double() -> None:
    erf = model(ERF["x*0.5 * (1+erf)"])
    # Nothing here runs Erf in these types, so there are no numbers to compare.
    done = apply(FuseGelu(), retyped(erf, onnx.TensorProto.BFLOAT16))
    assert done.ops == {"Gelu": 1}
    assert_refuses(FuseGelu(), retyped(erf, onnx.TensorProto.DOUBLE))


@pytest.mark.parametrize(
    "body",
    [
        # wrong constants
        "a=Div(x,two) e=Erf(a) p=Add(e,one) h=Mul(x,half) y=Mul(h,p)",
        "a=Div(x,s2) e=Erf(a) p=Add(e,two) h=Mul(x,half) y=Mul(h,p)",
        "a=Div(x,s2) e=Erf(a) p=Add(e,one) h=Mul(x,two) y=Mul(h,p)",
        "a=Div(x,s2) e=Erf(a) p=Sub(e,one) h=Mul(x,half) y=Mul(h,p)",
        "a=Div(x,s2) e=Erf(a) p=Sub(one,e) h=Mul(x,half) y=Mul(h,p)",
        "a=Div(s2,x) e=Erf(a) p=Add(e,one) h=Mul(x,half) y=Mul(h,p)",
        "a=Div(x,s2) e=Erf(a) p=Add(e,one) h=Div(half,x) y=Mul(h,p)",
        "a=Div(x,s2) e=Erf(a) p=Add(e,one) h=Mul(x,half) y=Div(h,p)",
        # another tensor in one of the places
        "z=Relu(x) a=Div(z,s2) e=Erf(a) p=Add(e,one) h=Mul(x,half) y=Mul(h,p)",
        # tanh of other polynomials
        "k=Pow(x,two) m=Mul(k,c) s=Add(x,m) u=Mul(s,sp) t=Tanh(u) p=Add(t,one) h=Mul(x,half) y=Mul(h,p)",
        "k=Pow(three,x) m=Mul(k,c) s=Add(x,m) u=Mul(s,sp) t=Tanh(u) p=Add(t,one) h=Mul(x,half) y=Mul(h,p)",
        "k=Pow(x,three) m=Mul(k,c) s=Sub(x,m) u=Mul(s,sp) t=Tanh(u) p=Add(t,one) h=Mul(x,half) y=Mul(h,p)",
    ],
)
def test_look_alikes(body: str) -> None:
    assert_refuses(FuseGelu(), model(body), target="ort-cpu")


def test_a_constant_that_is_off_by_more_than_rounding() -> None:
    assert_refuses(FuseGelu(), model(ERF["x*0.5 * (1+erf)"]).replace(S2, "1.4142"))


def test_a_constant_that_varies_or_can_be_overridden() -> None:
    body = "a=Div(x,s2) e=Erf(a) p=Add(e,one) h=Mul(x,v) y=Mul(h,p)"
    assert_refuses(FuseGelu(), model(body, inits="float[4] v = {0.5, 0.5, 0.5, 0.4}"))
    io = "(float[N, 4] x, float v) => (float[N, 4] y)"
    assert_refuses(FuseGelu(), model(body, inits="float v = {0.5}", io=io))


def test_constants_of_higher_rank() -> None:
    body = "a=Div(x,v) e=Erf(a) p=Add(e,one) h=Mul(x,half) y=Mul(h,p)"
    fine = model(body, inits=f"float[1,1] v = {{{S2}}}")
    assert_rewrites(FuseGelu(), fine, ops={"Gelu": 1})
    grows = model(body, inits=f"float[1,1,1] v = {{{S2}}}", io="(float[N, 4] x) => (float[1, N, 4] y)")
    assert_refuses(FuseGelu(), grows, "rank 3 broadcasts x of rank 2")


def test_constant_nodes_count() -> None:
    body = "k=Constant<value = float {0.5}>() " + ERF["x*0.5 * (1+erf)"].replace("half", "k")
    assert_rewrites(FuseGelu(), model(body), ops={"Gelu": 1})


@pytest.mark.parametrize("tensor", ["e", "p", "h", "a"])
def test_an_intermediate_result_is_needed_elsewhere(tensor: str) -> None:
    body = ERF["x*0.5 * (1+erf)"]
    io = f"(float[N, 4] x) => (float[N, 4] y, float[N, 4] {tensor})"
    assert_refuses(FuseGelu(), model(body, io=io), f"output {tensor} is a graph output")
    io = "(float[N, 4] x) => (float[N, 4] y, float[N, 4] z)"
    assert_refuses(FuseGelu(), model(f"{body} z=Relu({tensor})", io=io), f"{tensor} has another reader")


def test_kept_nodes() -> None:
    assert_refuses(FuseGelu(), model(ERF["x*0.5 * (1+erf)"]), "kept", keep=["e"])
    assert_refuses(FuseGelu(), model(ERF["x*0.5 * (1+erf)"]), "kept", keep=["y"])


def test_x_may_be_a_product_itself_and_the_result_a_factor() -> None:
    body = ERF["x*0.5 * (1+erf)"].replace("x", "w").replace("y=", "g=")
    io = "(float[N, 4] x, float[N, 4] z) => (float[N, 4] y)"
    before = model(f"w=Mul(x,z) {body} y=Mul(g,z)", io=io)
    assert_rewrites(FuseGelu(), before, ops={"Mul": 2, "Gelu": 1})


def test_x_may_be_scaled_before() -> None:
    body = "w=Mul(x,three) " + ERF["(x*(1+erf))*0.5"].replace("x", "w")
    assert_rewrites(FuseGelu(), model(body), ops={"Mul": 1, "Gelu": 1})


def test_in_a_branch_and_in_a_function() -> None:
    body = ERF["x*0.5 * (1+erf)"].replace("y=", "r=")
    io = "(float[N, 4] x, bool b) => (float[N, 4] y)"
    text = f"y = If(b) <then_branch = t () => (float[N, 4] r) {{ {body} }}, "
    text += "else_branch = f () => (float[N, 4] s) { s = Relu(x) }>"
    assert_rewrites(FuseGelu(), model(text, io=io), ops={"If": 1, "Gelu": 1, "Relu": 1})
    call = f"""<ir_version: 8, opset_import: ["" : 20, "local" : 1]> g (float[N, 4] x) => (float[N, 4] y)
        {{ y = local.f(x) }} <domain: "local", opset_import: ["" : 20]> f (x) => (y) {{
        half = Constant<value = float {{0.5}}>() one = Constant<value = float {{1.0}}>()
        s2 = Constant<value = float {{{S2}}}>() {ERF["x*0.5 * (1+erf)"]} }}"""
    # What type x has is known from the constants that it meets.
    assert_rewrites(FuseGelu(), call, ops={"local::f": 1, "Gelu": 1})


def test_a_region_does_not_reach_into_the_body_around() -> None:
    body = "a=Div(x,s2) e=Erf(a) y = If(b) <then_branch = t () => (float[N, 4] r) "
    body += (
        "{ p=Add(e,one) h=Mul(x,half) r=Mul(h,p) }, else_branch = f () => (float[N, 4] s) { s = Relu(x) }>"
    )
    assert_refuses(FuseGelu(), model(body, io="(float[N, 4] x, bool b) => (float[N, 4] y)"))


def test_a_call_of_a_function_named_erf_is_no_erf() -> None:
    text = model("a=Div(x,s2) e=local.Erf(a) p=Add(e,one) h=Mul(x,half) y=Mul(h,p)")
    text = text.replace('["" : 20]', '["" : 20, "local" : 1]')
    text += '<domain: "local", opset_import: ["" : 20]> Erf (a) => (b) { b = Relu(a) }'
    assert_refuses(FuseGelu(), text)


def test_polynomials() -> None:
    text = model("a=Mul(x,two) b=Sub(a,one) k=Pow(b,two) l=Div(k,two) m=Neg(l) y=Add(m,x)")
    loaded = Model.load(onnx.parser.parse_model(text))
    graph = Rewriter(GraphState(loaded, infer(loaded)), loaded.graph)
    region = Region(graph)
    # x - (2x - 1)^2 / 2
    assert polynomial(region, graph.outputs[0], graph.inputs[0]) == {2: -2.0, 1: 3.0, 0: -0.5}
    assert len(region.nodes) == 6
