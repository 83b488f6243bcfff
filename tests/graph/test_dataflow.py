"""Dataflow views."""

from __future__ import annotations

import subprocess
import sys

import networkx as nx
import onnx.parser
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.graph.dataflow import critical_path, dependency_graph, liveness, reads, regions
from graphopt.graph.shapes import infer
from graphopt.ir import Graph, Node, Variable
from graphopt.model import Model


def parse(text: str) -> Model:
    return Model.load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}'))


DIAMOND = """
    g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}>
    { a = Relu (x) b = Neg (a) c = Abs (a) d = Add (b, c) e = Add (d, a) y = Mul (e, w) }
"""


def ops(nodes: list[Node]) -> list[str]:
    return [n.op for n in nodes]


def test_dependency_graph_labels_edges_with_tensors() -> None:
    graph = parse("g (float[2] x) => (float[2] y) { a, b = Split <axis = 0> (x) y = Add (a, b) }").graph
    found = dependency_graph(graph)
    split, add = graph.nodes
    assert list(found.edges) == [(split, add)]
    assert [t.name for t in found.edges[split, add]["tensors"]] == ["a", "b"]


def test_captured_tensors_are_dependencies() -> None:
    model = parse("""
        g (bool c, float[N] x) => (float[N] y) {
            a = Relu (x)
            y = If (c) <
                then_branch = t () => (float[N] ty) { ty = Neg (a) },
                else_branch = e () => (float[N] ey) { h = Abs (x) ey = Neg (h) }
            >
        }
    """)
    relu, if_ = model.graph.nodes
    assert {t.name for t in reads(if_)} == {"c", "a", "x"}
    assert dependency_graph(model.graph).has_edge(relu, if_)


def test_liveness() -> None:
    model = parse(DIAMOND)
    found = liveness(model.graph, infer(model), {"N": 10})
    by_name = {t.name: interval for t, interval in found.intervals.items()}
    size = 10 * 4 * 4
    assert (by_name["x"].start, by_name["x"].end) == (-1, 0)
    assert (by_name["a"].start, by_name["a"].end) == (0, 4)
    assert (by_name["y"].start, by_name["y"].end) == (5, 6)
    assert "w" not in by_name
    assert found.live == [2 * size, 2 * size, 3 * size, 4 * size, 3 * size, 2 * size]
    assert found.peak == 4 * size
    assert found.peak_node is model.graph.nodes[3]
    assert not found.unknown


def test_liveness_reports_what_it_does_not_know() -> None:
    model = parse(DIAMOND)
    found = liveness(model.graph, infer(model))
    assert {t.name for t in found.unknown} == set("xabcdey")
    assert found.peak == 0


def test_critical_path() -> None:
    model = parse(DIAMOND)
    path, total = critical_path(model.graph)
    assert ops(path) == ["Relu", "Neg", "Add", "Add", "Mul"]
    assert total == 5
    path, total = critical_path(model.graph, lambda node: 10.0 if node.op == "Abs" else 1.0)
    assert ops(path) == ["Relu", "Abs", "Add", "Add", "Mul"]
    assert total == 14


def test_a_region_does_not_swallow_a_path_that_leaves_it() -> None:
    model = parse("g (float[N] x) => (float[N] y) { a = Relu (x) b = Neg (a) c = Abs (b) y = Add (a, c) }")
    found = regions(model.graph, lambda node: node.op != "Abs")
    assert [ops(r) for r in found] == [["Relu", "Neg"], ["Add"]]


def test_regions_join_across_an_unrelated_detour() -> None:
    model = parse("""
        g (float[N] x, float[N] z) => (float[N] y)
        { m = Relu (z) n = Abs (m) a = Neg (x) y = Add (a, n) }
    """)
    found = regions(model.graph, lambda node: node.op != "Abs")
    assert [ops(r) for r in found] == [["Relu"], ["Neg", "Add"]]


@st.composite
def bodies(draw: st.DrawFn) -> Graph:
    tensors = [Variable("x")]
    nodes = []
    for i in range(draw(st.integers(1, 14))):
        inputs = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3, unique=True))
        output = Variable(f"t{i}")
        nodes.append(Node(draw(st.sampled_from(["In", "Out"])), f"n{i}", inputs=inputs, outputs=[output]))
        tensors.append(output)
    return Graph(nodes=nodes, inputs=[tensors[0]], outputs=[tensors[-1]])


@settings(max_examples=200, deadline=None)
@given(bodies())
def test_regions_are_connected_convex_and_complete(body: Graph) -> None:
    graph = dependency_graph(body)
    found = regions(body, lambda node: node.op == "In")
    assert sorted(n.name for r in found for n in r) == sorted(n.name for n in body.nodes if n.op == "In")
    label = {n: n for n in body.nodes} | {n: r[0] for r in found for n in r}
    quotient = nx.DiGraph((label[a], label[b]) for a, b in graph.edges if label[a] is not label[b])
    # Contracting all regions at once leaves no cycle: stronger than each being convex.
    assert nx.is_directed_acyclic_graph(quotient)
    for region in found:
        assert nx.is_weakly_connected(graph.subgraph(region))


@settings(max_examples=50, deadline=None)
@given(bodies())
def test_critical_path_is_the_longest(body: Graph) -> None:
    path, total = critical_path(body)
    assert total == len(path) == len(nx.dag_longest_path(dependency_graph(body)))


def test_networkx_is_imported_only_on_demand() -> None:
    code = "import sys, graphopt.graph.dataflow; sys.exit('networkx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
