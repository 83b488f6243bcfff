"""Rewriter.resize: facts and declarations follow what shrinks, and nothing else may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx
import pytest

from graphopt.graph.rewriter import Rewriter
from graphopt.pipeline.base import Numerics, Pass, PassContext
from graphopt.testing import Applied, apply

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
PLAIN = f"""{HEAD} g (float[N, 4] x) => (float[N, 2] y) <float[4, 6] w, float[6, 2] v>
{{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }}"""


@dataclass(frozen=True)
class Shrink(Pass):
    """Cuts the columns of w, and says of `sizes` how large tensors are then."""

    name: ClassVar[str] = "shrink"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    sizes: tuple[tuple[str, int], ...] = (("a", 3), ("b", 3))
    also: bool = True  # cut the rows of v as well
    then: Callable[[Rewriter], None] | None = field(default=None)

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Cut and state."""
        if not graph.is_main:
            return
        first, last = graph.by_op("MatMul")
        with graph.site(first, "cut"):
            graph.set_input(first, 1, graph.new_constant("w", np.ones((4, 3), np.float32)))
            if self.also:
                graph.set_input(last, 1, graph.new_constant("v", np.ones((3, 2), np.float32)))
            shapes = {}
            for node in graph.nodes():
                for t in node.outputs:
                    for name, size in self.sizes:
                        if t.name == name:
                            shapes[t] = (*(graph.shape(t) or ())[:-1], size)
            graph.resize(shapes)
        if self.then is not None:
            self.then(graph)


def shrink(model: str, *, infer: bool = True, **options: object) -> Applied:
    proto = onnx.parser.parse_model(model)
    for name, shape in (("w", (4, 6)), ("v", (6, 2))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    if infer:
        proto = onnx.shape_inference.infer_shapes(proto)
    return apply(Shrink(**options), proto)  # type: ignore[arg-type]


def declared(done: Applied) -> dict[str, int]:
    return {v.name: v.type.tensor_type.shape.dim[-1].dim_value for v in done.proto.graph.value_info}


PLAIN = PLAIN.replace("<float[4, 6] w, float[6, 2] v>", "")


def test_facts_and_declarations_follow() -> None:
    seen = []
    done = shrink(PLAIN, then=lambda g: seen.extend(g.shape(n.outputs[0]) for n in g.nodes()))
    assert [shape[-1] for shape in seen if shape] == [3, 3, 2]
    assert declared(done) == {"a": 3, "b": 3}
    assert done.journal.changes


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sizes": (("a", 4), ("b", 4))}, "should have 4"),
        ({"sizes": (("a", 3),)}, "b would have a size of 3"),
    ],
)
def test_what_is_not_confirmed(options: dict[str, object], reason: str) -> None:
    seen = []
    done = shrink(PLAIN, then=lambda g: seen.extend(g.shape(n.outputs[0]) for n in g.nodes()), **options)
    assert not done.journal.changes
    assert any(reason in r for r in done.reasons), done.reasons
    assert [shape[-1] for shape in seen if shape] == [6, 6, 2]
    assert declared(done) == {"a": 6, "b": 6}


def test_a_size_may_reach_sizes() -> None:
    model = f"""{HEAD} g (float[N, 4] x) => (float[N, 2] y)
    {{ a = MatMul(x, w) s = Shape(a) r = Neg(a) b = Reshape(r, s) y = MatMul(b, v) }}"""
    assert shrink(model, sizes=(("a", 3), ("r", 3), ("b", 3))).journal.changes


def test_a_size_may_not_be_computed_with() -> None:
    model = f"""{HEAD} g (float[N, 4] x) => (float[N, 2] y)
    {{ a = MatMul(x, w) s = Size(a) f = Cast <to: int = 1> (s) b = Mul(a, f) y = MatMul(b, v) }}"""
    done = shrink(model)
    assert any("computes with the size" in r for r in done.reasons), done.reasons


def test_a_body_that_depends_on_a_size() -> None:
    model = f"""{HEAD} g (float[N, 4] x, bool c) => (float[N, 2] y, float[N, M] z) {{
        a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)
        z = If (c) < then_branch = t () => (float[N, M] p) {{ p = Neg(a) }},
                     else_branch = e () => (float[N, M] q) {{ q = Abs(a) }} >
    }}"""
    done = shrink(model)
    assert any("depends on a size that changes" in r for r in done.reasons), done.reasons
