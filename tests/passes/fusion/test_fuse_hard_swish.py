"""fuse-hard-swish: groupings, HardSigmoid alone, opsets, look-alikes."""

from __future__ import annotations

import re

import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.fusion.fuse_hard_swish import FuseHardSwish

CONSTANTS = {
    "zero": 0.0,
    "one": 1.0,
    "three": 3.0,
    "six": 6.0,
    "sixth": 1.0 / 6.0,
    "half": 0.5,
    "mthree": -3.0,
}


def model(
    body: str, opset: int = 17, y: str = "float[N, 4] y", inits: str = "", x: str = "float[N, 4] x"
) -> str:
    used = set(re.findall(r"\w+", body))
    declared = ", ".join(
        [f"float {k} = {{{v}}}" for k, v in CONSTANTS.items() if k in used] + [inits] * bool(inits)
    )
    return f'<ir_version: 8, opset_import: ["" : {opset}]> g ({x}) => ({y}) <{declared}> {{ {body} }}'


GATE = "a=Add(x,three) c=Clip(a,zero,six)"
SWISH = f"{GATE} m=Mul(x,c) y=Div(m,six)"


@pytest.mark.parametrize(
    "body",
    [
        SWISH,
        f"{GATE} m=Mul(c,x) y=Mul(sixth,m)",
        f"{GATE} d=Div(c,six) y=Mul(x,d)",
        f"{GATE} d=Div(x,six) y=Mul(c,d)",
        "a=Sub(x,mthree) c=Clip(a,zero,six) d=Mul(c,sixth) y=Mul(d,x)",
        "b=Mul(x,sixth) a=Add(half,b) c=Clip(a,zero,one) y=Mul(x,c)",
        "h=HardSigmoid<alpha=0.16666667, beta=0.5>(x) y=Mul(x,h)",
    ],
)
def test_hard_swish(body: str) -> None:
    done = assert_rewrites(FuseHardSwish(), model(body), ops={"HardSwish": 1})
    assert not done.proto.graph.initializer


@pytest.mark.parametrize(
    "body",
    [
        f"{GATE} y=Div(c,six)",
        f"{GATE} y=Mul(sixth,c)",
        "b=Div(x,six) a=Add(b,half) y=Clip(a,zero,one)",
    ],
)
def test_hard_sigmoid(body: str) -> None:
    done = assert_rewrites(FuseHardSwish(), model(body), ops={"HardSigmoid": 1})
    found = {a.name: a.f for a in done.proto.graph.node[0].attribute}
    assert found == {"alpha": pytest.approx(1 / 6), "beta": 0.5}


def test_clip_by_attributes_and_opset_without_hard_swish() -> None:
    body = SWISH.replace("Clip(a,zero,six)", "Clip<min=0.0, max=6.0>(a)")
    assert_refuses(FuseHardSwish(), model(body, opset=10), "no HardSwish")
    body = "a=Add(x,three) c=Clip<min=0.0, max=6.0>(a) y=Div(c,six)"
    assert_rewrites(FuseHardSwish(), model(body, opset=10), ops={"HardSigmoid": 1})


@pytest.mark.parametrize(
    "body",
    [
        SWISH.replace("Add(x,three)", "Add(x,six)"),
        SWISH.replace("zero,six", "one,six"),
        SWISH.replace("zero,six", "zero,three"),
        SWISH.replace("zero,six", "zero"),
        SWISH.replace("Div(m,six)", "Div(m,three)"),
        SWISH.replace("Div(m,six)", "Div(six,m)"),
        SWISH.replace("Mul(x,c)", "Div(x,c)"),
        SWISH.replace("a=Add(x,three)", "r=Relu(x) a=Add(r,three)"),
        "h=HardSigmoid<alpha=0.2, beta=0.5>(x) y=Mul(x,h)",
        "h=HardSigmoid<alpha=0.16666667, beta=0.5>(x) r=Relu(x) y=Mul(r,h)",
        "y=Clip(x,zero,one)",
    ],
)
def test_look_alikes(body: str) -> None:
    assert_refuses(FuseHardSwish(), model(body))


@pytest.mark.parametrize("tensor", ["a", "c", "m"])
def test_an_intermediate_result_is_needed_elsewhere(tensor: str) -> None:
    text = model(SWISH, y=f"float[N, 4] y, float[N, 4] {tensor}")
    assert_refuses(FuseHardSwish(), text, f"{tensor} is a graph output")
    text = model(f"{SWISH} z=Relu({tensor})", y="float[N, 4] y, float[N, 4] z")
    assert_refuses(FuseHardSwish(), text, f"{tensor} has another reader")


def test_a_constant_of_higher_rank() -> None:
    body = SWISH.replace("Add(x,three)", "Add(x,v)")
    text = model(body, y="float[1, N, 4] y", inits="float[1, 1, 1] v = {3}")
    assert_refuses(FuseHardSwish(), text, "rank 3 broadcasts x")


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
    half = retyped(model(SWISH), onnx.TensorProto.FLOAT16)
    assert_rewrites(FuseHardSwish(), half, ops={"HardSwish": 1})
    assert_refuses(FuseHardSwish(), retyped(model(SWISH), onnx.TensorProto.DOUBLE), "no HardSwish")


def test_in_a_branch() -> None:
    branch = f"y = If(b) <then_branch = t () => (float[N, 4] r) {{ {SWISH.replace('y=', 'r=')} }}, "
    branch += "else_branch = f () => (float[N, 4] q) { q=Relu(x) }>"
    text = model(branch, x="float[N, 4] x, bool b")
    assert_rewrites(FuseHardSwish(), text, ops={"If": 1, "HardSwish": 1, "Relu": 1})
