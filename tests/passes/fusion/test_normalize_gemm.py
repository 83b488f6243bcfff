from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.pipeline.base import Limits
from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion.normalize_gemm import NormalizeGemm

PASS = NormalizeGemm()
BODY = """(float[5, 4] x) => (float y) {
    y = Gemm <alpha=0.3, beta=2.5> (x, w, b)
}"""


def attrs(done: Any) -> dict[str, Any]:
    (node,) = done.model.graph.nodes
    found: dict[str, Any] = dict(node.attrs)
    return found


@pytest.mark.parametrize("trans", [0, 1])
def test_factors_go_into_constants(build: Any, trans: int) -> None:
    body = BODY.replace("alpha", f"transB={trans}, alpha")
    done = assert_rewrites(PASS, build(body, w=(3, 4) if trans else (4, 3), b=(3,)), ops={"Gemm": 1})
    assert attrs(done) == ({"transB": 1} if trans else {})


def test_left_operand(build: Any) -> None:
    body = BODY.replace("(x, w, b)", "(w, x, b)")
    assert attrs(assert_rewrites(PASS, build(body, w=(3, 5), b=(4,)), ops={"Gemm": 1})) == {}


def test_only_what_is_constant_changes(build: Any) -> None:
    body = BODY.replace("[5, 4] x)", "[5, 4] x, float[3] b)")
    done = assert_rewrites(PASS, build(body, w=(4, 3)), ops={"Gemm": 1})
    assert attrs(done) == {"beta": 2.5}
    body = BODY.replace("[5, 4] x)", "[5, 4] x, float[4, 3] w)")
    done = assert_rewrites(PASS, build(body, b=(3,)), ops={"Gemm": 1})
    assert set(attrs(done)) == {"alpha"}
    body = BODY.replace("[5, 4] x)", "[5, 4] x, float[4, 3] w, float[3] b)")
    assert not apply(PASS, build(body)).journal.changes


def test_bias_of_zeros_is_left_out(build: Any) -> None:
    body = BODY.replace("alpha=0.3, beta=2.5", "transB=0")
    zeros = np.zeros((1, 3), np.float32)
    done = assert_rewrites(PASS, build(body, w=(4, 3), b=zeros), ops={"Gemm": 1})
    assert len(done.model.graph.nodes[0].inputs) == 2
    assert not apply(PASS, build(body, opset=10, w=(4, 3), b=zeros)).journal.changes
    off = BODY.replace("alpha=0.3, beta=2.5", "beta=0.0")
    done = assert_rewrites(PASS, build(off, w=(4, 3), b=(3,)), ops={"Gemm": 1})
    assert len(done.model.graph.nodes[0].inputs) == 2
    nan = np.full(3, np.nan, np.float32)
    assert not assert_refuses(PASS, build(off, w=(4, 3), b=nan)).journal.changes


def test_beta_without_bias_is_dropped(build: Any) -> None:
    body = BODY.replace("alpha=0.3, ", "").replace(", b)", ")")
    assert attrs(assert_rewrites(PASS, build(body, w=(4, 3)), ops={"Gemm": 1})) == {}


def test_numbers_that_do_not_fit_are_declined(build: Any) -> None:
    model = build(BODY.replace("0.3", "1e30"), w=np.full((4, 3), 1e30, np.float32), b=(3,))
    assert_refuses(PASS, model, "not finite in float32")


def test_shared_weight_is_copied_only_while_small(build: Any) -> None:
    body = BODY.replace("}", " z = MatMul(x, w) }").replace(" y) {", " y, float z) {")
    model = build(body, w=(4, 3), b=(3,))
    assert_rewrites(PASS, model, ops={"Gemm": 1, "MatMul": 1})
    assert_refuses(PASS, model, "w has other readers", limits=Limits(growth_bytes=40))


def test_plain_gemm_and_old_opsets_are_left_alone(build: Any) -> None:
    body = BODY.replace("alpha=0.3, beta=2.5", "transB=0")
    assert not apply(PASS, build(body, w=(4, 3), b=(3,))).journal.changes
    body = BODY.replace("alpha", "broadcast=1, alpha")
    assert not apply(PASS, build(body, opset=6, w=(4, 3), b=(3,))).journal.changes


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 22])
def test_if_body_and_opsets(build: Any, opset: int) -> None:
    body = """(float[5, 4] x, bool flag) => (float y) {
        y = If (flag) <
            then_branch = then_g () => (float t) { t = Gemm <alpha=0.5> (x, w, b) },
            else_branch = else_g () => (float e) { e = Identity(x) }>
    }"""
    model = build(body, opset=opset, w=(4, 3), b=(3,))
    assert_rewrites(PASS, model, ops={"Gemm": 1, "If": 1, "Identity": 1})
