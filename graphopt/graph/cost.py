"""How much work a model is: arithmetic operations and bytes moved, per node, in symbolic dims.

One multiply-add counts as two operations. Matrix operations are counted from their definitions, moves of
data (Reshape, Transpose, Gather, ...) as none, everything else as one operation per element. Bodies of
control flow are counted once, however often they run; calls of local functions are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from graphopt.graph.dims import Dim, Sym, evaluate, product
from graphopt.graph.facts import Facts
from graphopt.io.dtypes import NP_DTYPES, PACKED_BITS, STRING
from graphopt.ir import Body, Node, Tensor

_MOVES = frozenset(
    "Cast CastLike Compress Concat ConcatFromSequence Constant ConstantOfShape DepthToSpace Dropout Expand "
    "EyeLike Flatten Gather GatherElements GatherND Identity If Loop NonZero OneHot Optional "
    "OptionalGetElement OptionalHasElement Pad Range Reshape ReverseSequence Scan Scatter ScatterElements "
    "ScatterND SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength Shape "
    "Size Slice SpaceToDepth Split SplitToSequence Squeeze Tile Transpose Unsqueeze Where".split()
)
# Control flow moves what its bodies move; shapes are read without the tensor; constants by their readers.
_NO_TRAFFIC = frozenset(("Constant", "If", "Loop", "Scan", "Shape", "Size"))


@dataclass(frozen=True)
class Cost:
    """What one run costs.

    Attributes:
        flops: arithmetic operations.
        bytes: bytes read and written by nodes, weights included.
        unknown: nodes that could not be counted, since a shape is not known.
    """

    flops: int = 0
    bytes: int = 0
    unknown: int = 0


class CostModel:
    """Counts nodes under given sizes of symbolic dims; a dim that is not given counts as 1.

    Args:
        facts: shapes and dtypes.
        bindings: symbol -> size.
    """

    def __init__(self, facts: Facts, bindings: Mapping[str, int]) -> None:
        self.facts = facts
        self.bindings = bindings
        #: Symbols that counted as 1 because nobody gave their size.
        self.assumed: set[str] = set()

    def body(self, body: Body) -> Cost:
        """The cost of all nodes of one body."""
        flops = moved = unknown = 0
        functions = self.facts.functions
        for node in body.nodes:
            if (node.domain, node.op, node.overload) in functions:
                unknown += 1
                continue
            count = self.flops(node)
            if count is None:
                unknown += 1
            else:
                flops += count
            if node.op not in _NO_TRAFFIC:
                moved += sum(self.nbytes(t) for t in (*node.inputs, *node.outputs) if t.name)
        return Cost(flops, moved, unknown)

    def flops(self, node: Node) -> int | None:
        """Arithmetic operations of one node; None where a shape that matters is not known."""
        if node.op in _MOVES:
            return 0
        rule = _RULES.get(node.op)
        count = rule(node, self.facts) if rule is not None else _elementwise(node, self.facts)
        return None if count is None else self.number(count)

    def nbytes(self, tensor: Tensor) -> int:
        """Bytes of one tensor, 0 where its shape or type is not known."""
        shape, dtype = self.facts.shape(tensor), self.facts.dtype(tensor)
        if shape is None or dtype is None or dtype == STRING or dtype not in NP_DTYPES:
            return 0
        bits = PACKED_BITS.get(dtype) or 8 * NP_DTYPES[dtype].itemsize
        return (self.number(product(shape)) * bits + 7) // 8

    def number(self, dim: Dim) -> int:
        """A Dim as a number."""
        if not isinstance(dim, Sym):
            return dim
        missing = dim.symbols - self.bindings.keys()
        self.assumed |= missing
        return evaluate(dim, {**dict.fromkeys(missing, 1), **self.bindings})


def _elementwise(node: Node, facts: Facts) -> Dim | None:
    """One operation per element of the output, or of the input where that is larger by rank (reductions)."""
    shapes = [s for t in (*node.inputs[:1], *node.outputs[:1]) if (s := facts.shape(t)) is not None]
    if not shapes:
        return None
    counts = [product(shape) for shape in shapes]
    known = [count for count in counts if isinstance(count, int)]
    return max(known) if len(known) == len(counts) else counts[0]


def _conv(node: Node, facts: Facts, weight: int = 1) -> Dim | None:
    out, w = facts.shape(node.outputs[0]), facts.shape(node.inputs[weight])
    if out is None or w is None:
        return None
    return 2 * product(out) * product(w[1:])  # w is [C_out, C_in / group, *kernel]


def _qlinear_conv(node: Node, facts: Facts) -> Dim | None:
    return _conv(node, facts, 3)


def _conv_transpose(node: Node, facts: Facts) -> Dim | None:
    x, w = facts.shape(node.inputs[0]), facts.shape(node.inputs[1])
    if x is None or w is None:
        return None
    return 2 * product(x) * product(w[1:])  # w is [C_in, C_out / group, *kernel]


def _matmul(node: Node, facts: Facts) -> Dim | None:
    a, out = facts.shape(node.inputs[0]), facts.shape(node.outputs[0])
    if a is None or out is None or not a:
        return None
    k = a[-2] if node.attrs.get("transA") and len(a) > 1 else a[-1]
    return 2 * product(out) * k


def _matmul_nbits(node: Node, facts: Facts) -> Dim | None:
    out, k = facts.shape(node.outputs[0]), node.attrs.get("K")
    return None if out is None or not isinstance(k, int) else 2 * product(out) * k


def _einsum(node: Node, facts: Facts) -> Dim | None:
    equation = str(node.attrs.get("equation", "")).replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if "." in equation or len(terms) != len(node.inputs):
        return None
    sizes: dict[str, Dim] = {}
    for term, tensor in zip(terms, node.inputs, strict=True):
        shape = facts.shape(tensor)
        if shape is None or len(shape) != len(term):
            return None
        sizes.update(zip(term, shape, strict=True))
    return len(terms) * product(sizes.values())


def _recurrent(gates: int) -> Callable[[Node, Facts], Dim | None]:
    def count(node: Node, facts: Facts) -> Dim | None:
        x, r = facts.shape(node.inputs[0]), facts.shape(node.inputs[2])
        if x is None or r is None or len(x) != 3 or len(r) != 3:
            return None
        directions, hidden = r[0], r[2]  # x is [steps, batch, input] or [batch, steps, input]
        return 2 * gates * x[0] * x[1] * directions * hidden * (x[2] + hidden)

    return count


def _attention(node: Node, facts: Facts) -> Dim | None:
    """QK^T and PV of the standard domain's Attention, with 4-D or 3-D inputs."""
    q, k, v = (facts.shape(t) for t in node.inputs[:3])
    if q is None or k is None or v is None:
        return None
    if len(q) == 4 and len(k) == 4 and len(v) == 4:
        return 2 * product(q[:3]) * k[2] * (q[3] + v[3])
    heads, groups = node.attrs.get("q_num_heads"), node.attrs.get("kv_num_heads")
    if len(q) != 3 or len(v) != 3 or not isinstance(heads, int) or not isinstance(groups, int):
        return None
    return 2 * q[0] * q[1] * k[1] * (q[2] + v[2] * heads // groups)


_RULES: Mapping[str, Callable[[Node, Facts], Dim | None]] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "FusedConv": _conv,
    "FusedMatMul": _matmul,
    "GRU": _recurrent(3),
    "Gemm": _matmul,
    "LSTM": _recurrent(4),
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "MatMulNBits": _matmul_nbits,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _matmul,
    "RNN": _recurrent(1),
}
