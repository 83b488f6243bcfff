"""The Rewriter: atomic sites, garbage, interface preservation, undo, journal, limits."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import pytest

from graphopt.errors import PassError, RefusedRewrite
from graphopt.graph.journal import Journal, SiteKey
from graphopt.graph.rewriter import Rewriter
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.graph.verify import verify_model, verify_touched
from graphopt.ir import Graph, Node
from graphopt.model import Model

CHAIN = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 4] y)
<float[4] w = {1, 2, 3, 4}>
{
  a = Relu(x)
  b = Identity(a)
  c = Add(b, w)
  y = Sigmoid(c)
}
"""


def open_state(text: str, journal: Journal | None = None, keep: tuple[str, ...] = ()) -> GraphState:
    model = Model.load(onnx.parser.parse_model(text))
    state = GraphState(model, infer(model), journal, keep)
    state.pass_name = "test"
    return state


def main(state: GraphState) -> Rewriter:
    return Rewriter(state, state.model.graph)


def ops(state: GraphState) -> list[str]:
    state.finish()
    verify_model(state)
    return [n.op for n in state.model.graph.nodes]


def node(graph: Rewriter, op: str) -> Node:
    (found,) = graph.by_op(op)
    return found


def snapshot(state: GraphState) -> bytes:
    return state.finish().to_proto().SerializeToString(deterministic=True)


def test_bypass_redirects_readers_and_erases_the_node() -> None:
    state = open_state(CHAIN)
    graph = main(state)
    identity = node(graph, "Identity")
    graph.bypass(identity.outputs[0], identity.inputs[0])
    assert ops(state) == ["Relu", "Add", "Sigmoid"]
    (change,) = state.journal.changes
    assert change.key == SiteKey("test", "main", "b")
    assert change.removed == ["Identity"]
    assert change.added == []


def test_bypass_of_what_nobody_reads_touches_nothing() -> None:
    state = open_state(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) { y = Relu(x) dead = Identity(y) }"""
    )
    graph = main(state)
    identity = node(graph, "Identity")
    graph.bypass(identity.outputs[0], identity.inputs[0])
    assert not state.journal.changes
    assert not state.touched


def test_bypass_of_an_output_renames_the_producer() -> None:
    state = open_state(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y, float[2] z) { a = Relu(x) y = Identity(a) z = Neg(a) }
        """
    )
    graph = main(state)
    identity = node(graph, "Identity")
    graph.bypass(identity.outputs[0], identity.inputs[0])
    assert ops(state) == ["Relu", "Neg"]
    assert [t.name for t in state.model.graph.outputs] == ["y", "z"]
    assert node(graph, "Neg").inputs[0].name == "y"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{ y = Identity(x) }", "passes an input on"),
        ("<float[2] w = {1, 2}> { y = Identity(w) }", "passes a constant on"),
        ("{ z = Relu(x) y = Identity(z) }", "is an output itself"),
    ],
)
def test_bypass_of_an_output_declines(body: str, reason: str) -> None:
    outputs = "float[2] y, float[2] z" if "z =" in body else "float[2] y"
    state = open_state(f'<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => ({outputs}) {body}')
    graph = main(state)
    before = snapshot(state)
    identity = node(graph, "Identity")
    graph.bypass(identity.outputs[0], identity.inputs[0])
    assert not state.journal.changes
    (refusal,) = state.journal.refusals
    assert reason in refusal.reason
    assert snapshot(state) == before


def test_replace_keeps_name_readers_and_collects_garbage() -> None:
    state = open_state(CHAIN)
    graph = main(state)
    add = node(graph, "Add")
    relu = node(graph, "Relu")
    made = graph.replace(add.outputs[0], "Sub", [relu.inputs[0], graph.new_constant("k", np.float32([1]))])
    assert ops(state) == ["Sub", "Sigmoid"]  # Relu, Identity and w lost their readers
    assert made.outputs[0].name == "c"
    assert made.made_by == "test"
    assert [c.name for c in state.model.graph.initializers] == ["k"]
    assert state.journal.changes[0].removed == ["Add", "Identity", "Relu"]


def test_a_refused_site_leaves_no_trace() -> None:
    state = open_state(CHAIN)
    graph = main(state)
    before = snapshot(state)
    add, relu = node(graph, "Add"), node(graph, "Relu")
    with graph.site(add, "try"):
        middle = graph.op("Neg", [relu.inputs[0]])
        graph.replace(add.outputs[0], "Mul", [middle, graph.new_constant("k", np.float32([1]))])
        graph.set_attr(relu, "alpha", 1.0)
        raise RefusedRewrite("changed my mind")
    assert snapshot(state) == before
    assert [r.reason for r in state.journal.refusals] == ["changed my mind"]
    assert not state.journal.changes


def test_an_exception_in_a_site_undoes_it_and_propagates() -> None:
    state = open_state(CHAIN)
    graph = main(state)
    before = snapshot(state)

    def buggy() -> None:
        with graph.site(node(graph, "Add"), "bug"):
            graph.set_input(node(graph, "Sigmoid"), 0, graph.inputs[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        buggy()
    assert snapshot(state) == before


def test_a_limit_withholds_later_sites() -> None:
    state = open_state(CHAIN, Journal(limit=1))
    graph = main(state)
    identity, sigmoid = node(graph, "Identity"), node(graph, "Sigmoid")
    graph.bypass(identity.outputs[0], identity.inputs[0])
    before = snapshot(state)
    graph.set_input(sigmoid, 0, graph.inputs[0])
    assert snapshot(state) == before
    assert len(state.journal.changes) == 1
    assert state.journal.withheld == 1


def test_a_skipped_site_is_withheld_and_others_are_not() -> None:
    state = open_state(CHAIN, Journal(skip=frozenset({SiteKey("test", "main", "b")})))
    graph = main(state)
    identity, sigmoid = node(graph, "Identity"), node(graph, "Sigmoid")
    graph.bypass(identity.outputs[0], identity.inputs[0])
    graph.set_input(sigmoid, 0, identity.outputs[0])
    assert ops(state) == ["Relu", "Identity", "Sigmoid"]


def test_keep_globs_protect_nodes() -> None:
    state = open_state(CHAIN, keep=("b",))
    graph = main(state)
    identity = node(graph, "Identity")
    graph.bypass(identity.outputs[0], identity.inputs[0])
    assert not state.journal.changes
    assert ops(state) == ["Relu", "Identity", "Add", "Sigmoid"]


IF = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[2] x, bool c) => (float[2] y)
{
  a = Relu(x)
  y = If (c) <
    then_branch = t () => (float[2] r) { n = Neg(a) r = Abs(n) },
    else_branch = e () => (float[2] s) { n = Exp(a) s = Identity(n) }
  >
}
"""


def test_a_capture_counts_as_a_use_and_follows_a_redirect() -> None:
    state = open_state(IF)
    graph = main(state)
    relu = node(graph, "Relu")
    assert graph.n_uses(relu.outputs[0]) == 2
    graph.bypass(relu.outputs[0], relu.inputs[0])
    assert ops(state) == ["If"]
    onnx.checker.check_model(state.model.to_proto())


def test_inline_moves_a_branch_and_keeps_names_unique() -> None:
    state = open_state(IF.replace("a = Relu(x)", "n0 = Neg(x) a = Relu(n0)"))
    graph = main(state)
    holder = node(graph, "If")
    graph.inline(holder, holder.attrs["else_branch"], "always false")
    assert ops(state) == ["Neg", "Relu", "Exp", "Identity"]
    proto = state.model.to_proto()
    onnx.checker.check_model(proto)
    assert proto.graph.node[-1].output == ["y"]


def test_inline_can_be_undone() -> None:
    state = open_state(IF)
    graph = main(state)
    before = snapshot(state)
    holder = node(graph, "If")
    with graph.site(holder, "try"):
        graph.inline(holder, holder.attrs["then_branch"], "always true")
        raise RefusedRewrite("no")
    assert snapshot(state) == before


def test_inline_of_a_branch_that_passes_an_outer_tensor_on() -> None:
    state = open_state(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, bool c) => (float[2] y)
        {
          y = If (c) <
            then_branch = t () => (float[2] r) { r = Identity(x) },
            else_branch = e () => (float[2] s) { s = Neg(x) }
          >
        }
        """
    )
    graph = main(state)
    holder = node(graph, "If")
    graph.inline(holder, holder.attrs["then_branch"], "always true")
    assert ops(state) == ["Identity"]
    assert state.model.graph.nodes[0].outputs[0].name == "y"


def test_order_is_repaired_when_a_reader_moves_below() -> None:
    state = open_state(CHAIN)
    graph = main(state)
    relu, sigmoid = node(graph, "Relu"), node(graph, "Sigmoid")
    # Relu, the first node, now reads something computed after it was placed.
    late = graph.op("Neg", [graph.inputs[0]])
    later = graph.op("Exp", [late])
    with graph.site(relu, "reads later"):
        fresh = graph.op("Neg", [graph.inputs[0]])
        graph.set_input(relu, 0, graph.op("Exp", [fresh]))
    order = ops(state)
    assert order.index("Exp") < order.index("Relu")
    assert sigmoid in state.model.graph.nodes
    assert later.name


def test_a_cycle_is_reported_with_the_name_of_the_pass() -> None:
    state = open_state(CHAIN)
    graph = main(state)
    relu, sigmoid, add = node(graph, "Relu"), node(graph, "Sigmoid"), node(graph, "Add")
    graph.set_input(relu, 0, add.outputs[0])
    with pytest.raises(PassError, match=r"'test'.*cycle"):
        verify_touched(state)
    assert sigmoid in graph.by_op("Sigmoid")


def test_the_verifier_sees_a_tensor_that_nothing_computes() -> None:
    from graphopt.ir import Variable

    state = open_state(CHAIN)
    graph = main(state)
    graph.set_input(node(graph, "Sigmoid"), 0, Variable("ghost"))
    with pytest.raises(PassError, match="'ghost'"):
        verify_touched(state)


def test_the_verifier_sees_a_wrong_attribute() -> None:
    state = open_state(CHAIN)
    graph = main(state)
    sigmoid = node(graph, "Sigmoid")
    graph.replace(sigmoid.outputs[0], "Softmax", [sigmoid.inputs[0]], attrs={"axes": 1})
    with pytest.raises(PassError, match="'axes'"):
        verify_touched(state)


def test_shared_initializers_survive_until_the_last_reader_goes() -> None:
    state = open_state(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y, float[2] z) <float[2] w = {1, 2}> { y = Add(x, w) z = Mul(x, w) }
        """
    )
    graph = main(state)
    for op, left in (("Add", 1), ("Mul", 0)):
        old = node(graph, op)
        graph.replace(old.outputs[0], "Relu", [old.inputs[0]])
        assert len(state.model.graph.initializers) == left


def test_an_initializer_unread_from_the_start_is_nobodys_garbage() -> None:
    state = open_state(CHAIN.replace("<float[4] w =", "<float[1] unused = {0}, float[4] w ="))
    graph = main(state)
    identity = node(graph, "Identity")
    graph.bypass(identity.outputs[0], identity.inputs[0])
    assert "unused" in {c.name for c in state.model.graph.initializers}
    (unused,) = (c for c in state.model.graph.initializers if c.name == "unused")
    assert graph.erase_constant(unused)
    assert not graph.erase_constant(next(iter(state.model.graph.initializers)))


def test_links_of_graphsurgeon_are_right_after_finish() -> None:
    state = open_state(CHAIN)
    graph = main(state)
    identity = node(graph, "Identity")
    graph.bypass(identity.outputs[0], identity.inputs[0])
    result: Graph = state.finish().graph
    relu, add, sigmoid = result.nodes
    assert list(relu.outputs[0].outputs) == [add]
    assert list(add.outputs[0].inputs) == [add]
    assert sigmoid.i() is add


def test_a_domain_is_imported_once_and_forgotten_when_the_site_is_undone() -> None:
    state = open_state(CHAIN)
    graph = main(state)
    before = snapshot(state)
    relu = node(graph, "Relu")
    with graph.site(relu, "no"):
        graph.import_domain("com.microsoft", 1)
        graph.replace(relu.outputs[0], "Gelu", [relu.inputs[0]], domain="com.microsoft")
        raise RefusedRewrite("changed my mind")
    assert graph.opset_of("com.microsoft") is None
    assert snapshot(state) == before

    with graph.site(relu, "yes"):
        graph.import_domain("com.microsoft", 1)
        graph.import_domain("com.microsoft", 2)
        graph.replace(relu.outputs[0], "Gelu", [relu.inputs[0]], domain="com.microsoft")
    proto = state.finish().to_proto()
    assert {o.domain: o.version for o in proto.opset_import} == {"": 17, "com.microsoft": 1}
    onnx.checker.check_model(proto)


def test_a_domain_that_a_function_imports_is_imported_by_the_model() -> None:
    state = open_state("""
        <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 17]> f (a) => (b) { b = Relu(a) }
    """)
    (function,) = state.model.graph.functions
    graph = Rewriter(state, function)
    relu = node(graph, "Relu")
    with graph.site(relu, "yes"):
        graph.import_domain("com.microsoft", 1)
        graph.replace(relu.outputs[0], "Gelu", [relu.inputs[0]], domain="com.microsoft")
    proto = state.finish().to_proto()
    assert "com.microsoft" in {o.domain for o in proto.opset_import}
    assert {o.domain for o in proto.functions[0].opset_import} == {"", "com.microsoft"}


def test_facts_that_a_refused_site_stated_are_forgotten() -> None:
    state = open_state(CHAIN)
    graph = main(state)
    relu, add = node(graph, "Relu"), node(graph, "Add")
    before = graph.shape(relu.outputs[0]), graph.shape(add.outputs[0])
    with graph.site(add, "try"):
        graph.bypass(add.outputs[0], graph.new_constant("k", np.zeros((7, 4), np.float32)))
        assert graph.shape(add.outputs[0]) == (7, 4)
        raise RefusedRewrite("no")
    assert (graph.shape(relu.outputs[0]), graph.shape(add.outputs[0])) == before


def test_a_swept_snapshot_of_a_trial_lacks_what_the_trial_left_without_readers() -> None:
    state = open_state(CHAIN)
    graph = main(state)
    before = [n.op for n in graph.nodes()]
    relu, add = node(graph, "Relu"), node(graph, "Add")
    with graph.trial(add):
        graph.set_input(add, 0, relu.inputs[0])
        assert [n.op for n in graph.snapshot().graph.nodes] == before
        assert [n.op for n in graph.snapshot(swept=True).graph.nodes] == ["Add", "Sigmoid"]
    assert [n.op for n in graph.snapshot(swept=True).graph.nodes] == before
    assert graph.producer(relu.outputs[0]) is relu
