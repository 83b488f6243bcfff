"""fuse-mish: x * tanh(softplus(x)), with softplus as an operator or spelled out."""

from __future__ import annotations

import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.fusion.fuse_mish import FuseMish

MISH = "p=Softplus(x) t=Tanh(p) y=Mul(x,t)"


def model(body: str, opset: int = 18, outputs: str = "float[N, 4] y", inits: str = "float one = {1}") -> str:
    imports = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    return f"{imports} g (float[N, 4] x) => ({outputs}) <{inits}> {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        MISH,
        "p=Softplus(x) t=Tanh(p) y=Mul(t,x)",
        "e=Exp(x) a=Add(e,one) p=Log(a) t=Tanh(p) y=Mul(x,t)",
        "e=Exp(x) a=Add(one,e) p=Log(a) t=Tanh(p) y=Mul(t,x)",
    ],
)
def test_mish(body: str) -> None:
    assert_rewrites(FuseMish(), model(body), ops={"Mish": 1})


def test_opset_without_mish() -> None:
    assert_refuses(FuseMish(), model(MISH, opset=17), "no Mish")


@pytest.mark.parametrize(
    "body",
    [
        "r=Relu(x) p=Softplus(r) t=Tanh(p) y=Mul(x,t)",
        "p=Softplus(x) t=Tanh(p) y=Add(x,t)",
        "e=Exp(x) a=Add(e,two) p=Log(a) t=Tanh(p) y=Mul(x,t)",
        "e=Exp(x) a=Sub(e,one) p=Log(a) t=Tanh(p) y=Mul(x,t)",
    ],
)
def test_look_alikes(body: str) -> None:
    assert_refuses(FuseMish(), model(body, inits="float one = {1}, float two = {2}"))


def test_a_one_that_is_no_scalar_or_broadcasts() -> None:
    body = "e=Exp(x) a=Add(e,v) p=Log(a) t=Tanh(p) y=Mul(x,t)"
    ones = "float[4] v = {1, 1, 1, 1}"
    assert_refuses(FuseMish(), model(body, inits=ones), "not a scalar")
    grows = model(body, outputs="float[1, N, 4] y", inits="float[1, 1, 1] v = {1}")
    assert_refuses(FuseMish(), grows, "broadcasts x")


@pytest.mark.parametrize("tensor", ["p", "t"])
def test_an_intermediate_result_is_needed_elsewhere(tensor: str) -> None:
    outputs = f"float[N, 4] y, float[N, 4] {tensor}"
    assert_refuses(FuseMish(), model(MISH, outputs=outputs), "is a graph output")
    outputs = "float[N, 4] y, float[N, 4] z"
    assert_refuses(FuseMish(), model(f"{MISH} z=Relu({tensor})", outputs=outputs), "has another reader")


def test_in_a_branch() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[N, 4] x, bool b) => (float[N, 4] y) {
        y = If(b) <then_branch = t () => (float[N, 4] r) { p=Softplus(x) t=Tanh(p) r=Mul(x,t) },
                   else_branch = f () => (float[N, 4] q) { q=Relu(x) }> }"""
    assert_rewrites(FuseMish(), text, ops={"If": 1, "Mish": 1, "Relu": 1})
