from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weight_models import build, ort_ops, sqnr

from graphopt.model import Model
from graphopt.pipeline.base import Numerics
from graphopt.testing import apply, assert_refuses, assert_rewrites, count_ops
from graphopt_passes.quantization.expand_weights import ExpandWeights
from graphopt_passes.quantization.quantize_weights import QuantizeWeights

CONV = "(float[1, 48, 8, 8] x) => (float[1, 24, 8, 8] y) { y = Conv(x, w, b) }"
MATMUL = "(float[M, 48] x) => (float[M, 40] y) { y = MatMul(x, w) }"
NODES = {"Cast": 1, "Mul": 1, "Conv": 1}


def stored(body: str, options: dict[str, Any], **weights: Any) -> Any:
    done = apply(QuantizeWeights(**options), build(body, **weights))
    assert done.journal.changes
    return done.proto


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({}, {}),
        ({"symmetric": False}, {"Sub": 1}),
        ({"bits": 4}, {}),
        ({"bits": 4, "block_size": 16}, {"Gather": 1}),
        ({"bits": 4, "block_size": 32}, {"Gather": 1}),  # the second block is not full
        ({"bits": 2, "block_size": 16, "symmetric": False}, {"Sub": 1, "Gather": 2}),
    ],
)
def test_same_bits_and_no_trace_at_run_time(
    tmp_path: Path, options: dict[str, Any], extra: dict[str, int]
) -> None:
    before = stored(CONV, options, w=(24, 48, 1, 1), b=(24,))
    done = assert_rewrites(ExpandWeights(), before, ops={**NODES, **extra}, numerics=Numerics.EXACT)
    assert "Conv" in ort_ops(done.proto, tmp_path)
    assert set(ort_ops(done.proto, tmp_path)) <= {"Conv", "ReorderInput", "ReorderOutput"}
    assert len(done.proto.SerializeToString()) < 0.6 * 4 * 24 * 48


def test_scale_for_all_and_half_precision() -> None:
    body = """(float[1, 4, 3, 3] x) => (float y) <int8[2, 4, 1, 1] q = {1, -2, 3, 4, 5, -6, 7, 8}, float s = {0.1}>
    { w = DequantizeLinear(q, s) y = Conv(x, w) }"""
    assert_rewrites(ExpandWeights(), build(body), ops=NODES)
    zero = body.replace("float s = {0.1}>", "float s = {0.1}, int8 z = {0}>").replace("(q, s)", "(q, s, z)")
    assert_rewrites(ExpandWeights(), build(zero), ops=NODES)
    w = np.random.default_rng(0).standard_normal((24, 48, 1, 1)).astype(np.float16)
    before = stored(CONV.replace("float[", "float16["), {}, w=w, b=w[:, 0, 0, 0])
    assert_rewrites(ExpandWeights(), before, ops=NODES)


def test_products_only_if_asked_for() -> None:
    before = stored(MATMUL, {"bits": 4, "block_size": 16}, w=(48, 40))
    assert_refuses(ExpandWeights(), before, "becomes MatMulNBits")
    after = assert_rewrites(ExpandWeights(products="expand"), before)
    assert sqnr(before, after.proto) > 120


@pytest.mark.parametrize(
    ("op", "w", "fused"),
    [
        ("Gemm(x, w)", (48, 40), True),
        ("Gemm(x, w, b)", (48, 40), True),
        ("Gemm<transB=1>(x, w)", (40, 48), False),
        ("Gemm<alpha=2.0>(x, w)", (48, 40), False),
        ("Gemm(x, w, r)", (48, 40), False),
        ("Gemm<transA=1>(w, t)", (48, 40), False),
    ],
)
def test_gemm(op: str, w: tuple[int, int], fused: bool, tmp_path: Path) -> None:
    head = "(float[5, 48] x)" if "t)" not in op else "(float[48, 7] t)"
    before = stored(f"{head} => (float y) {{ y = {op} }}", {}, w=w, b=(40,), r=(1, 40))
    assert ("MatMulNBits" in ort_ops(before, tmp_path)) == fused
    done = apply(ExpandWeights(), before)
    assert bool(done.journal.changes) == (not fused)


def test_integer_kernels_keep_theirs() -> None:
    body = """(float[1, 48, 8, 8] x) => (float y) <float s = {0.1}, uint8 z = {128}> {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Conv(d, w)
    }"""
    before = stored(body, {}, w=(24, 48, 1, 1))
    assert_refuses(ExpandWeights(), before, "another quantized tensor")


def test_shared_and_outputs() -> None:
    body = (
        "(float[1, 48, 8, 8] x, float[1, 48, 4, 4] v) => (float y, float z) { y = Conv(x, w) z = Conv(v, w) }"
    )
    assert_rewrites(ExpandWeights(), stored(body, {}, w=(24, 48, 1, 1)), ops={**NODES, "Conv": 2})
    before = stored(CONV, {}, w=(24, 48, 1, 1), b=(24,))
    before.graph.output.append(before.graph.output[0].__class__())
    before.graph.output[1].CopyFrom(build("() => (float[24, 48, 1, 1] w_dq) {}").graph.output[0])
    assert_refuses(ExpandWeights(), before, "graph output")
    assert_refuses(ExpandWeights(), stored(CONV, {}, w=(24, 48, 1, 1), b=(24,)), keep=["w_dq"])


def test_activations_and_if_bodies() -> None:
    body = "(int8[4, 4] x) => (float y) <float s = {0.1}> { y = DequantizeLinear(x, s) }"
    assert not apply(ExpandWeights(), build(body)).journal.changes
    body = """(float[1, 48, 4, 4] x, bool c) => (float y) {
        y = If (c) <then_branch = t () => (float[1, 24, 4, 4] a) { a = Conv(x, w) },
                    else_branch = e () => (float[1, 48, 4, 4] d) { d = Identity(x) }>
    }"""
    assert_rewrites(
        ExpandWeights(), stored(body, {}, w=(24, 48, 1, 1)), ops={**NODES, "If": 1, "Identity": 1}
    )


class Timed:
    """Says that the model takes as long as its MatMulNBits candidates do, `cost` each."""

    def __init__(self, cost: float) -> None:
        self.cost = cost

    def latency(self, student: Model, teacher: Model) -> float:
        ops = count_ops(student)
        return 1.0 + self.cost * ops["DequantizeLinear"]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


@pytest.mark.parametrize(("cost", "expanded"), [(0.5, True), (0.001, False), (-0.1, False)])
def test_products_by_measuring(monkeypatch: pytest.MonkeyPatch, cost: float, expanded: bool) -> None:
    monkeypatch.setattr("graphopt.lossy.open_services", lambda *args, **kwargs: Timed(cost))
    body = (
        """(float[1, 48, 4, 4] x, float[M, 48] v) => (float y, float z) { y = Conv(x, k) z = MatMul(v, w) }"""
    )
    model = build(body, k=(24, 48, 1, 1), w=(48, 40))
    done = apply([QuantizeWeights(), ExpandWeights()], model)
    assert done.ops["DequantizeLinear"] == (0 if expanded else 1)
    again = apply([QuantizeWeights(), ExpandWeights()], done.proto)
    assert not again.journal.changes
    # Without a lossy pass before it, and without data, there is nothing to compare with.
    assert not apply(ExpandWeights(), stored(MATMUL, {}, w=(48, 40))).journal.changes
