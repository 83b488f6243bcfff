from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import build, ort_ops, sqnr, types_of, weights_of

from graphopt.errors import UserError
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.quantization.quantize_codebook import QuantizeCodebook

MATMUL = "(float[M, 96] x) => (float[M, 40] y) { y = MatMul(x, w) }"
CONV = "(float[1, 32, 8, 8] x) => (float[1, 24, 6, 6] y) { y = Conv(x, w, b) }"


def quantized(pass_: QuantizeCodebook, model: onnx.ModelProto, least: float, **given: Any) -> onnx.ModelProto:
    done = assert_rewrites(pass_, model, **given)
    for optimize in ("none", "all"):
        measured = sqnr(model, done.proto, optimize=optimize)
        assert measured >= least, measured
    assert all("storage format" in c.why for c in done.journal.changes)
    return done.proto


KINDS: list[tuple[dict[str, Any], float]] = [
    ({"bits": 8}, 37),
    ({"bits": 7}, 33),
    ({"bits": 6}, 28),
    ({"bits": 5}, 23),
    ({"bits": 4}, 18),
    ({"bits": 3}, 12.5),
    ({"bits": 2}, 7),
    ({"bits": 1}, 3),
    ({"bits": 4, "per_channel": True}, 19),
    ({"kind": "binary"}, 3),
    ({"kind": "ternary"}, 5.5),
    ({"kind": "nf4"}, 17),
    ({"kind": "nf4", "block_size": 50}, 17),
    ({"kind": "pow2", "bits": 4}, 13),
    ({"kind": "apot", "bits": 4}, 15),
    ({"kind": "apot", "bits": 5}, 18),
]


@pytest.mark.parametrize(("options", "least"), KINDS)
def test_kinds(options: dict[str, Any], least: float, tmp_path: Path) -> None:
    model = build(MATMUL, opset=11, ir=6, w=(96, 40))
    made = quantized(QuantizeCodebook(**options), model, least)
    assert ort_ops(made, tmp_path) == ["MatMul"]  # expanded while loading
    bits = {"binary": 1, "ternary": 2, "nf4": 4}.get(options.get("kind", ""), options.get("bits", 4))
    packed = sum(len(t.raw_data) for t in made.graph.initializer if t.data_type == onnx.TensorProto.UINT8)
    assert packed <= 96 * 40 * bits / 8 + 40


@pytest.mark.parametrize(("options", "least"), [KINDS[4], KINDS[8], *KINDS[9:12], KINDS[14]])
def test_conv(options: dict[str, Any], least: float, tmp_path: Path) -> None:
    made = quantized(QuantizeCodebook(**options), build(CONV, w=(24, 32, 3, 3), b=(24,)), least - 1)
    assert "Gather" not in ort_ops(made, tmp_path)


@pytest.mark.parametrize("shape", [(33, 33), (35, 37)])
@pytest.mark.parametrize("bits", [1, 3, 4, 7])
def test_sizes_that_fill_no_byte(shape: tuple[int, int], bits: int) -> None:
    body = f"(float[2, {shape[0]}] x) => (float y) {{ y = MatMul(x, w) }}"
    quantized(QuantizeCodebook(bits=bits, min_elements=0), build(body, w=shape), 3)


def test_few_values_come_back_exactly() -> None:
    w = np.random.default_rng(0).choice(np.array([-1.5, 0.25, 3, 7], np.float32), (96, 40))
    model = build(MATMUL, w=w)
    assert sqnr(model, apply(QuantizeCodebook(bits=2), model).proto) == 200


def test_per_channel_keeps_channels_apart() -> None:
    rng = np.random.default_rng(0)
    w = np.exp2(np.arange(40)) * rng.choice(np.array([-1, 0.5, 2]), (96, 40))
    model = build(MATMUL, w=w.astype(np.float32))
    assert sqnr(model, apply(QuantizeCodebook(bits=2, per_channel=True), model).proto) == 200
    for body, shape in (("Gemm<transB=1>(x, w)", (40, 96)), ("Gemm(x, w)", (96, 40))):
        turned = build(
            MATMUL.replace("MatMul(x, w)", body).replace("M,", "3,"),
            w=w.T.astype(np.float32) if shape[0] == 40 else w.astype(np.float32),
        )
        assert sqnr(turned, apply(QuantizeCodebook(bits=2, per_channel=True), turned).proto) == 200


def test_half_precision() -> None:
    w = np.random.default_rng(0).standard_normal((96, 40)).astype(np.float16)
    model = build(MATMUL.replace("float[", "float16["), w=w)
    for options in ({}, {"kind": "nf4"}, {"kind": "ternary"}):
        made = quantized(QuantizeCodebook(**options), model, 5)
        assert "FLOAT" not in types_of(made)


def test_shared_weights() -> None:
    body = "(float[M, 96] x, float[M, 96] v) => (float y, float z) { y = MatMul(x, w) z = MatMul(v, w) }"
    quantized(QuantizeCodebook(), build(body, w=(96, 40)), 17)
    other = body.replace("MatMul(v, w)", "Relu(w)")
    assert_refuses(QuantizeCodebook(), build(other, w=(96, 40)), "also read by Relu")


def test_recurrent_weights_if_asked_for() -> None:
    body = "(float[7, 2, 24] x) => (float y) { y = GRU<hidden_size=16>(x, w, r) }"
    model = build(body, w=(1, 48, 24), r=(1, 48, 16))
    made = assert_rewrites(QuantizeCodebook(ops=("GRU",), min_elements=512, bits=6), model)
    assert sqnr(model, made.proto) > 10
    assert "w_palette" in weights_of(made.proto)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("(float[M, 96] x) => (float y, float[96, 40] w) { y = MatMul(x, w) }", "graph output"),
        ("(float[40, 5] x) => (float y) { y = MatMul(w, x) z = Exp(w) }", "also read by Exp"),
    ],
)
def test_refusals(body: str, reason: str) -> None:
    assert_refuses(QuantizeCodebook(), build(body, w=(96, 40)), reason)


def test_more_refusals() -> None:
    model = build(MATMUL, w=(96, 40))
    assert_refuses(QuantizeCodebook(), model, "is kept", keep=["y"])
    assert_refuses(QuantizeCodebook(min_elements=9999), model, "too few")
    assert_refuses(QuantizeCodebook(), build(MATMUL, opset=10, ir=5, w=(96, 40)), "needs opset 11")
    assert_refuses(QuantizeCodebook(), build(MATMUL, w=np.full((96, 40), np.nan, np.float32)), "not finite")
    assert_refuses(QuantizeCodebook(bits=8, per_channel=True), model, "would not shrink")
    with pytest.raises(UserError, match="matches no node"):
        apply(QuantizeCodebook(nodes=("q",)), model)
    assert_refuses(QuantizeCodebook(exclude=("y",)), model)


@pytest.mark.parametrize(
    "given", [{"bits": 9}, {"kind": "pow2", "bits": 1}, {"block_size": 4}, {"ops": ("Add",)}]
)
def test_options_that_make_no_sense(given: Any) -> None:
    with pytest.raises(ValueError, match=r"bits|block_size|ops"):
        QuantizeCodebook(**given)


def test_if_body() -> None:
    body = """(float[M, 96] x, bool c) => (float y) {
        y = If (c) <then_branch = t () => (float[M, 40] a) { a = MatMul(x, w) },
                    else_branch = e () => (float[M, 40] b) { b = MatMul(x, v) }>
    }"""
    model = build(body, w=(96, 40), v=(96, 40))
    done = assert_rewrites(QuantizeCodebook(), model)
    assert sqnr(model, done.proto, {"x": np.ones((2, 96), np.float32), "c": np.array(False)}) > 15
    assert_refuses(QuantizeCodebook(), build(body.replace("v)", "w)"), w=(96, 40)), "in another body")
