"""Products of one tensor with several weights become one product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.passkit import (
    Array,
    Constant,
    GraphView,
    Node,
    NodePass,
    Numerics,
    PassContext,
    RefusedRewrite,
    Rewriter,
    Tensor,
)

_SPLIT_BY_INPUT = 13  # from this opset on, Split takes the sizes as an input


@dataclass(frozen=True)
class _Product:
    """x @ weight, and the bias that is added to it, if any.

    Attributes:
        node: the MatMul.
        weight: constant of shape (K, N).
        add: the Add that is the product's only reader.
        bias: its constant operand, of N elements along the last axis.
    """

    node: Node
    weight: Constant
    add: Node | None = None
    bias: Constant | None = None

    @property
    def output(self) -> Tensor:
        """What the rest of the graph reads."""
        return (self.add or self.node).outputs[0]

    @property
    def width(self) -> int:
        """Columns of the weight."""
        return int(self.weight.shape[1])


@dataclass(frozen=True)
class MergeMatMuls(NodePass):
    """x W1 + b1, x W2 + b2, ... = Split(x [W1 W2 ...] + [b1 b2 ...]): query, key and value in one product.

    Only where it takes fewer nodes: three products, or two that all have a bias.

    Refuses when: a weight or bias has another reader (it would be stored twice); the merged weight would be
    larger than the limit for folded constants.
    """

    name: ClassVar[str] = "merge-matmuls"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("MatMul",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Merge the products of the left operand of `node`, once per operand."""
        x = node.inputs[0]
        readers = [n for n in graph.consumers(x) if graph.is_op(n, "MatMul") and n.inputs[0] is x]
        if len(readers) < 2 or readers[0] is not node:
            return
        found = [p for n in readers if (p := _product(graph, n)) is not None]
        for group in _by_dtype(found):
            self._merge(graph, ctx, x, group)

    def _merge(self, graph: Rewriter, ctx: PassContext, x: Tensor, group: Sequence[_Product]) -> None:
        biased = all(p.bias is not None for p in group)
        if len(group) < (2 if biased else 3):
            return
        if sum(p.weight.nbytes for p in group) > ctx.limits.folded_bytes:
            raise RefusedRewrite(f"the merged weight of {x.name} would be too large")
        first = group[0]
        with graph.site(first.node, f"{len(group)} products of {x.name} become one"):
            weight = _side_by_side(graph, [p.weight for p in group], f"{first.weight.name}_merged")
            product = graph.op("MatMul", [x, weight], hint=f"{first.node.outputs[0].name}_merged")
            outputs = [p.node.outputs[0] for p in group]
            if biased:
                biases = [p.bias for p in group if p.bias is not None]
                bias = _side_by_side(graph, biases, f"{x.name}_bias_merged")
                product = graph.op("Add", [product, bias], hint=f"{first.output.name}_merged")
                outputs = [p.output for p in group]
            widths = [p.width for p in group]
            if graph.opset >= _SPLIT_BY_INPUT:
                sizes = graph.new_constant(f"{x.name}_widths", np.array(widths, np.int64))
                graph.replace(outputs, "Split", [product, sizes], attrs={"axis": -1})
            else:
                graph.replace(outputs, "Split", [product], attrs={"axis": -1, "split": widths})


def joined(parts: Sequence[Array]) -> Array:
    """`parts` side by side along the last axis."""
    return np.concatenate(parts, axis=-1)


def _side_by_side(graph: Rewriter, constants: Sequence[Constant], name: str) -> Constant:
    arrays = [a for c in constants if (a := graph.array(c)) is not None]
    return graph.new_constant(name, joined(arrays))


def _by_dtype(products: Sequence[_Product]) -> list[list[_Product]]:
    groups: dict[str, list[_Product]] = {}
    for p in products:
        groups.setdefault(str(p.weight.dtype), []).append(p)
    return list(groups.values())


def _product(graph: Rewriter, node: Node) -> _Product | None:
    """`node` as a product that may be merged, None (with a reason where it is near) otherwise."""
    weight = graph.constant(node.inputs[1])
    if weight is None or len(weight.shape) != 2 or not graph.is_live(node):
        return None
    if graph.keeps(node) or graph.keeps(weight):
        return None
    if not _is_private(graph, node.inputs[1]):
        graph.refuse(node, f"its weight {weight.name} has another reader")
        return None
    add = graph.sole_consumer(node.outputs[0])
    if add is None or not graph.is_op(add, "Add") or not graph.is_live(add) or graph.keeps(add):
        return _Product(node, weight)
    other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    bias = graph.constant(other)
    if bias is None or not _is_private(graph, other) or not _is_row(bias, weight):
        return _Product(node, weight)
    return _Product(node, weight, add, bias)


def _is_private(graph: GraphView, tensor: Tensor) -> bool:
    return graph.n_uses(tensor) == 1 and not graph.is_output(tensor)


def _is_row(bias: Constant, weight: Constant) -> bool:
    """One number per column, which adds no dimension to any product."""
    return tuple(bias.shape) == (weight.shape[1],) and bias.dtype == weight.dtype
