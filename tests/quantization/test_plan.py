"""Plans: a pure function of graph, profile and selection."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from weight_models import build

from graphopt.passkit import Numerics, Pass, PassContext, Rewriter
from graphopt.quantization.plan import Plan, Selection, make_plan
from graphopt.quantization.profiles import get_profile
from graphopt.testing import apply

CONV = "Conv<pads=[1,1,1,1]>"
WEIGHTS: dict[str, Any] = {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3)}


@dataclass(frozen=True)
class Planning(Pass):
    """Makes a plan and changes nothing."""

    name: ClassVar[str] = "planning"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    options: dict[str, Any] = field(default_factory=dict, compare=False)
    plans: list[Plan] = field(default_factory=list, compare=False)

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        if graph.is_main:
            self.plans.append(make_plan(graph, get_profile(ctx.target.name), **self.options))


def plan_of(
    body: str, target: str = "ort-cpu", options: dict[str, Any] | None = None, **weights: Any
) -> Plan:
    item = Planning(options or {})
    apply(item, build(body, opset=17, ir=8, **weights), target=target)
    (plan,) = item.plans
    return plan


def image(nodes: str) -> str:
    return f"(float[N, 4, 6, 6] x) => (float[N, 4, h, i] y) {{ {nodes} }}"


def summary(plan: Plan) -> list[tuple[str, tuple[str, ...]]]:
    return [(n.op, tuple(t.name for t in p.outputs)) for n, p in plan.nodes.items()]


def grids(plan: Plan) -> dict[str, int]:
    numbers = {g: i for i, g in enumerate(dict.fromkeys(plan.groups.values()))}
    return {t.name: numbers[g] for t, g in plan.groups.items()}


RESIDUAL = f"a = {CONV}(x, w) r = Relu(a) c = {CONV}(r, v) s = Add(c, r) t = Relu(s) y = {CONV}(t, w)"


def test_residual() -> None:
    plan = plan_of(image(RESIDUAL), **WEIGHTS)
    assert summary(plan) == [("Conv", ("r",)), ("Conv", ("c",)), ("Add", ("t",)), ("Conv", ("y",))]
    assert sorted(grids(plan)) == ["c", "r", "t", "x", "y"]
    assert len(set(grids(plan).values())) == 5
    bounds = {t.name: g.bounds for t, g in plan.groups.items()}
    assert bounds["r"] == bounds["t"] == (0.0, float("inf"))
    assert bounds["c"] is None
    assert [t.name for t in plan.sources()] == list(grids(plan))


def test_one_grid_for_what_only_moves_elements() -> None:
    nodes = f"a = {CONV}(x, w) m = MaxPool<kernel_shape=[2,2]>(a) n = Identity(m) y = {CONV}(n, v)"
    plan = plan_of(image(nodes), **WEIGHTS)
    of = grids(plan)
    assert of["a"] == of["m"] == of["n"] != of["y"]
    assert [t.name for t in plan.sources()] == ["x", "a", "y"]


def test_signed_ranges_without_a_zero_point_imply_nothing() -> None:
    for implies, output in (("any", "r"), ("relu", "r"), ("none", "a")):
        plan = plan_of(
            image(f"a = {CONV}(x, w) r = Relu(a) y = Erf(r)"), options={"implies": implies}, **WEIGHTS
        )
        assert summary(plan) == [("Conv", (output,))]


def test_a_clip_with_two_bounds_is_implied_by_scales_of_any_size_only() -> None:
    body = image(f"a = {CONV}(x, w) r = Clip(a, zero, six) y = Erf(r)")
    for implies, output in (("any", "r"), ("relu", "a")):
        plan = plan_of(body, options={"implies": implies}, zero=_f(0), six=_f(6), **WEIGHTS)
        assert summary(plan) == [("Conv", (output,))]


def _f(value: float) -> Any:
    return np.array(value, np.float32)


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(ops=("Conv",)), ["Conv", "Conv", "Conv"]),
        (Selection(ops=("Conv", "Add")), ["Conv", "Conv", "Add", "Conv"]),
        (Selection(nodes=("c", "y")), ["Conv", "Conv"]),
        (Selection(exclude=("[cs]",)), ["Conv", "Conv"]),
        (Selection(nodes=("nothing",)), []),
    ],
)
def test_selection(selection: Selection, left: list[str]) -> None:
    plan = plan_of(image(RESIDUAL), options={"selection": selection}, **WEIGHTS)
    assert [op for op, _ in summary(plan)] == left
    taken = {n.op for n in plan.reasons}
    assert taken <= {"Conv", "Add"}


def test_tensorrt_quantizes_inputs_only() -> None:
    plan = plan_of(image(RESIDUAL), target="tensorrt", **WEIGHTS)
    assert summary(plan) == [("Conv", ()), ("Conv", ()), ("Add", ()), ("Conv", ())]
    assert sorted(grids(plan)) == ["c", "r", "t", "x"]


def test_a_residual_stream_of_a_transformer_stays_float() -> None:
    body = """(float[N, 6, 8] x) => (float[N, 6, 8] y) {
        n = LayerNormalization(x, g) p = MatMul(n, w) a = Add(p, b) r = Add(a, x)
        m = LayerNormalization(r, g) q = MatMul(m, w) c = Add(q, b) y = Add(c, r) }"""
    plan = plan_of(body, w=(8, 8), b=(8,), g=(8,))
    assert summary(plan) == [("MatMul", ()), ("MatMul", ())]
    assert sorted(grids(plan)) == ["m", "n"]


def test_patches_of_a_vision_transformer() -> None:
    # The convolution makes integers, but adding positions leads into the residual stream: float.
    body = """(float[N, 4, 8, 8] x) => (float[N, 4, 16] y) {
        c = Conv<strides=[4,4]>(x, w) f = Reshape(c, s) t = Transpose<perm=[0,2,1]>(f) p = Add(t, e)
        n = LayerNormalization(p, g) q = MatMul(n, v) y = Add(q, p) }"""
    plan = plan_of(body, w=(16, 4, 4, 4), s=np.array([0, 16, -1]), e=(1, 4, 16), v=(16, 16), g=(16,))
    assert summary(plan) == [("Conv", ("c",)), ("MatMul", ())]


def test_gated_products_stay_float() -> None:
    body = """(float[N, 6, 8] x) => (float[N, 6, 8] y) {
        g = MatMul(x, w) u = MatMul(x, v) s = Sigmoid(g) t = Mul(g, s) h = Mul(t, u) d = MatMul(h, w) y = Erf(d) }"""
    plan = plan_of(body, w=(8, 8), v=(8, 8))
    assert summary(plan) == [("MatMul", ())] * 3
    assert sorted(grids(plan)) == ["h", "x"]


def test_reasons() -> None:
    body = """(float[N, 4, 6, 6] x, float16[N, 4, 6, 6] z, float[4, 4, 3, 3] k)
        => (float[N, 4, h, i] y, float16[N, 4, h, i] u, float[N, 4, h, i] t) {
        y = Conv(x, k) u = Conv(z, h) t = ConvTranspose(x, w) }"""
    plan = plan_of(body, w=(4, 4, 3, 3), h=np.ones((4, 4, 3, 3), np.float16))
    assert not plan.nodes
    assert sorted(plan.reasons.values()) == [
        "its weight k is no constant",
        "onnxruntime has no integer kernel for ConvTranspose",
        "z is float16: only float32 is quantized",
    ]


def test_nothing_to_do() -> None:
    plan = plan_of("(float[N, 4] x) => (float[N, 4] y) { a = Relu(x) y = Add(a, x) }")
    assert not plan.nodes
    assert not plan.groups
