"""fuse-swish: x * sigmoid(alpha * x) at opset 24 and under targets with QuickGelu."""

from __future__ import annotations

import pytest

from graphopt.testing import assert_refuses, assert_rewrites
from graphopt_passes.fusion.fuse_swish import FuseSwish


def model(body: str, opset: int = 24, outputs: str = "float[N, 4] y", inits: str = "float a = {1.5}") -> str:
    # IR 10: what goes with these opsets.
    imports = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    return f"{imports} g (float[N, 4] x) => ({outputs}) <{inits}> {{ {body} }}"


SILU = "s=Sigmoid(x) y=Mul(x,s)"


@pytest.mark.parametrize(
    ("body", "alpha"),
    [
        (SILU, 1.0),
        ("s=Sigmoid(x) y=Mul(s,x)", 1.0),
        ("u=Mul(x,a) s=Sigmoid(u) y=Mul(x,s)", 1.5),
        ("u=Mul(a,x) n=Neg(u) s=Sigmoid(n) y=Mul(x,s)", -1.5),
    ],
)
def test_swish(body: str, alpha: float) -> None:
    done = assert_rewrites(FuseSwish(), model(body), ops={"Swish": 1})
    assert done.proto.graph.node[0].attribute[0].f == pytest.approx(alpha)


def test_quick_gelu_under_a_target_that_has_it() -> None:
    done = assert_rewrites(
        FuseSwish(), model(SILU, opset=17), ops={"com.microsoft::QuickGelu": 1}, target="ort-cpu"
    )
    assert done.proto.graph.node[0].attribute[0].f == 1.0


@pytest.mark.parametrize("opset", [23, 25])
def test_opsets_at_which_no_runtime_has_it(opset: int) -> None:
    assert_refuses(FuseSwish(), model(SILU, opset=opset))


@pytest.mark.parametrize(
    "body",
    [
        "r=Relu(x) s=Sigmoid(r) y=Mul(x,s)",
        "u=Add(x,a) s=Sigmoid(u) y=Mul(x,s)",
        "s=Sigmoid(x) y=Div(x,s)",
        "s=Tanh(x) y=Mul(x,s)",
    ],
)
def test_look_alikes(body: str) -> None:
    assert_refuses(FuseSwish(), model(body))


def test_a_scaled_swish_is_fused_up_to_the_scale() -> None:
    assert_rewrites(FuseSwish(), model("s=Sigmoid(x) t=Mul(x,s) y=Mul(t,a)"), ops={"Swish": 1, "Mul": 1})


def test_an_intermediate_result_is_needed_elsewhere() -> None:
    both = "float[N, 4] y, float[N, 4] {}"
    assert_refuses(FuseSwish(), model(SILU, outputs=both.format("s")), "output s is a graph output")
    assert_refuses(FuseSwish(), model(SILU + " z=Relu(s)", outputs=both.format("z")), "s has another reader")
    assert_refuses(FuseSwish(), model(SILU), "kept", keep=["s"])


def test_a_constant_of_higher_rank() -> None:
    body = "u=Mul(x,v) s=Sigmoid(u) y=Mul(x,s)"
    text = model(body, outputs="float[1, N, 4] y", inits="float[1, 1, 1] v = {1.5}")
    assert_refuses(FuseSwish(), text, "rank 3 broadcasts x")


def test_in_a_branch() -> None:
    text = """<ir_version: 10, opset_import: ["" : 24]> g (float[N, 4] x, bool b) => (float[N, 4] y) {
        y = If(b) <then_branch = t () => (float[N, 4] r) { s=Sigmoid(x) r=Mul(x,s) },
                   else_branch = f () => (float[N, 4] q) { q=Relu(x) }> }"""
    assert_rewrites(FuseSwish(), text, ops={"If": 1, "Swish": 1, "Relu": 1})
