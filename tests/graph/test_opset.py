import onnx.parser
import pytest

from graphopt.errors import RefusedRewrite
from graphopt.graph.journal import Journal
from graphopt.graph.rewriter import Rewriter
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.model import Model

TEXT = """<ir_version: 7, opset_import: ["" : 11, "local" : 1]>
g (float[1, 3] x, bool c) => (float[1, 3] y) {
    y = If (c) <
        then_branch = t () => (float[1, 3] a) { a = Relu(x) },
        else_branch = e () => (float[1, 3] b) { b = local.f(x) }
    >
}
<opset_import: ["" : 10], domain: "local">
f (a) => (b) { b = Neg(a) }"""


def rewriter(journal: Journal | None = None) -> Rewriter:
    model = Model.load(onnx.parser.parse_model(TEXT))
    state = GraphState(model, infer(model), journal)
    state.pass_name = "test"
    return Rewriter(state, model.graph)


def opsets(graph: Rewriter) -> list[int]:
    return [body.opset_imports[""] for body in graph.snapshot().bodies()]


def test_all_bodies_at_once() -> None:
    graph = rewriter()
    with graph.raise_opset(17, "newer") as bodies:
        assert [old for _, old in bodies] == [10, 11, 11, 11]
        assert [body.opset for body, _ in bodies] == [17] * 4
        assert all(body.has_op("CastLike") for body, _ in bodies)
    model = graph.snapshot()
    assert opsets(graph) == [17] * 4
    assert model.ir_version == 8
    assert model.to_proto().ir_version == model.copy().ir_version == 8
    (change,) = graph._state.journal.changes
    assert str(change.key) == "test at ai.onnx"


def test_only_what_is_older() -> None:
    graph = rewriter()
    with graph.raise_opset(11, "newer") as bodies:
        assert [body.label for body, _ in bodies] == ["function local.f"]
    assert opsets(graph) == [11] * 4
    assert graph.snapshot().ir_version == 7
    with graph.raise_opset(9, "older") as bodies:
        assert bodies == []
    assert len(graph._state.journal.changes) == 1


def test_a_refusal_takes_everything_back() -> None:
    graph = rewriter()

    def rewrite() -> None:
        with graph.raise_opset(17, "newer") as bodies:
            body, _ = bodies[0]
            body.replace(body.nodes()[0].outputs[0], "Abs", [body.inputs[0]])
            raise RefusedRewrite("no")

    with pytest.raises(RefusedRewrite):
        rewrite()
    assert opsets(graph) == [10, 11, 11, 11]
    assert [n.op for n in graph.snapshot().graph.functions[0].nodes] == ["Neg"]
    assert not graph._state.journal.changes


def test_bisection_takes_everything_back() -> None:
    graph = rewriter(Journal(limit=0))
    with graph.raise_opset(17, "newer"):
        pass
    assert opsets(graph) == [10, 11, 11, 11]
    assert graph._state.journal.withheld == 1


def test_training_information() -> None:
    graph = rewriter()
    graph._state.model.origin.training_info.add().algorithm.node.add(op_type="Relu")
    with pytest.raises(RefusedRewrite, match="training"), graph.raise_opset(17, "newer"):
        raise AssertionError
    assert opsets(graph) == [10, 11, 11, 11]
