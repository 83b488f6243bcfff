"""Operands that are computed from the dims of the node's own input become constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.passkit import (
    AttributeRef,
    Dim,
    GraphView,
    Node,
    NodePass,
    Numerics,
    PassContext,
    RefusedRewrite,
    Rewriter,
    Sym,
    Tensor,
)

# What the Slice operator's documentation recommends for "to the end".
_END = 2**63 - 1
_INT32_END = 2**31 - 1
_INT32 = 6


def _at_least(dim: Dim, bound: int) -> bool:
    low = dim.lower if isinstance(dim, Sym) else dim
    return low is not None and low >= bound


def _is_positive(dim: Dim) -> bool:
    return _at_least(dim, 1)


def reshape_operand(target: Sequence[Dim], source: Sequence[Dim] | None, allowzero: bool) -> list[int] | None:
    """Constant elements for the shape operand of a Reshape, the same for every size of the input.

    An element equal to the input dim at its place becomes 0, which copies that dim and is right also
    for an empty tensor. What is left, at most one element, becomes -1, provided that every other one is
    at least 1: a -1 next to a dim of size 0 is an error where the original is not.

    Args:
        target: the elements of the operand, of which some are symbolic.
        source: dims of the input, None when its rank is unknown.
        allowzero: an element 0 means size 0 rather than a copy.

    Returns:
        The elements for a Reshape without `allowzero`, None if there are none.
    """
    source = source or ()
    if allowzero and any(e == 0 for e in target):
        return None
    result: list[int] = []
    sizes: list[Dim] = []  # of the elements that are not -1
    inferred = 0
    for i, element in enumerate(target):
        if isinstance(element, Sym):
            if i < len(source) and element == source[i]:
                result.append(0)
                sizes.append(element)
                continue
            inferred += 1
            result.append(-1)
        else:
            inferred += element == -1
            result.append(element)
            if element != -1:
                sizes.append(source[i] if element == 0 and i < len(source) else element)
    if inferred > 1:
        return None
    if -1 in result and isinstance(target[result.index(-1)], Sym) and not all(map(_is_positive, sizes)):
        return None
    return result


def expand_operand(target: Sequence[Dim], source: Sequence[Dim]) -> list[int] | None:
    """Constant elements for the shape operand of an Expand: 1 wherever it asks for the dim it has."""
    offset = len(target) - len(source)
    result: list[int] = []
    for i, element in enumerate(target):
        if isinstance(element, Sym):
            if i < offset or element != source[i - offset]:
                return None
            result.append(1)
        else:
            result.append(element)
    return result


def _from_end(element: Dim, dim: Dim) -> int | None:
    """`element` as an index from the end of an axis of size `dim`, if it is one for every size."""
    offset = element - dim
    if isinstance(offset, Sym) or offset >= 0:
        return None
    # dim - k is below 0 where dim < k and then counts from the end a second time; -1 alone does not matter.
    return offset if offset == -1 or _is_positive(dim + offset + 1) else None


@dataclass(frozen=True)
class FoldDimOperands(NodePass):
    """Reshape(x, [N, 64, H]) = Reshape(x, [0, 64, -1]), where x has N rows and every H comes out the same.

    Shape, target or index operands that are computed from dims become constants where the operator has
    a constant way to say the same: Reshape by 0 (copy the dim) and -1 (what is left), Expand by 1 (keep
    the dim), Slice by "to the end" and by counting from the end, Gather by an index from the end. Right
    for every size, empty tensors included.

    Refuses when two elements of a Reshape's target are neither fixed nor copies, or one is and a dim beside
    it may be 0. Left alone where an element is not known as an expression in dims.
    """

    name: ClassVar[str] = "fold-dim-operands"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Reshape", "Expand", "Slice", "Gather")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Make the operands of one node constant."""
        if graph.keeps(node) or any(isinstance(v, AttributeRef) for v in node.attrs.values()):
            return
        _RULES[node.op](node, graph)


def _dims(tensor: Tensor | None, graph: GraphView) -> tuple[Dim, ...] | None:
    """The elements of an integer operand that is not constant, at least one of them symbolic."""
    if tensor is None or graph.is_constant(tensor):
        return None
    elements = graph.sym_value(tensor)
    if elements is None:
        return None
    dims = tuple(e for e in elements if not isinstance(e, float))
    return dims if len(dims) == len(elements) else None


def _set(node: Node, slot: int, values: list[int] | int, graph: Rewriter, why: str) -> None:
    old = node.inputs[slot]
    dtype = np.int32 if graph.dtype(old) == _INT32 else np.int64
    graph.set_input(node, slot, graph.new_constant(old.name, np.array(values, dtype)), why)


def _reshape(node: Node, graph: Rewriter) -> None:
    target = _dims(graph.input(node, 1), graph)
    if target is None:
        return
    allowzero = bool(graph.attr(node, "allowzero"))
    values = reshape_operand(target, graph.shape(node.inputs[0]), allowzero)
    if values is None:
        raise RefusedRewrite("its target has more than one dim that only the input's size decides")
    with graph.site(node, f"the target is always {values}"):
        _set(node, 1, values, graph, "")
        if allowzero:
            graph.set_attr(node, "allowzero", None)


def _expand(node: Node, graph: Rewriter) -> None:
    target, source = _dims(graph.input(node, 1), graph), graph.shape(node.inputs[0])
    if target is None or source is None:
        return
    values = expand_operand(target, source)
    if values is not None:
        _set(node, 1, values, graph, f"the target is always {values} up to broadcasting")


def _slice(node: Node, graph: Rewriter) -> None:
    source = graph.shape(node.inputs[0])
    starts, ends = graph.input(node, 1), graph.input(node, 2)
    if graph.opset < 10 or source is None or starts is None or ends is None:
        return
    first, last = _elements(starts, graph), _elements(ends, graph)
    if first is None or last is None or len(first) != len(last):
        return
    axes = _ints(node, 3, len(first), graph, default=None)
    steps = _ints(node, 4, len(first), graph, default=1)
    if axes is None or steps is None or not all(-len(source) <= a < len(source) for a in axes):
        return
    begin, stop = list(first), list(last)
    largest = _INT32_END if graph.dtype(ends) == _INT32 else _END
    for i, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        dim = source[axis]
        low, high = begin[i], stop[i]
        if isinstance(low, Sym):
            from_end = _from_end(low, dim)
            begin[i] = low if from_end is None else from_end
        if isinstance(high, Sym):
            if step > 0 and _at_least(high - dim, 0):
                stop[i] = largest
            else:
                from_end = _from_end(high, dim)
                stop[i] = high if from_end is None else from_end
    for slot, old, new in ((1, first, begin), (2, last, stop)):
        values = [d for d in new if not isinstance(d, Sym)]
        if len(values) == len(new) and tuple(old) != tuple(new):
            _set(node, slot, values, graph, f"the {'starts' if slot == 1 else 'ends'} are always {values}")


def _elements(tensor: Tensor, graph: GraphView) -> tuple[Dim, ...] | None:
    """Elements of an operand, constant or not."""
    ints = graph.ints(tensor)
    return _dims(tensor, graph) if ints is None else tuple(ints)


def _ints(node: Node, slot: int, count: int, graph: GraphView, default: int | None) -> list[int] | None:
    """An operand that must be known; 0, 1, 2, ... or `default` throughout where it is omitted."""
    tensor = graph.input(node, slot)
    if tensor is None:
        return list(range(count)) if default is None else [default] * count
    ints = graph.ints(tensor)
    return ints if ints is not None and len(ints) == count else None


def _gather(node: Node, graph: Rewriter) -> None:
    source, indices = graph.shape(node.inputs[0]), _dims(graph.input(node, 1), graph)
    if source is None or indices is None or graph.opset < 11:
        return
    axis = graph.attr(node, "axis") or 0
    if not -len(source) <= axis < len(source):
        return
    values: list[int] = []
    for index in indices:
        value = _from_end(index, source[axis]) if isinstance(index, Sym) else index
        if value is None:
            return
        values.append(value)
    shape = graph.static_shape(node.inputs[1])
    if shape is not None:
        _set(node, 1, values if shape else values[0], graph, f"the indices are always {values}")


_RULES: dict[str, Callable[[Node, Rewriter], None]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "Slice": _slice,
    "Gather": _gather,
}
