from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.testing import apply, assert_refuses, assert_rewrites
from graphopt_passes.fusion.fold_transpose_gemm import FoldTransposeGemm

PASS = FoldTransposeGemm()
BODY = """(float[N, 4] x, float[N, 3] w) => (float y) {
    t = Transpose <perm=[1, 0]> (x)
    y = Gemm <alpha=0.5> (t, w)
}"""


def attrs(done: Any) -> dict[str, Any]:
    (node,) = done.model.graph.nodes
    found: dict[str, Any] = dict(node.attrs)
    return found


def test_left_operand(build: Any) -> None:
    assert attrs(assert_rewrites(PASS, build(BODY), ops={"Gemm": 1})) == {"alpha": 0.5, "transA": 1}


def test_transposing_twice_is_not_at_all(build: Any) -> None:
    body = BODY.replace("[N, 3]", "[4, 3]").replace("alpha=0.5", "transA=1")
    assert attrs(assert_rewrites(PASS, build(body), ops={"Gemm": 1})) == {}


def test_right_operand_and_bias(build: Any) -> None:
    body = """(float[N, 4] x, float[3, 4] w) => (float y) {
        t = Transpose(w)
        y = Gemm <beta=0.5> (x, t, b)
    }"""
    done = assert_rewrites(PASS, build(body, b=(3,)), ops={"Gemm": 1})
    assert attrs(done) == {"beta": 0.5, "transB": 1}


def test_both_operands_and_the_same_transpose_twice(build: Any) -> None:
    body = """(float[4, 4] x) => (float y) {
        t = Transpose <perm=[1, 0]> (x)
        y = Gemm(t, t)
    }"""
    assert attrs(assert_rewrites(PASS, build(body), ops={"Gemm": 1})) == {"transA": 1, "transB": 1}


def test_matmul_of_matrices_becomes_gemm(build: Any) -> None:
    body = BODY.replace("Gemm <alpha=0.5>", "MatMul")
    assert attrs(assert_rewrites(PASS, build(body), ops={"Gemm": 1})) == {"transA": 1}
    assert not apply(PASS, build(body, opset=10)).journal.changes, "Gemm without C is of opset 11"


def test_matmul_of_stacks_is_no_candidate(build: Any) -> None:
    body = BODY.replace("Gemm <alpha=0.5>", "MatMul").replace("[N, 3]", "[B, N, 3]")
    assert not apply(PASS, build(body)).journal.changes
    body = """(float[B, 4, N] x) => (float y) {
        t = Transpose(x)
        y = MatMul(t, w)
    }"""
    assert not apply(PASS, build(body, w=(4, 3))).journal.changes


def test_other_permutations_are_no_candidates(build: Any) -> None:
    body = BODY.replace("perm=[1, 0]", "perm=[0, 1]").replace("[N, 3]", "[4, 3]")
    assert not apply(PASS, build(body)).journal.changes


def test_integers_are_declined(build: Any) -> None:
    body = BODY.replace("Gemm <alpha=0.5>", "MatMul").replace("float", "int32")
    assert_refuses(PASS, build(body), "floating point")


def test_readers_that_are_all_products(build: Any) -> None:
    body = BODY.replace(" y) {", " y, float z) {").replace("}", " z = MatMul(t, w) }")
    assert_rewrites(PASS, build(body), ops={"Gemm": 2})


def test_other_reader_and_output_are_declined(build: Any) -> None:
    body = BODY.replace(" y) {", " y, float z) {").replace("}", " z = Relu(t) }")
    assert_refuses(PASS, build(body), "has another reader")
    body = BODY.replace(" y) {", " y, float t) {")
    assert_refuses(PASS, build(body), "is a graph output")
    body = """(float[4, 4] x) => (float y) {
        t = Transpose <perm=[1, 0]> (x)
        y = Gemm(t, x, t)
    }"""
    assert_refuses(PASS, build(body), "has another reader")


def test_kept_transpose(build: Any) -> None:
    assert not apply(PASS, build(BODY), keep=["t"]).journal.changes


def test_a_transpose_outside_is_not_folded_into_a_branch(build: Any) -> None:
    body = """(float[N, 4] x, float[N, 3] w, bool flag) => (float y) {
        t = Transpose(x)
        y = If (flag) <
            then_branch = then_g () => (float a) { a = Gemm(t, w) },
            else_branch = else_g () => (float e) { e = Relu(t) }>
    }"""
    assert not apply(PASS, build(body)).journal.changes


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 22])
def test_if_body_and_opsets(build: Any, opset: int) -> None:
    body = """(float[N, 4] x, bool flag) => (float y) {
        y = If (flag) <
            then_branch = then_g () => (float a) { t = Transpose(x)  a = Gemm(t, t, b) },
            else_branch = else_g () => (float e) { e = Identity(x) }>
    }"""
    model = build(body.replace("N, 4", "4, 4"), opset=opset, b=np.ones(4, np.float32))
    assert_rewrites(PASS, model, ops={"Gemm": 1, "If": 1, "Identity": 1})
