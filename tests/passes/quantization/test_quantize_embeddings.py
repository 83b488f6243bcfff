from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from weight_models import build, ort_ops, sqnr, types_of, weights_of

from graphopt.errors import UserError
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.quantization.quantize_embeddings import QuantizeEmbeddings

LOOKUP = "(int64[N, S] i) => (float[N, S, 24] y) { y = Gather(w, i) }"
ROW = {"Gather": 2, "Cast": 1, "Mul": 1}
FEEDS = {"i": np.array([[0, 5, -1], [299, 7, -300]])}


def table(rows: int = 300, width: int = 24, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(1)
    lengths = np.exp(rng.standard_normal((rows, 1)))  # rows of very different length, as embeddings are
    return (rng.standard_normal((rows, width)) * lengths).astype(dtype)


def quantized(
    pass_: QuantizeEmbeddings, model: onnx.ModelProto, least: float, **given: Any
) -> onnx.ModelProto:
    feeds = given.pop("feeds", FEEDS)
    done = assert_rewrites(pass_, model, **given)
    for optimize in ("none", "all"):
        measured = sqnr(model, done.proto, feeds, optimize=optimize)
        assert measured >= least, measured
    return done.proto


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_eight_bits(opset: int) -> None:
    made = quantized(QuantizeEmbeddings(), build(LOOKUP, opset=opset, ir=8, w=table()), 40, ops=ROW)
    assert len(weights_of(made)["w_quantized"].raw_data) == 300 * 24
    assert weights_of(made)["w_scale"].dims == [300, 1]


@pytest.mark.parametrize("opset", [11, 17, 21])
def test_four_bits(opset: int) -> None:
    ops = {**ROW, "BitShift": 3, "Concat": 1, "Sub": 1}
    made = quantized(QuantizeEmbeddings(bits=4), build(LOOKUP, opset=opset, ir=8, w=table()), 17, ops=ops)
    assert len(weights_of(made)["w_packed"].raw_data) == 300 * 24 // 2


def test_one_scale_for_all_is_less_exact() -> None:
    model = build(LOOKUP, w=table())
    made = quantized(QuantizeEmbeddings(scale="tensor"), model, 20, ops={"Gather": 1, "Cast": 1, "Mul": 1})
    assert sqnr(model, made, FEEDS) < sqnr(model, apply(QuantizeEmbeddings(), model).proto, FEEDS) - 5


def test_every_row_comes_back() -> None:
    model = build(LOOKUP, w=table())
    everything = {"i": np.arange(-300, 300).reshape(2, 300)}
    quantized(QuantizeEmbeddings(), model, 40, feeds=everything)
    quantized(QuantizeEmbeddings(bits=4), model, 17, feeds=everything)


def test_half_precision_and_other_indices() -> None:
    body = LOOKUP.replace("float[", "float16[").replace("int64[N, S]", "int32").replace("N, S, 24", "24")
    model = build(body, w=table(dtype=np.float16))
    quantized(QuantizeEmbeddings(), model, 38, feeds={"i": np.array(3, np.int32)})
    quantized(QuantizeEmbeddings(bits=4), model, 15, feeds={"i": np.array(3, np.int32)})


def test_table_looked_up_twice_is_stored_once() -> None:
    body = "(int64[N, S] i, int64[N] j) => (float y, float z) { y = Gather(w, i) z = Gather<axis=-2>(w, j) }"
    made = quantized(QuantizeEmbeddings(), build(body, w=table()), 40, feeds={**FEEDS, "j": np.array([1, 2])})
    assert types_of(made) == {"INT8": 1, "FLOAT": 1}


@pytest.mark.parametrize("product", ["t = Transpose(w) z = MatMul(h, t)", "z = Gemm<transB=1>(h, w)"])
@pytest.mark.parametrize(("bits", "least"), [(8, 34), (4, 12)])
def test_tied_projection(product: str, bits: Any, least: float, tmp_path: Path) -> None:
    body = f"(int64[N, S] i, float[4, 24] h) => (float y, float z) {{ y = Gather(w, i) {product} }}"
    model = build(body, opset=13, ir=8, w=table())
    feeds = {**FEEDS, "h": np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)}
    made = quantized(QuantizeEmbeddings(bits=bits), model, least, feeds=feeds)
    stored = sorted(int(np.prod(t.dims)) for t in made.graph.initializer)
    assert stored[-2:] == [300, 300 * 24 * bits // 8]  # one table, and a scale per row
    executed = ort_ops(made, tmp_path)
    assert executed.count("Mul") == 1, executed  # of what is looked up; the table is expanded while loading


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("(int64[2] i) => (float y) { y = Gather<axis=1>(w, i) }", "along another axis"),
        ("(int64[2] i) => (float y, float[300, 24] w) { y = Gather(w, i) }", "graph output"),
    ],
)
def test_other_readers(body: str, reason: str) -> None:
    assert_refuses(QuantizeEmbeddings(), build(body, w=table()), reason)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (np.zeros((30, 40, 24), np.float32), "no matrix"),
        (np.zeros((3, 24), np.float32), "too few"),
        (np.full((300, 24), np.inf, np.float32), "not finite"),
    ],
)
def test_tables_that_stay(given: Any, reason: str) -> None:
    assert_refuses(
        QuantizeEmbeddings(), build("(int64[2] i) => (float y) { y = Gather(w, i) }", w=given), reason
    )


def test_rest() -> None:
    odd = build("(int64[2] i) => (float y) { y = Gather(w, i) }", w=table(width=25))
    assert_refuses(QuantizeEmbeddings(bits=4), odd, "odd length")
    model = build(LOOKUP, w=table())
    assert_refuses(QuantizeEmbeddings(), model, "is kept", keep=["y"])
    assert not apply(QuantizeEmbeddings(), model, keep=["w"]).journal.changes
    assert_refuses(QuantizeEmbeddings(exclude=("y",)), model)
    with pytest.raises(UserError, match="matches no node"):
        apply(QuantizeEmbeddings(nodes=("q",)), model)
    assert_refuses(QuantizeEmbeddings(), build(LOOKUP.replace("i)", "i, float[300, 24] w)", 1), w=table()))
    ints = build(LOOKUP.replace("float", "int64"), w=np.arange(7200).reshape(300, 24))
    assert not assert_refuses(QuantizeEmbeddings(), ints).reasons


def test_if_body() -> None:
    body = """(int64[N, S] i, bool c) => (float y) {
        y = If (c) <then_branch = t () => (float[N, S, 24] a) { a = Gather(w, i) },
                    else_branch = e () => (float[N, S, 24] b) { b = Gather(v, i) }>
    }"""
    feeds = {**FEEDS, "c": np.array(True)}
    model = build(body, w=table(), v=table())
    quantized(QuantizeEmbeddings(), model, 40, feeds=feeds, ops={"If": 1, "Gather": 4, "Cast": 2, "Mul": 2})
    assert_refuses(QuantizeEmbeddings(), build(body.replace("v,", "w,"), w=table()), "in another body")
