"""Matching: operands in either order, repeated variables, omitted inputs, attributes, closedness."""

from __future__ import annotations

import onnx.parser
import pytest

from graphopt.graph.rewriter import Rewriter
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.model import Model
from graphopt.pattern.build import OpPattern, PatternBuilder
from graphopt.pattern.match import Failure, Match, find

P = PatternBuilder()
HEAD = '<ir_version: 8, opset_import: ["" : 17, "custom" : 1]> '


def at(pattern: OpPattern, text: str, root: str = "y") -> tuple[Match | None, Failure]:
    model = Model.load(onnx.parser.parse_model(HEAD + text))
    state = GraphState(model, infer(model))
    graph = Rewriter(state, model.graph)
    failure = Failure()
    (node,) = (n for n in model.graph.nodes if any(t.name == root for t in n.outputs))
    return find(pattern, node, graph, failure), failure


SILU = P.op("Mul", P.var("x"), P.op("Sigmoid", P.var("x")), name="mul")


@pytest.mark.parametrize("operands", ["x, s", "s, x"])
def test_commutative_operands_match_in_either_order(operands: str) -> None:
    match, _ = at(SILU, f"g (float[2] x) => (float[2] y) {{ s = Sigmoid(x) y = Mul({operands}) }}")
    assert match is not None
    assert match["x"].name == "x"
    assert [n.op for n in match.nodes] == ["Mul", "Sigmoid"]


def test_a_variable_used_twice_is_the_same_tensor() -> None:
    match, failure = at(SILU, "g (float[2] x, float[2] z) => (float[2] y) { s = Sigmoid(x) y = Mul(z, s) }")
    assert match is None
    assert "expected" in failure.reason or "not computed" in failure.reason


def test_backtracking_over_nested_commutative_operands() -> None:
    pattern = P.op("Add", P.op("Mul", P.var("a"), P.var("b")), P.op("Mul", P.var("b"), P.var("c")))
    text = (
        "g (float[2] p, float[2] q, float[2] r) => (float[2] y) { m = Mul(q, p) n = Mul(p, r) y = Add(n, m) }"
    )
    match, _ = at(pattern, text)
    assert match is not None
    assert match["b"].name == "p"


def test_an_interior_output_with_another_reader_does_not_match() -> None:
    match, failure = at(
        SILU, "g (float[2] x) => (float[2] y, float[2] z) { s = Sigmoid(x) y = Mul(x, s) z = Neg(s) }"
    )
    assert match is None
    assert "another reader" in failure.reason


def test_an_interior_graph_output_does_not_match() -> None:
    match, failure = at(SILU, "g (float[2] x) => (float[2] y, float[2] s) { s = Sigmoid(x) y = Mul(x, s) }")
    assert match is None
    assert "graph output" in failure.reason


def test_a_reader_in_a_nested_body_counts() -> None:
    text = """g (float[2] x, bool c) => (float[2] y, float[2] z) {
        s = Sigmoid(x) y = Mul(x, s)
        z = If (c) <then_branch = t () => (float[2] r) { r = Neg(s) }, else_branch = e () => (float[2] q) { q = Neg(x) }>
    }"""
    assert at(SILU, text)[0] is None


def test_shared_nodes_may_have_other_readers() -> None:
    pattern = P.op("Mul", P.var("x"), P.op("Sigmoid", P.var("x"), shared=True))
    match, _ = at(pattern, "g (float[2] x) => (float[2] y, float[2] s) { s = Sigmoid(x) y = Mul(x, s) }")
    assert match is not None
    assert [n.op for n in match.shared] == ["Sigmoid"]


@pytest.mark.parametrize("call", ["Clip(x)", 'Clip(x, "")', 'Clip(x, "", hi)'])
def test_omitted_optional_inputs_bind_none(call: str) -> None:
    pattern = P.op("Clip", P.var("x"), P.const("lo", optional=True), P.const("hi", optional=True))
    call = call.replace('""', "")
    match, _ = at(pattern, f"g (float[2] x) => (float[2] y) <float hi = {{6}}> {{ y = {call} }}")
    assert match is not None
    assert match.get("lo") is None
    assert (match.get("hi") is None) == ("hi" not in call)
    with pytest.raises(KeyError):
        match["lo"]


def test_attributes_compare_with_the_schema_default() -> None:
    text = "g (float[2,3] x) => (float[2,3] y) { y = Softmax(x) }"
    assert at(P.op("Softmax", P.var("x"), axis=-1), text)[0] is not None
    assert at(P.op("Softmax", P.var("x"), axis=1), text)[0] is None
    bound, _ = at(P.op("Softmax", P.var("x"), axis=P.attr(name="axis")), text)
    assert bound is not None
    assert bound.value("axis") == -1


def test_constants_are_initializers_or_constant_nodes_but_never_overridable() -> None:
    pattern = P.op("Add", P.var("x"), P.const("c"))
    initializer = "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add(w, x) }"
    node = "g (float[2] x) => (float[2] y) { w = Constant <value = float[2] {1, 2}> () y = Add(x, w) }"
    overridable = "g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Add(x, w) }"
    assert at(pattern, initializer)[0] is not None
    assert at(pattern, node)[0] is not None
    assert at(pattern, overridable)[0] is None


def test_scalars_have_one_element_of_the_value() -> None:
    pattern = P.op("Mul", P.var("x"), P.scalar(0.5))
    text = "g (float[2] x) => (float[2] y) <float{} h = {{{}}}> {{ y = Mul(x, h) }}"
    assert at(pattern, text.format("", "0.5"))[0] is not None
    assert at(pattern, text.format("[1]", "0.5"))[0] is not None
    assert at(pattern, text.format("", "0.50001"))[0] is None
    match, failure = at(pattern, text.format("[2]", "0.5, 0.5"))
    assert match is None
    assert "2 elements" in failure.reason


def test_a_custom_domain_is_not_the_standard_operator() -> None:
    assert (
        at(P.op("Sigmoid", P.var("x")), "g (float[2] x) => (float[2] y) { y = custom.Sigmoid(x) }")[0] is None
    )


def test_either_takes_the_first_alternative_that_fits() -> None:
    root = P.either(P.op("Sqrt", P.var("a")), P.var("a"), name="which")
    pattern = P.op("Div", P.var("x"), root)
    text = "g (float[2] x, float[2] v) => (float[2] y) {{ {} y = Div(x, {}) }}"
    deep, _ = at(pattern, text.format("s = Sqrt(v)", "s"))
    flat, _ = at(pattern, text.format("s = Exp(v)", "s"))
    assert deep is not None
    assert deep.value("which") == 0
    assert deep["a"].name == "v"
    assert flat is not None
    assert flat.value("which") == 1
    assert flat["a"].name == "s"


def test_further_inputs_are_a_miss_unless_allowed() -> None:
    text = "g (float[1,1,4] x) => (float[1,1,2] y) <float[1,1,3] w = {1,2,3}, float[1] b = {1}> { y = Conv(x, w, b) }"
    assert at(P.op("Conv", P.var("x"), P.const("w")), text)[0] is None
    assert at(P.op("Conv", P.var("x"), P.const("w"), exact=False), text)[0] is not None


def test_the_nearest_miss_is_explained() -> None:
    pattern = P.op("Mul", P.op("Exp", P.op("Neg", P.var("x"))), P.scalar(2.0))
    _, failure = at(
        pattern, "g (float[2] x) => (float[2] y) <float t = {2}> { n = Abs(x) e = Exp(n) y = Mul(e, t) }"
    )
    assert failure.reason == "Abs where Neg was expected"
