"""correct-bias: mean errors go into biases, and only where that helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from weight_models import build, sqnr

from graphopt.passkit import Numerics, Pass, PassContext, Rewriter
from graphopt.testing import Applied, apply
from graphopt_passes.quantization._quantized import bias_array, find_quantized, set_bias
from graphopt_passes.quantization.correct_bias import CorrectBias
from graphopt_passes.quantization.insert_qdq import InsertQDQ
from graphopt_passes.quantization.quantize_weights import QuantizeWeights

W3 = QuantizeWeights(bits=3, min_elements=1)


def shifted_data(*shape: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {"x": (rng.standard_normal(shape) * 0.5 + 2).astype(np.float32)}


def corrected(model: onnx.ModelProto, data: Any, gain: float, before: Pass = W3) -> Applied:
    plain = apply(before, model, data=data)
    done = apply([before, CorrectBias()], model, data=data)
    worst, best = (sqnr(model, p.proto, data) for p in (plain, done))
    assert best >= worst + gain, (worst, best, done.reasons)
    return done


CHAIN = """(float[N, 6, 8, 8] x) => (float y) {
    a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
    r = Relu(a)
    y = Conv<group=2>(r, w2)
}"""


@pytest.mark.parametrize("sequential", ["auto", "yes", "no"])
def test_convolutions_with_and_without_bias(sequential: Any) -> None:
    model = build(CHAIN, w1=(16, 6, 3, 3), b1=(16,), w2=(16, 8, 3, 3))
    done = corrected(model, shifted_data(24, 6, 8, 8), 3)
    changes = [c for c in done.journal.changes if c.key.pass_name == "correct-bias"]
    assert len(changes) == 2
    assert all("bias corrected by" in c.why for c in changes)
    conv = [n for n in done.proto.graph.node if n.op_type == "Conv"][1]
    assert len(conv.input) == 3


def test_integer_biases_are_rounded_again() -> None:
    model = build(CHAIN, w1=(16, 6, 3, 3), b1=(16,), w2=(16, 8, 3, 3))
    done = corrected(model, shifted_data(24, 6, 8, 8), 0.1, before=InsertQDQ(weights="int8"))
    kinds = {t.data_type for t in done.proto.graph.initializer if list(t.dims) == [16]}
    assert onnx.TensorProto.INT32 in kinds


@pytest.mark.parametrize(
    "body",
    [
        "(float[N, 40] x) => (float y) { m = MatMul(x, w)  y = Add(m, b) }",
        "(float[N, 40] x) => (float y) { m = MatMul(x, w)  y = Add(b, m) }",
        "(float[N, 40] x) => (float y) { y = Gemm(x, w, b) }",
        "(float[N, 40] x) => (float y) { y = Gemm(x, w) }",
    ],
)
def test_products(body: str) -> None:
    weights = {"w": (40, 16)} | ({"b": (16,)} if "b)" in body or "(b" in body else {})
    corrected(build(body, **weights), shifted_data(64, 40), 5)


def test_one_number_becomes_one_per_output() -> None:
    model = build("(float[N, 40] x) => (float y) { y = Gemm(x, w, b) }", w=(40, 16), b=np.float32(0.5))
    corrected(model, shifted_data(64, 40), 5)


def test_inside_of_bodies() -> None:
    body = """(float[N, 40] x, bool flag) => (float y) {
        y = If (flag) <
            then_branch = then_g () => (float[N, 16] t) { t = Gemm(x, w, b) },
            else_branch = else_g () => (float[N, 16] e) { e = Gemm(x, w) }>
    }"""
    model = build(body, w=(40, 16), b=(16,))
    data = [{"x": v[None], "flag": np.array(True)} for v in shifted_data(32, 40)["x"]]
    plain = apply(W3, model, data=data)
    done = apply([W3, CorrectBias()], model, data=data)
    feeds = {"x": shifted_data(32, 40)["x"], "flag": np.array(True)}
    assert sqnr(model, done.proto, feeds) > sqnr(model, plain.proto, feeds) + 5


def test_a_second_run_changes_next_to_nothing() -> None:
    model = build("(float[N, 40] x) => (float y) { y = Gemm(x, w, b) }", w=(40, 16), b=(16,))
    data = shifted_data(64, 40)
    once = apply([W3, CorrectBias()], model, data=data)
    again = apply([W3, CorrectBias(), CorrectBias()], model, data=data)
    assert sqnr(once.proto, again.proto, data) > 80


@dataclass(frozen=True)
class Spoil(Pass):
    """Give two layers in a row biases that are wrong in ways that cancel out."""

    name: ClassVar[str] = "spoil"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        for quantized, sign in zip(find_quantized(graph), (1, -1), strict=True):
            old = bias_array(graph, quantized)
            assert old is not None
            set_bias(graph, quantized, old + np.float32(sign), "spoiled")


def test_taken_back_where_the_outputs_get_worse() -> None:
    body = "(float[N, 40] x) => (float y) { a = Gemm(x, w, b)  c = Gemm(x, w, b)  y = Add(a, c) }"
    w = np.random.default_rng(2).integers(-3, 4, (40, 16)).astype(np.float32)
    w[0] = 3
    model = build(body, w=w, b=np.zeros(16, np.float32))
    data = shifted_data(64, 40)
    before = [QuantizeWeights(bits=4, min_elements=1, method="minmax"), Spoil()]
    done = apply([*before, CorrectBias()], model, data=data)
    assert sqnr(model, done.proto, data) >= sqnr(model, apply(before, model, data=data).proto, data) - 0.1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("(float[N, 40] x) => (float y) { y = MatMul(x, w) }", "no constant bias and no place"),
        ("(float[40, 40] x) => (float y) { y = Gemm(w, x, b) }", "left operand"),
        ("(float[N, 40] x, float[40] b) => (float y) { y = Gemm(x, w, b) }", "no place for one"),
    ],
)
def test_refusals(body: str, reason: str) -> None:
    given = {"w": (40, 40)} | ({"b": (40,)} if "x, b)" in body else {})
    data = shifted_data(40, 40)
    if "b)" in body and "b" not in given:
        data["b"] = np.zeros((40, 40), np.float32)
    samples: Any = [{"x": data["x"], **({"b": data["b"][0]} if "b" in data else {})}]
    done = apply([W3, CorrectBias()], build(body, **given), data=samples)
    assert any(reason in r for r in done.reasons), done.reasons
    assert not [c for c in done.journal.changes if c.key.pass_name == "correct-bias"]


def test_without_data_or_quantized_layers() -> None:
    model = build("(float[N, 40] x) => (float y) { y = Gemm(x, w) }", w=(40, 16))
    assert any("no data" in r for r in apply([W3, CorrectBias()], model).reasons)
    assert not apply(CorrectBias(), model, data=shifted_data(4, 40)).journal.changes
