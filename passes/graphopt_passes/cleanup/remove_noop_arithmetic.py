"""remove-noop-arithmetic: operations with a neutral element that keep every bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from graphopt.passkit import GraphView, Node, NodePass, Numerics, PassContext, Rewriter, Tensor
from graphopt_passes.cleanup.operands import FLOATS, INTEGERS, is_neutral_shape, uniform

_BOTH_SIDES: Final = frozenset({"Add", "Mul", "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor"})


@dataclass(frozen=True)
class RemoveNoopArithmetic(NodePass):
    """x * 1 = x / 1 = x ** 1 = x - 0 = x, x + 0 = x for integers, and the like, where every bit stays.

    For floats x + 0.0 is not among them, since it turns -0.0 into 0.0 (see remove-add-zero), but x + -0.0
    and x - 0.0 are. x ** 1 is for floats only. Further: x and True, x or False, x xor False, x & -1,
    x | 0, x ^ 0, shifts by 0.

    Leaves alone an operation that broadcasts x to another shape, or may.
    """

    name: ClassVar[str] = "remove-noop-arithmetic"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = (
        *("Mul", "Div", "Pow", "Sub", "Add", "And", "Or", "Xor"),
        *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift"),
    )

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the other operand."""
        left, right, result = graph.input(node, 0), graph.input(node, 1), graph.output(node, 0)
        if left is None or right is None or result is None:
            return
        if self._is_noop(graph, node, left, right, result):
            graph.bypass(result, left, f"{node.op} with its neutral element")
        elif node.op in _BOTH_SIDES and self._is_noop(graph, node, right, left, result):
            graph.bypass(result, right, f"{node.op} with its neutral element")

    @staticmethod
    def _is_noop(graph: GraphView, node: Node, data: Tensor, constant: Tensor, result: Tensor) -> bool:
        value = uniform(graph, constant)
        if value is None or not is_neutral(node.op, value, graph.dtype(constant)):
            return False
        if node.op == "Pow" and graph.dtype(data) not in FLOATS:
            return False  # an integer power goes through a float
        return is_neutral_shape(graph, result, data, constant)


def is_neutral(op: str, value: np.generic, dtype: int | None) -> bool:
    """Whether `x op value` is x bit for bit, for every x.

    Args:
        op: operator type; `value` is its right operand (or either one, if it is commutative).
        value: the operand.
        dtype: its element type, an onnx.TensorProto.DataType.
    """
    if op in ("And", "Or", "Xor"):
        return bool(value) is (op == "And")
    if dtype in INTEGERS:
        number = int(value)
        if op == "BitwiseAnd":
            return number == (-1 if number < 0 else (1 << (8 * value.dtype.itemsize)) - 1)
        neutral = 1 if op in ("Mul", "Div", "Pow") else 0
        return number == neutral
    if dtype in FLOATS:
        if op in ("Mul", "Div", "Pow"):
            return float(value) == 1.0
        if op in ("Add", "Sub"):
            # -0.0 + 0.0 and -0.0 - -0.0 are 0.0.
            return float(value) == 0.0 and bool(np.signbit(float(value))) is (op == "Add")
    return False
