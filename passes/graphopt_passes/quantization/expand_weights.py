"""expand-weights: integer weights that are expanded once, when the model is loaded."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import onnx

from graphopt.passkit import (
    Array,
    AttributeRef,
    GraphView,
    Node,
    NodePass,
    Numerics,
    PassContext,
    RefusedRewrite,
    Rewriter,
    Tensor,
)

# Small kernels save memory, too: they go only for a speed-up that is more than the noise of timing.
_WORTH = 0.97
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class ExpandWeights(NodePass):
    """DequantizeLinear(q, scale, zero_point) = Mul(Sub(Cast(q), zero_point), scale), of constants.

    Runtimes leave a DequantizeLinear in place, because it may become part of an integer kernel; where it
    does not, ONNX Runtime runs it again on every call, and keeps the Conv behind it out of its blocked layout
    (measured: 0.74 of the float speed). Cast and Mul of constants it computes once, while loading: the
    file stays small, and the model runs as fast as in float. The same bits in float32; in float16 runtimes
    may skip a rounding.

    Weights of MatMul and Gemm that become MatMulNBits stay, unless `products` says otherwise: its kernels
    read a fraction of the bytes, but are slower than float ones where matrices are small (measured: 1.6
    times the time at 96 columns, 0.7 at 384). With data at hand `measure` times both and takes the faster.

    Left alone: weights of nodes that read other quantized tensors; biases.

    Refuses when: the result is a graph output, or a node that it would hurt reads it as well. Run it last:
    `fold-constants` would compute what it writes.
    """

    name: ClassVar[str] = "expand-weights"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("DequantizeLinear",)

    products: Literal["keep", "expand", "measure"] = field(
        default="measure",
        metadata={"help": "weights that become MatMulNBits: what is faster, if there is data (else keep)"},
    )

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Visit the DequantizeLinears; settle first what is to become of products."""
        if self.products != "measure":
            super().run(graph, ctx)
            return
        keeping = replace(self, products="keep")
        keeping.run(graph, ctx)
        # Bodies of If and Loop may not run on the data at all: only the main graph is timed.
        if graph.is_main and ctx.has_data and ctx.snapshot is not None and keeping.expanding_pays(graph, ctx):
            replace(self, products="expand").run(graph, ctx)

    def expanding_pays(self, graph: Rewriter, ctx: PassContext) -> bool:
        """Whether the model is faster with the weights of its products in float as well."""
        expanding = replace(self, products="expand")
        nodes = graph.by_op(*self.ops)
        if not nodes:
            return False
        kept = ctx.latency(graph)
        with graph.trial(nodes[0]):
            for node in nodes:
                # A reason not to will come up again when it is done for good.
                with contextlib.suppress(RefusedRewrite):
                    expanding.visit(node, graph, ctx)
            expanded = ctx.latency(graph)
        return expanded < kept * _WORTH

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Respell one DequantizeLinear."""
        q, scale = node.inputs[0], node.inputs[1]
        zero = graph.input(node, 2)
        if not all(graph.is_constant(t) for t in (q, scale, zero) if t is not None):
            return
        output = node.outputs[0]
        shape, dtype = graph.static_shape(q), graph.dtype(scale)
        if shape is None or len(shape) < 2 or dtype not in _FLOATS or graph.dtype(output) != dtype:
            return
        uses = graph.uses(output)
        if not uses:
            return
        if graph.is_output(output):
            raise RefusedRewrite(f"{output.name} is a graph output")
        for use in uses:
            reason = self._hurt(graph, use.node, use.slot)
            if reason is not None:
                raise RefusedRewrite(reason)
        axis, block = graph.attr(node, "axis"), graph.attr(node, "block_size") or 0
        if isinstance(axis, AttributeRef) or isinstance(block, AttributeRef):
            return
        with graph.site(node, f"{q.name} is expanded when the model is loaded"):
            value = graph.op("Cast", [q], attrs={"to": int(dtype)}, hint=f"{q.name}_float")
            if zero is not None and np.any(_array(graph, zero).astype(np.int32)):
                offsets = _array(graph, zero).astype(_array(graph, scale).dtype)
                spread = _spread(graph, zero.name, offsets, shape, axis % len(shape), block)
                value = graph.op("Sub", [value, spread], hint=f"{q.name}_centered")
            factors = _spread(graph, scale.name, _array(graph, scale), shape, axis % len(shape), block)
            graph.replace(output, "Mul", [value, factors])

    def _hurt(self, graph: GraphView, reader: Node, slot: int) -> str | None:
        """Why `reader` is better off with the DequantizeLinear, None if it is not."""
        others = (t for i, t in enumerate(reader.inputs) if i != slot and t.name)
        if any(graph.producer_op(t, "DequantizeLinear") is not None for t in others):
            return f"{reader.op} {reader.name} reads another quantized tensor: it may run in integers"
        if self.products != "expand" and becomes_nbits(graph, reader, slot):
            return f"{reader.op} {reader.name} becomes MatMulNBits"
        return None


def becomes_nbits(graph: GraphView, reader: Node, slot: int) -> bool:
    """Whether ONNX Runtime (1.32) makes one MatMulNBits of `reader` and the DequantizeLinear at `slot`."""
    if slot != 1:
        return False
    if graph.is_op(reader, "MatMul"):
        return graph.rank(reader.inputs[1]) == 2
    if not graph.is_op(reader, "Gemm"):
        return False
    plain = (("transA", 0), ("transB", 0), ("alpha", 1.0), ("beta", 1.0))
    if any(graph.attr(reader, name) != value for name, value in plain):
        return False
    bias = graph.input(reader, 2)
    return bias is None or graph.rank(bias) == 1


def _array(graph: GraphView, tensor: Tensor) -> Array:
    values = graph.array(tensor)
    assert values is not None
    return values


def _spread(
    graph: Rewriter,
    name: str,
    values: Array,
    shape: tuple[int, ...],
    axis: int,
    block: int,
) -> Tensor:
    """`values`, one per index or block of `axis` or one in all, in a shape that broadcasts to `shape`."""
    if not block:
        if values.ndim == 0 or values.size == 1:
            return graph.new_constant(name, values.reshape(()))
        form = [1] * len(shape)
        form[axis] = -1
        return graph.new_constant(name, values.reshape(form))
    # Which block each index is in: the scales stay as few as they are.
    index = (np.arange(shape[axis]) // block).astype(np.int32)
    place = graph.new_constant(f"{name}_block", index)
    attrs = {"axis": axis} if axis else {}
    return graph.op("Gather", [graph.new_constant(name, values), place], attrs=attrs, hint=f"{name}_spread")
