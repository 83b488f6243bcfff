"""Merge consecutive elementwise operators with constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.passkit import Array, Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.fusion._affine import rounded, wide
from graphopt_passes.fusion._operands import FLOATS, absorbed, constant_operand, ends_composite

_ADDITIVE = ("Add", "Sub")
_MULTIPLICATIVE = ("Mul", "Div")


@dataclass(frozen=True)
class MergeAffine(NodePass):
    """(x + a) + b = x + (a + b) and (x * a) * b = x * (a * b), Sub and Div included.

    A constant that comes first keeps its place: (a - x) + b = (a + b) - x, and (a / x) * b = (a * b) / x.
    Integers are merged under Add, Sub and Mul, which wrap around alike in either order.

    Refuses when: the inner operator has another reader or is a graph output; the merged constant is
    larger than both, or not finite; the inner operator looks like the end of an activation spelled out, as
    the 0.5 of Gelu does; the numbers are such that the original rounds away what the merged
    form keeps (large numbers that cancel, products that leave the range of the type half way).
    """

    name: ClassVar[str] = "merge-affine"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = (*_ADDITIVE, *_MULTIPLICATIVE)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Merge `node` with the operator of its kind before it."""
        outer = constant_operand(graph, node)
        if outer is None:
            return
        kind = _ADDITIVE if node.op in _ADDITIVE else _MULTIPLICATIVE
        before = graph.producer_op(outer.variable, *kind)
        inner = None if before is None else constant_operand(graph, before)
        if before is None or inner is None:
            return
        dtype = graph.dtype(inner.constant)
        if dtype is None or (dtype not in FLOATS and "Div" in (node.op, before.op)):
            return
        first, second = graph.constant(inner.constant), graph.constant(outer.constant)
        assert first is not None
        assert second is not None
        shape = np.broadcast_shapes(tuple(first.shape), tuple(second.shape))
        size = int(np.prod(shape))
        if size > max(int(np.prod(first.shape)), int(np.prod(second.shape))):
            raise RefusedRewrite(f"{inner.constant.name} and {outer.constant.name} broadcast to a larger one")
        if size * np.dtype(first.dtype).itemsize > ctx.limits.growth_bytes and not (
            graph.only_read_by(inner.constant, (before,)) or graph.only_read_by(outer.constant, (node,))
        ):
            raise RefusedRewrite(f"{inner.constant.name} and {outer.constant.name} have other readers")
        if absorbed(graph, node, outer.variable, before.op) is None:
            return
        if graph.dtype(outer.constant) != dtype:
            return
        if int(np.prod(first.shape)) == 1 and ends_composite(graph, inner.variable):
            raise RefusedRewrite(f"{before.op} may end an activation that runtimes execute as one")
        a, b = first.values, second.values
        merge = _add if kind is _ADDITIVE else _multiply
        values, op, constant_first = merge(
            a, b, before.op, node.op, inner.constant_first, outer.constant_first, dtype in FLOATS
        )
        with graph.site(node, f"{before.op} and {node.op} merged"):
            constant = graph.new_constant(inner.constant.name, values)
            operands = [constant, inner.variable] if constant_first else [inner.variable, constant]
            graph.replace(node.outputs[0], op, operands)


def _add(
    a: Array, b: Array, inner: str, outer: str, inner_first: bool, outer_first: bool, floats: bool
) -> tuple[Array, str, bool]:
    """Constant, operator and order for `(x inner a) outer b`.

    The inner value is `sign*x + signed a`; the outer one keeps or flips it and adds `signed b`.
    """
    sign = -1 if inner == "Sub" and inner_first else 1
    flips = outer == "Sub" and outer_first
    signed_a = -wide(a) if inner == "Sub" and not inner_first else wide(a)
    signed_b = -wide(b) if outer == "Sub" and not outer_first else wide(b)
    if flips:
        sign, signed_a = -sign, -signed_a
    if not floats:
        # The same in the integers' own arithmetic, which wraps around.
        own_a, own_b = a.copy(), b.copy()
        if (inner == "Sub" and not inner_first) != flips:
            own_a = np.negative(own_a)
        if outer == "Sub" and not outer_first:
            own_b = np.negative(own_b)
        return np.asarray(np.add(own_a, own_b)), "Add" if sign > 0 else "Sub", sign < 0
    total = signed_a + signed_b
    largest = np.maximum(np.abs(signed_a), np.abs(signed_b))
    if ((largest > 1024.0) & (np.abs(total) < 0.5 * largest)).any():
        raise RefusedRewrite("the constants are large and cancel, which the original does with rounding")
    return rounded(total, a.dtype, "constant"), "Add" if sign > 0 else "Sub", sign < 0


def _multiply(
    a: Array, b: Array, inner: str, outer: str, inner_first: bool, outer_first: bool, floats: bool
) -> tuple[Array, str, bool]:
    """Constant, operator and order for `(x inner a) outer b`."""
    if not floats:
        return np.asarray(np.multiply(a, b)), "Mul", False
    safe = 2.0**7 if a.dtype == np.float16 else 2.0**60
    wide_a, wide_b = wide(a), wide(b)
    for values in (np.abs(wide_a), np.abs(wide_b)):
        if not ((values <= safe) & ((values >= 1 / safe) | (values == 0))).all():
            raise RefusedRewrite(f"the intermediate product may leave the range of {a.dtype}")
    if inner == "Div" and inner_first and outer == "Div" and outer_first:
        raise RefusedRewrite("both Divs take their constant first")
    with np.errstate(all="ignore"):
        if outer == "Div" and outer_first:  # b / (x * a), b / (x / a)
            total = wide_b * wide_a if inner == "Div" else wide_b / wide_a
            return rounded(total, a.dtype, "constant"), "Div", True
        if inner == "Div" and inner_first:  # (a / x) * b, (a / x) / b
            total = wide_a / wide_b if outer == "Div" else wide_a * wide_b
            return rounded(total, a.dtype, "constant"), "Div", True
        if inner == "Div" and outer == "Div":
            return rounded(wide_a * wide_b, a.dtype, "constant"), "Div", False
        total = (1.0 / wide_a if inner == "Div" else wide_a) * (1.0 / wide_b if outer == "Div" else wide_b)
        return rounded(total, a.dtype, "constant"), "Mul", False
