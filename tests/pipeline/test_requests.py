"""Requests that cannot be met are refused before any pass runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import graphopt
from graphopt.errors import UserError
from graphopt.passkit import (
    GraphView,
    Node,
    NodePass,
    Numerics,
    PassContext,
    Rewriter,
    is_selected,
    select_nodes,
)
from graphopt.testing import parse

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x, bool c) => (float[N, 4] z) {
    [first] a = Relu(x)
    z = If (c) <
        then_branch = t () => (float[N, 4] p) { [inner_scale] p = Neg(a) },
        else_branch = e () => (float[N, 4] q) { q = Abs(a) }
    >
}"""
RAN: list[str] = []


@dataclass(frozen=True)
class Early(NodePass):
    """Says that it ran."""

    name: ClassVar[str] = "early"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        RAN.append(node.op)


@dataclass(frozen=True)
class Asking(Early):
    """Has requests to check."""

    name: ClassVar[str] = "asking"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    layers: tuple[str, ...] = ()
    data: bool = False
    most: int = 9

    def needs_data(self) -> bool:
        return self.data

    def globs(self) -> tuple[str, ...]:
        return self.layers

    def check(self, bodies: Sequence[GraphView], ctx: PassContext) -> None:
        assert bodies[-1].is_main
        nodes = [node for body in bodies for node in body.nodes()]
        if len(nodes) > self.most:
            has = "with" if ctx.has_data else "without"
            raise UserError(f"asking: {len(nodes)} nodes are more than {self.most}, {has} data")


def run(*passes: Any, data: Any = None) -> None:
    RAN.clear()
    graphopt.run(parse(MODEL), list(passes), data=data)


@pytest.mark.parametrize(
    ("item", "says", "fix"),
    [
        (Asking(data=True), "asking needs data to measure on", "--data"),
        (Asking(layers=("frist",)), "asking: 'frist' matches no node of the model", "close to it: first"),
        (Asking(layers=("*", "/inner_sca*")), "'/inner_sca*' matches no node", "inner_scale"),
        (Asking(layers=("x",)), "'x' matches no node", ""),  # an input of the graph is none
        (Asking(most=3), "4 nodes are more than 3, without data", ""),
    ],
)
def test_refused_before_anything_runs(item: Asking, says: str, fix: str) -> None:
    with pytest.raises(UserError) as raised:
        run(Early(), item)
    assert says in str(raised.value)
    assert fix in (raised.value.fix or "")
    assert RAN == []


@pytest.mark.parametrize("glob", ["first", "a", "inner_*", "q"])
def test_names_of_nodes_and_of_outputs_in_all_bodies(glob: str) -> None:
    run(Asking(layers=(glob,)))
    assert RAN


def test_with_data_it_runs() -> None:
    data = {"x": np.ones((2, 4), np.float32), "c": np.array(True)}
    run(Asking(data=True), data=data)
    assert RAN
    with pytest.raises(UserError, match="with data"):
        run(Asking(most=1), data=data)


def test_selecting_nodes() -> None:
    nodes = [node for body in graphopt.load(parse(MODEL)).bodies() for node in body.nodes if node.op != "If"]
    assert [n.op for n in select_nodes(nodes, ["*"], ["a"])] == ["Abs", "Neg"]
    assert [n.op for n in select_nodes(nodes, ["inner_*", "q"])] == ["Abs", "Neg"]
    assert all(is_selected(n) for n in nodes)
