"""Drawings say what the models hold: nodes, tensors, fates, bodies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt.graph.diff import diff_models
from graphopt.report.drawn import DrawnBody, DrawnNode
from graphopt.viewing import view

ROOT = Path(__file__).parents[1]
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
BEFORE = f"""{HEAD} g (float[batch, 4] x) => (float[batch, 4] y) <float[4] w = {{0, 2, 3, 4}}>
{{ a = Identity(x) b = Mul(a, w) y = Relu(b) }}"""
AFTER = f"""{HEAD} g (float[batch, 4] x) => (float[batch, 4] y) <float[4] w = {{0, 2, 3, 4}}>
{{ b = Mul(x, w) c = Neg(b) y = Elu <alpha = 2.0> (c) }}"""


def load(text: str) -> graphopt.Model:
    return graphopt.load(onnx.parser.parse_model(text))


def by_output(body: DrawnBody) -> dict[str, DrawnNode]:
    return {body.tensors[n.outputs[0]].name: n for n in body.nodes if n.kind == "node"}


def test_fates_are_those_of_the_difference() -> None:
    before, after = load(BEFORE), load(AFTER)
    drawn = view(after, before)
    assert drawn.before is not None
    old, new = by_output(drawn.before.bodies[0]), by_output(drawn.after.bodies[0])
    assert {name: n.state for name, n in old.items()} == {"a": "removed", "b": "changed", "y": "changed"}
    assert {name: n.state for name, n in new.items()} == {"b": "changed", "c": "added", "y": "changed"}
    assert drawn.after.bodies[0].nodes[old["b"].pair] is new["b"]
    assert drawn.before.bodies[0].nodes[new["y"].pair] is old["y"]
    assert old["a"].pair == -1
    changes = {
        c.text.partition(" =")[0]: c.changes for c in diff_models(before, after).nodes if c.kind == "changed"
    }
    assert new["b"].changes == changes["b"] == ("input 0: a -> x",)
    assert new["y"].changes == changes["y"]
    assert new["y"].attributes == ("alpha=2",)


def test_tensors_have_types_and_initializers_what_their_values_are_like() -> None:
    body = view(load(AFTER)).after.bodies[0]
    tensors = {t.name: t for t in body.tensors}
    assert tensors["c"].type == "float[batch,4]"  # inferred
    assert (tensors["x"].kind, tensors["y"].kind, tensors["c"].kind) == ("input", "output", "value")
    assert tensors["w"].kind == "initializer"
    assert tensors["w"].stats == "16 B: 0, 2, 3, 4"


def test_statistics_of_an_initializer() -> None:
    values = np.linspace(-1, 1, 101, dtype=np.float32)
    values[7] = np.nan
    node = helper.make_node("Add", ["x", "w"], ["y"])
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [101]) for n in "xy"]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [numpy_helper.from_array(values, "w")])
    body = view(
        graphopt.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    ).after.bodies[0]
    (stats,) = (t.stats for t in body.tensors if t.name == "w")
    finite = values[np.isfinite(values)]
    assert "404 B: -1 to 1" in stats
    assert f"std {finite.std():.3g}" in stats
    assert "0.99% zeros" in stats
    assert "1 NaN or infinite" in stats


def test_ports_are_drawn_and_paired_by_name() -> None:
    drawn = view(load(AFTER.replace("float[batch, 4] x)", "float[batch, 4] x, float z)")), load(BEFORE))
    ports = {n.name: n for n in drawn.after.bodies[0].nodes if n.kind != "node"}
    assert ports["x"].state == ports["y"].state == "same"
    assert ports["z"].state == "added"
    assert drawn.before is not None
    assert drawn.before.bodies[0].nodes[ports["x"].pair].name == "x"
    assert drawn.after.node_count == 3  # ports are no nodes


def test_bodies_know_their_holder_and_what_they_capture() -> None:
    text = f"""{HEAD} g (float[4] x, bool c) => (float[4] y) {{
        a = Neg(x)
        y = If (c) <then_branch = t () => (float[4] p) {{ p = Relu(a) }},
                    else_branch = e () => (float[4] q) {{ q = Identity(x) }}>
    }}"""
    drawn = view(load(text), load(text))
    main, *inner = drawn.after.bodies
    (holder,) = (i for i, n in enumerate(main.nodes) if n.op == "If")
    assert [b.label.rpartition("/")[2] for b in inner] == ["then_branch", "else_branch"]
    for i, body in enumerate(inner, 1):
        assert (body.parent, body.holder, body.pair) == (0, holder, i)
        assert i in main.nodes[holder].bodies
    captured = [main.tensors[t].name for t in main.nodes[holder].captures]
    assert captured == ["a", "x"]
    assert {t.name: t.kind for t in inner[0].tensors} == {"a": "outer", "p": "output"}
    # It stands below what only its bodies read.
    neg = by_output(main)["a"]
    assert main.nodes[holder].y > neg.y


def test_a_call_leads_to_the_function() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17, "my" : 1]>
    g (float[4] x) => (float[4] y) { y = my.double(x) }
    <domain: "my", opset_import: ["" : 17]> double (a) => (b) { b = Add(a, a) }"""
    drawn = view(load(text))
    main, function = drawn.after.bodies
    assert function.label == "function my::double"
    assert function.parent == -1
    (call,) = (n for n in main.nodes if n.kind == "node")
    assert call.op == "my::double"
    assert call.bodies == (1,)


@pytest.mark.parametrize("name", ["messy", "digits_transformer_dynamo", "digits_lstm"])
def test_real_models(name: str) -> None:
    """Every node of every body is there, each in a place of its own, and every line has a place or is cut."""
    source = graphopt.load(ROOT / "models" / f"{name}.onnx")
    result = graphopt.run(source, verify="off")
    drawn = view(result.model, source)
    assert drawn.before is not None
    assert drawn.before.node_count == result.report.before.nodes
    assert drawn.after.node_count == result.report.after.nodes
    states = drawn.before.states()
    diff = diff_models(source, result.model)
    assert states["removed"] == sum(c.kind == "removed" for c in diff.nodes)
    assert drawn.after.states()["added"] == sum(c.kind == "added" for c in diff.nodes)
    assert (
        states["changed"] == drawn.after.states()["changed"] == sum(c.kind == "changed" for c in diff.nodes)
    )
    for body in (*drawn.before.bodies, *drawn.after.bodies):
        assert len({(n.x, n.y) for n in body.nodes}) == len(body.nodes)
        assert all(n.x + drawn.node_width <= body.width + 1 for n in body.nodes)


def test_removed_nodes_say_which_pass_removed_them() -> None:
    path = Path(__file__).parents[1] / "models" / "digits_cnn.onnx"
    result = graphopt.run(path)
    drawn = view(result.model, graphopt.load(path), result.removed_by)
    assert drawn.before is not None
    removed = [n for n in drawn.before.bodies[0].nodes if n.state == "removed" and n.kind == "node"]
    by = {n.op: n.made_by for n in removed}
    assert by["Conv"] == "fold-conv-bn"
    assert by["Identity"] == "remove-identity"
    assert by["Constant"] == "lift-constants"
    assert all(n.made_by for n in removed)
    plain = view(result.model, graphopt.load(path))
    assert plain.before is not None
    assert not any(n.made_by for n in plain.before.bodies[0].nodes)
