"""merge-casts: a Cast of a Cast that lost nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import onnx

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.cleanup.operands import attribute

_T: Final = onnx.TensorProto

# Integers: (signed, bits).
_INTEGERS: Final[dict[int, tuple[bool, int]]] = {
    _T.INT8: (True, 8),
    _T.INT16: (True, 16),
    _T.INT32: (True, 32),
    _T.INT64: (True, 64),
    _T.UINT8: (False, 8),
    _T.UINT16: (False, 16),
    _T.UINT32: (False, 32),
    _T.UINT64: (False, 64),
}
# Floats: (bits of precision, largest exponent); a wider one of both holds every value, NaN and infinity
# of a narrower one, denormals included.
_FLOATS: Final[dict[int, tuple[int, int]]] = {
    _T.FLOAT16: (11, 15),
    _T.BFLOAT16: (8, 127),
    _T.FLOAT: (24, 127),
    _T.DOUBLE: (53, 1023),
}


@dataclass(frozen=True)
class MergeCasts(NodePass):
    """Cast(Cast(x, b), c) = Cast(x, c), and x where c is its type, when b holds every value of x's type.

    Leaves alone an inner Cast that may round, wrap or saturate, and pairs whose direct cast is undefined
    or written differently: floats to integers by way of a wider float, negative integers to unsigned ones
    by way of a float, numbers to strings, the 4- and 8-bit floats.
    """

    name: ClassVar[str] = "merge-casts"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Cast",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Read past the inner Cast."""
        middle, result = graph.input(node, 0), graph.output(node, 0)
        inner = graph.producer_op(middle, "Cast")
        source = None if inner is None else graph.input(inner, 0)
        if inner is None or middle is None or source is None or result is None or not graph.is_local(middle):
            return
        start = graph.dtype(source)
        if start is None:
            return
        through, end = attribute(graph, inner, "to"), attribute(graph, node, "to")
        if not is_removable(start, through, end):
            names = " -> ".join(_T.DataType.Name(t) for t in (start, through, end))
            raise RefusedRewrite(f"Cast {names} is not the direct cast for every value")
        if start == end:
            graph.bypass(result, source, "Cast there and back")
            return
        if graph.keeps(node) or graph.keeps(inner):
            raise RefusedRewrite(f"{middle.name} is kept")
        graph.set_input(node, 0, source, "Cast of a Cast that lost nothing")


def holds_all(narrow: int, wide: int) -> bool:
    """Whether type `wide` represents every value of type `narrow`."""
    if narrow == wide:
        return True
    if narrow == _T.BOOL:
        return wide in _INTEGERS or wide in _FLOATS
    if narrow in _INTEGERS:
        signed, bits = _INTEGERS[narrow]
        if wide in _INTEGERS:
            wide_signed, wide_bits = _INTEGERS[wide]
            return wide_bits > bits and (wide_signed or not signed)
        if wide in _FLOATS:
            # The most negative integer is a power of two, so the sign costs no precision.
            precision, exponent = _FLOATS[wide]
            return bits - signed <= precision and bits - signed <= exponent
        return False
    if narrow in _FLOATS and wide in _FLOATS:
        return all(w >= n for n, w in zip(_FLOATS[narrow], _FLOATS[wide], strict=True))
    return False


def is_removable(start: int, through: int, end: int) -> bool:
    """Whether casting `start` to `through` to `end` gives what casting `start` to `end` does, always."""
    if not holds_all(start, through):
        return False
    if start == end or end == _T.BOOL or start == _T.BOOL:
        return end == _T.BOOL or end in _INTEGERS or end in _FLOATS
    if end in _FLOATS:
        return True  # both round the same number
    if end in _INTEGERS and start in _INTEGERS:
        return through in _INTEGERS or holds_all(start, end)
    return False
