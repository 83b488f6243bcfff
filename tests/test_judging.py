"""The pipeline's judge."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.judging import IntermediateTap, ProverJudge, computes_in_half, judge_on_feeds
from graphopt.model import Model
from graphopt.pipeline.base import Numerics

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def load(text: str) -> Model:
    return Model.load(onnx.parser.parse_model(HEAD + text))


@pytest.mark.parametrize(
    ("text", "half"),
    [
        ("g (float[2] x) => (float[2] y) { y = Relu(x) }", False),
        ("g (float16[2] x) => (float16[2] y) { y = Relu(x) }", True),
        ("g (float[2] x) => (float16[2] y) { y = Cast <to = 10> (x) }", True),
        ("g (float[2] x) => (float[2] y) { h = Cast <to = 16> (x) y = Cast <to = 1> (h) }", True),
    ],
)
def test_half_precision_is_seen(text: str, half: bool) -> None:
    assert computes_in_half(load(text)) is half


def test_exact_is_not_held_against_half_precision() -> None:
    """A rounding in between changes bits, which onnxruntime does by itself for float16 on the CPU."""
    reference = load("g (float16[64] x) => (float16[64] y) { a = Add(x, x) y = Mul(a, x) }")
    rounded = load("g (float16[64] x) => (float16[64] y) { s = Mul(x, x) y = Add(s, s) }")
    wrong = load("g (float16[64] x) => (float16[64] y) { a = Add(x, x) y = Mul(a, a) }")
    judge = ProverJudge(reference)
    assert judge.judge(rounded, Numerics.EXACT).verdict == "proven"
    assert judge.judge(wrong, Numerics.EXACT).verdict == "failed"


def test_exact_is_bit_for_bit_in_single_precision() -> None:
    reference = load("g (float[64] x) => (float[64] y) { a = Exp(x) b = Add(a, x) y = Add(b, a) }")
    reordered = load("g (float[64] x) => (float[64] y) { a = Exp(x) b = Add(a, a) y = Add(b, x) }")
    judge = ProverJudge(reference)
    assert judge.judge(reordered, Numerics.EXACT).verdict == "failed"
    assert judge.judge(reordered, Numerics.CLOSE).verdict == "proven"


def test_another_reference_is_compared_on_the_same_inputs() -> None:
    judge = ProverJudge(load("g (float[N] x) => (float[N] y) { y = Relu(x) }"))
    other = judge.against(load("g (float[N] x) => (float[N] y) { y = Neg(x) }"))
    feeds = [s.feeds["x"] for s in judge.reference.probes.sets]
    again = [s.feeds["x"] for s in other.reference.probes.sets]
    assert all(np.array_equal(a, b) for a, b in zip(feeds, again, strict=True))
    assert (
        other.judge(load("g (float[N] x) => (float[N] y) { y = Neg(x) }"), Numerics.EXACT).verdict == "proven"
    )


def test_intermediate_tensors_are_tapped() -> None:
    model = load("g (float[2] x) => (float[2] y) { a = Neg(x) y = Exp(a) }").to_proto()
    x = np.array([1, 2], np.float32)
    found = IntermediateTap({"x": x})(model, ["x", "a", "y"])
    assert found["a"].tolist() == [-1, -2]
    assert set(found) == {"x", "a", "y"}


def test_a_judge_on_given_inputs_uses_just_those() -> None:
    judge = judge_on_feeds(
        load("g (float[2] x) => (float[2] y) { y = Relu(x) }"), {"x": np.array([1, 2], np.float32)}
    )
    identity = load("g (float[2] x) => (float[2] y) { y = Abs(x) }")
    assert judge.judge(identity, Numerics.EXACT).verdict == "proven"  # the inputs are positive
