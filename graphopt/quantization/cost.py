"""Whether an integer kernel of onnxruntime's CPU provider is worth it: a cost model of layers of known shape.

The time of a layer is a sum of what it does times what that takes: a fixed cost per node, time per
multiply-add, and time per element that is read, written, or copied into the columns of a matrix product.
The constants were measured (benchmarks/integer_kernels.py, one thread, AVX-512 VNNI). They are those of one
machine, but only ratios of them decide: how much faster integers multiply, and what moving data costs beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, Literal

from graphopt.graph.dims import Dim
from graphopt.graph.view import GraphView
from graphopt.ir import Node

Kind = Literal["conv", "depthwise", "matmul"]
Form = Literal["float", "integer"]

# Integers are multiplied in groups of 4 along the sum, floats and integers in vectors of 16 along the output.
_GROUP: Final = 4
_VECTOR: Final = 16


# Seconds per unit of each term, in the order of `terms`, then of `layout_terms`; of onnxruntime 1.32.
_KERNELS: Final[Mapping[tuple[Kind, Form], tuple[float, ...]]] = {
    ("conv", "float"): (7.68e-07, 9.6e-12, 6.62e-11, 7.3e-11, 1.77e-11),
    ("conv", "integer"): (1.09e-06, 1.85e-12, 1.19e-10, 1.59e-11, 1.03e-09, 5.43e-11, 3.1e-11),
    ("depthwise", "float"): (7.47e-07, 9.83e-12, 6.51e-11, 1.73e-10, 0.0),
    ("depthwise", "integer"): (1.23e-06, 1.22e-11, 5.23e-11, 5.94e-10, 1.19e-10, 0.0),
    ("matmul", "float"): (1.94e-07, 8.01e-12, 1.75e-11, 4.93e-12),
    ("matmul", "integer"): (8.68e-07, 2.23e-12, 1.2e-11, 5.5e-11),
}
# Seconds per node and per element.
_QUANTIZE: Final = (6.41e-08, 5.58e-11)
_DEQUANTIZE: Final = (6.79e-08, 8.89e-11)


@dataclass(frozen=True)
class LayerShape:
    """What matters of a layer's shape.

    Attributes:
        kind: dense convolution, depthwise convolution (few channels per group), or matrix product.
        rows: rows of the product: output positions of a convolution times the batch.
        inner: terms per sum.
        columns: output channels.
        read, written: elements of the input and of the output.
        copied: elements copied into columns before the product; 0 where the input can be used as it stands.
        pieces: in how many pieces they are copied: one per output position and place of the kernel.
        groups: independent products.
    """

    kind: Kind
    rows: int
    inner: int
    columns: int
    read: int
    written: int
    copied: int = 0
    pieces: int = 0
    groups: int = 1

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.rows * self.inner * self.columns * self.groups

    @staticmethod
    def conv(
        batch: int,
        cin: int,
        cout: int,
        kernel: Sequence[int],
        size: Sequence[int],
        out_size: Sequence[int],
        group: int = 1,
    ) -> LayerShape:
        """A convolution: channels in and out, kernel, spatial sizes of input and output, groups."""
        positions = batch * prod(out_size)
        inner = cin // group * prod(kernel)
        pointwise = prod(kernel) == 1 and tuple(size) == tuple(out_size)
        return LayerShape(
            kind="depthwise" if group > 1 and cin // group < _GROUP else "conv",
            rows=positions,
            inner=inner,
            columns=cout // group,
            read=batch * cin * prod(size),
            written=positions * cout,
            copied=0 if pointwise else positions * inner * group,
            pieces=0 if pointwise else positions * prod(kernel) * group,
            groups=group,
        )

    @staticmethod
    def matmul(rows: int, inner: int, columns: int, batch: int = 1) -> LayerShape:
        """A matrix product [rows, inner] x [inner, columns], `batch` times over."""
        return LayerShape(
            "matmul", rows, inner, columns, batch * rows * inner, batch * rows * columns, groups=batch
        )


def terms(shape: LayerShape, form: Form) -> tuple[float, ...]:
    """What a layer does, in the order of its constants: nodes, multiply-adds, elements."""
    if shape.kind == "depthwise":
        vectors = _padded(shape.groups * shape.columns, _VECTOR)
        work = (1.0, shape.rows * shape.inner * vectors, shape.rows * vectors)
        # The integer kernel looks up where each row of channels starts, per position and place of the kernel.
        return work if form == "float" else (*work, shape.rows * shape.inner)
    columns = _padded(shape.columns, _VECTOR)
    inner = _padded(shape.inner, _GROUP) if form == "integer" else shape.inner
    macs = shape.rows * inner * columns * shape.groups
    if shape.kind == "matmul":
        return (1.0, macs, shape.inner * shape.columns * shape.groups, shape.read + shape.written)
    written = shape.rows * columns * shape.groups
    return (1.0, macs, written) if form == "float" else (1.0, macs, written, shape.copied, shape.pieces)


def layout_terms(shape: LayerShape, read: int, written: int) -> tuple[float, ...]:
    """Elements whose layout changes at the borders of a chain of convolutions."""
    return () if shape.kind == "matmul" else (read, written)


def seconds(shape: LayerShape, form: Form) -> float:
    """Time of the kernel alone, one thread."""
    found = terms(shape, form)
    return _dot(_KERNELS[shape.kind, form][: len(found)], found)


def conversion_seconds(shape: LayerShape, *, quantized: int = 0, dequantized: int = 0) -> float:
    """Time of a layer's own QuantizeLinear and DequantizeLinear, and of the change of layout there."""
    found = layout_terms(shape, quantized, dequantized)
    layout = _KERNELS[shape.kind, "integer"][-len(found) :] if found else ()
    total = _dot(layout, found)
    for elements, (node, element) in ((quantized, _QUANTIZE), (dequantized, _DEQUANTIZE)):
        total += node + element * elements if elements else 0.0
    return total


@dataclass(frozen=True)
class Expectation:
    """What an integer kernel is expected to bring, in seconds of one thread.

    Attributes:
        float_: the float kernel, with the conversions that it would need.
        integer: the integer kernel.
        conversions: QuantizeLinear and DequantizeLinear that exist for its sake.
    """

    float_: float
    integer: float
    conversions: float = 0.0

    @property
    def seconds(self) -> float:
        """Time saved; negative: the integer kernel is slower."""
        return self.float_ - self.integer - self.conversions

    @property
    def ratio(self) -> float:
        """How many times as fast."""
        return self.float_ / (self.integer + self.conversions)

    @property
    def reason(self) -> str:
        """Why the layer had better stay float; "" when it had not."""
        return "" if self.ratio > 1 else f"its integer kernel is expected to be slower (x{self.ratio:.2g})"


def expected_gain(
    shape: LayerShape, *, quantized: int = 0, dequantized: int = 0, between_integers: bool = False
) -> Expectation:
    """Compare a layer's kernels.

    Args:
        shape: the layer.
        quantized: elements of its inputs that have to be quantized for its sake: 0 where the node before it
            computes integers anyway.
        dequantized: elements of its output that have to be dequantized for the nodes behind it.
        between_integers: its neighbours compute integers: as a float layer it would need conversions of its
            own, of its whole input and output.
    """
    conversions = conversion_seconds(shape, quantized=quantized, dequantized=dequantized)
    as_float = seconds(shape, "float")
    if between_integers:
        as_float += conversion_seconds(shape, quantized=shape.written, dequantized=shape.read)
    return Expectation(as_float, seconds(shape, "integer"), conversions)


def layer_shape(view: GraphView, node: Node) -> LayerShape | None:
    """The shape of a Conv, Gemm or MatMul; a symbolic batch is 1. None where other dims are unknown."""
    if not view.is_op(node, "Conv", "Gemm", "MatMul"):
        return None
    shapes = [_sizes(view.shape(t)) for t in (node.inputs[0], node.inputs[1], node.outputs[0])]
    x, w, y = shapes
    if x is None or w is None or y is None:
        return None
    if node.op == "Conv":
        group = int(view.attr(node, "group") or 1)
        return LayerShape.conv(x[0], x[1], w[0], w[2:], x[2:], y[2:], group)
    if node.op == "Gemm":
        inner = x[0] if view.attr(node, "transA") else x[1]
        return LayerShape.matmul(y[0], inner, y[1])
    if len(x) < 2 or len(w) < 2:
        return None
    if len(w) == 2:
        return LayerShape.matmul(prod(y[:-1]), x[-1], y[-1])
    return LayerShape.matmul(y[-2], x[-1], y[-1], prod(y[:-2]))


def _dot(constants: Sequence[float], found: Sequence[float]) -> float:
    total = 0.0
    for constant, amount in zip(constants, found, strict=True):
        total += constant * amount
    return total


def _sizes(shape: tuple[Dim, ...] | None) -> tuple[int, ...] | None:
    """Dims as numbers, the first one 1 if it is a symbol."""
    if not shape:
        return None
    first = shape[0] if isinstance(shape[0], int) else 1
    rest = [d for d in shape[1:] if isinstance(d, int)]
    return (first, *rest) if len(rest) == len(shape) - 1 else None


def _padded(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
