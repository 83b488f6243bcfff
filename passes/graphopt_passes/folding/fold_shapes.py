"""Integers that follow from the shapes of tensors become constants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx

from graphopt.passkit import (
    Array,
    GraphView,
    Node,
    NodePass,
    Numerics,
    PassContext,
    Rewriter,
    Tensor,
)
from graphopt_passes.folding._store import store

_T = onnx.TensorProto
_DTYPES: dict[int | None, type[np.generic]] = {
    _T.INT64: np.int64,
    _T.INT32: np.int32,
    _T.BOOL: np.bool_,
}


def known_value(tensor: Tensor, graph: GraphView) -> Array | None:
    """The value of a small int64, int32 or bool tensor that follows from shapes, None if it does not."""
    dtype = graph.dtype(tensor)
    if dtype not in _DTYPES:
        return None
    elements = graph.sym_value(tensor)
    shape = graph.static_shape(tensor)
    if elements is None or shape is None or math.prod(shape) != len(elements):
        return None
    if not all(isinstance(e, int) for e in elements):
        return None
    value: Array = np.array(elements, _DTYPES[dtype]).reshape(shape)
    return value


@dataclass(frozen=True)
class FoldShapes(NodePass):
    """Small integer and boolean tensors whose elements follow from known dims become constants.

    Shape, Size, Gather, Concat, arithmetic and comparisons of dims: whatever the data, their values are
    the same on every run where the dims that they read are fixed, though others may be symbolic. Values
    have at most 64 elements, so the model does not grow.

    Left alone: floats, and nodes that are kept by name.
    """

    name: ClassVar[str] = "fold-shapes"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def candidates(self, graph: Rewriter, ctx: PassContext) -> list[Node]:
        """Readers before producers: what only a folded node read goes without being folded itself."""
        return super().candidates(graph, ctx)[::-1]

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fold the outputs of one node."""
        if node.op == "Constant":
            return
        for t in list(node.outputs):
            if not t.name or not graph.is_live(node) or not graph.is_read(t) or graph.keeps(node):
                continue
            value = known_value(t, graph)
            if value is None:
                continue
            store(t, value, graph, f"its value is always {_text(value)}")


def _text(value: Array) -> str:
    text = np.array2string(value, threshold=8, separator=", ")
    return text if value.dtype.kind != "b" else text.lower()
