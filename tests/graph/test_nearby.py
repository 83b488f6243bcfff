from __future__ import annotations

import onnx.parser

from graphopt.graph.rewriter import Rewriter
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.model import Model

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x, bool k) => (float[N, 4] y, float[N, 4] z)
<float[4] w = {1, 2, 3, 4}>
{
  a = Relu(x)
  b = Identity(a)
  c = Add(b, w)
  y = Sigmoid(c)
  z = If(k) <
    then_branch = t () => (float[N, 4] p) { p = Neg(a) },
    else_branch = e () => (float[N, 4] q) { q = Abs(c) }
  >
}
"""


def open_state() -> tuple[GraphState, Rewriter]:
    model = Model.load(onnx.parser.parse_model(TEXT))
    state = GraphState(model, infer(model))
    state.pass_name = "test"
    return state, Rewriter(state, model.graph)


def ops(state: GraphState, mark: int, reach: int) -> list[list[str]]:
    groups = state.nearby.since(mark, reach)
    return sorted(sorted(op for _, op in kinds) for kinds in groups.values())


def test_what_is_near_goes_as_far_as_asked_also_into_bodies() -> None:
    state, graph = open_state()
    (relu,) = graph.by_op("Relu")
    state.touched.append(relu)
    assert ops(state, 0, 0) == [["Relu"]]
    assert ops(state, 0, 1) == [["Identity", "Relu"], ["Neg"]]
    assert ops(state, 0, 2) == [["Add", "Identity", "Relu"], ["Neg"]]
    assert ops(state, 0, 9) == [["Abs"], ["Add", "Identity", "Relu", "Sigmoid"], ["Neg"]]


def test_only_what_was_touched_since_counts() -> None:
    state, graph = open_state()
    (relu,), (add,) = graph.by_op("Relu"), graph.by_op("Add")
    state.touched += [relu, add]
    assert ops(state, 1, 0) == [["Add"]]
    assert ops(state, 2, 5) == []


def test_an_answer_is_kept_until_something_changes() -> None:
    state, graph = open_state()
    (relu,) = graph.by_op("Relu")
    state.touched.append(relu)
    first = state.nearby.since(0, 1)
    assert state.nearby.since(0, 1) is first
    (identity,) = graph.by_op("Identity")
    graph.bypass(identity.outputs[0], identity.inputs[0])
    assert ops(state, 0, 1) == [["Abs"], ["Add", "Relu", "Sigmoid"], ["Neg"]]


def test_a_node_that_is_gone_is_not_near() -> None:
    state, graph = open_state()
    (identity,) = graph.by_op("Identity")
    state.touched.append(identity)
    graph.bypass(identity.outputs[0], identity.inputs[0])
    assert all("Identity" not in kinds for kinds in ops(state, 0, 0))
