"""Rewriter.insert_behind: nodes between a producer and everybody who sees its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from graphopt.passkit import Numerics, Pass, PassContext, RefusedRewrite, Rewriter
from graphopt.testing import apply, assert_rewrites, assert_same_interface, parse

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { y = Neg(x) z = Exp(y) }"""


@dataclass(frozen=True)
class Behind(Pass):
    """Two more nodes behind every Neg of the input model."""

    name: ClassVar[str] = "behind"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    fail: bool = False

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        for node in graph.by_op("Neg"):
            if node.made_by or graph.producer_op(node.inputs[0], "Neg"):
                continue
            if any(graph.is_op(n, "Abs", "Neg") for n in graph.consumers(node.outputs[0])):
                continue
            y = node.outputs[0]
            with graph.site(node, "more nodes"):
                raw = graph.insert_behind(y, [("Neg", [], {}), ("Neg", [], {})])
                assert graph.producer(raw) is node
                assert graph.shape(raw) == graph.shape(y)
                assert graph.dtype(raw) == 1
                if self.fail:
                    raise RefusedRewrite("changed its mind")


def test_readers_and_outputs_see_the_last_of_them() -> None:
    done = assert_rewrites(Behind(), MODEL, ops={"Neg": 3, "Exp": 1})
    assert_same_interface(parse(MODEL), done.proto)
    text = [(n.op_type, n.input[0], n.output[0]) for n in done.proto.graph.node]
    assert text[-1] == ("Exp", "y", "z")
    assert [o for op, _, o in text if op == "Neg"][-1] == "y"


def test_undone() -> None:
    done = apply(Behind(fail=True), MODEL)
    assert done.ops == {"Neg": 1, "Exp": 1}
    assert [n.output[0] for n in done.proto.graph.node] == ["y", "z"]


@pytest.mark.parametrize("keep", ["y"])
def test_kept(keep: str) -> None:
    done = apply(Behind(), MODEL, keep=[keep])
    assert done.ops == {"Neg": 1, "Exp": 1}
