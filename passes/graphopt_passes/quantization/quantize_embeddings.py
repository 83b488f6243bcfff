"""quantize-embeddings: tables that rows are looked up in, stored as integers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import onnx

from graphopt.passkit import (
    Array,
    Constant,
    Node,
    Numerics,
    Pass,
    PassContext,
    RefusedRewrite,
    Rewriter,
    Tensor,
    Use,
)
from graphopt.quantkit import QUANT_TYPES, Grid, WeightMethod, weight_grid
from graphopt_passes.quantization._pick import check_globs, picked
from graphopt_passes.quantization._weights import (
    FLOAT_TYPES,
    OVERHEAD,
    finite_values,
    rescaled,
)

_SHIFT_OPSET = 11


@dataclass(frozen=True)
class QuantizeEmbeddings(Pass):
    """Gather(table, i) = Cast(Gather(Q, i)) * Gather(scales, i): rows are looked up as integers, then scaled.

    Only the rows that are looked up become float, unlike with a DequantizeLinear in front of Gather, which
    would expand the whole table on every call. Each row has a scale of its own: rare words have short
    vectors, and one scale for all leaves them a few steps (`scale=tensor` does that: one operator less).
    With 4 bits the first half of a row stands in the low halves of its bytes and the second in the
    high ones, which BitShift and Concat take apart again: Gather has no 4-bit type in ONNX Runtime. Its
    com.microsoft GatherBlockQuantized was measured to be no faster than these standard operators.

    What else reads the table, such as an output projection tied to the embedding, reads all of its rows, made
    float in the same way: of constants, which ONNX Runtime computes once, while it loads the model. So the
    file has one table in integers, and the product runs as it did.

    Refuses when: the table is not a constant float32 or float16 matrix, or not finite, kept, a graph output,
    or smaller than `min_elements`; it is looked up along another axis, or read in several bodies; with 4
    bits its rows are of odd length.
    """

    name: ClassVar[str] = "quantize-embeddings"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    quantizes: ClassVar[bool] = True

    bits: Literal[8, 4] = field(default=8, metadata={"help": "bits per element"})
    scale: Literal["row", "tensor"] = field(
        default="row", metadata={"help": "a scale per row, or one for the whole table"}
    )
    method: WeightMethod = field(
        default="mse", metadata={"help": "scales of least squared error, or minmax: those that cover all"}
    )
    nodes: tuple[str, ...] = field(default=(), metadata={"help": "globs; only Gathers that match one"})
    exclude: tuple[str, ...] = field(default=(), metadata={"help": "globs; not Gathers that match one"})
    min_elements: int = field(default=4096, metadata={"help": "leave tables with fewer elements alone"})

    def least_opset(self) -> int:
        """BitShift is of opset 11."""
        return _SHIFT_OPSET if self.bits == 4 else 0

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Quantize the tables that this body looks rows up in."""
        candidates = [n for n in graph.nodes() if graph.is_op(n, "Gather")]
        check_globs(graph, ctx, self, candidates, (*self.nodes, *self.exclude))
        for node in candidates:
            table = node.inputs[0]
            constant = graph.constant(table)
            if constant is None or len(constant.shape) < 2 or graph.dtype(table) not in FLOAT_TYPES:
                continue  # an index into a shape, or an activation
            if not picked(node, self.nodes, self.exclude):
                continue
            try:
                self._visit(node, table, constant, graph)
            except RefusedRewrite as refused:
                graph.refuse(node, refused.reason)

    def _visit(self, node: Node, table: Tensor, constant: Constant, graph: Rewriter) -> None:
        name, shape = table.name, tuple(int(d) for d in constant.shape)
        if len(shape) != 2:
            raise RefusedRewrite(f"the table {name} is no matrix")
        if shape[0] * shape[1] < self.min_elements:
            raise RefusedRewrite(f"the table {name} has too few elements to bother")
        if graph.keeps(table):
            raise RefusedRewrite(f"the table {name} is kept")
        if graph.is_output(table):
            raise RefusedRewrite(f"the table {name} is a graph output, so it has to stay")
        lookups, others = self._readers(table, graph)
        if self.bits == 4 and shape[1] % 2:
            raise RefusedRewrite(f"the rows of {name} are of odd length: two elements share a byte")
        if graph.opset < self.least_opset():
            raise RefusedRewrite(f"BitShift needs opset {self.least_opset()}, this is {graph.opset}")
        values = finite_values(graph, table)
        grid = rescaled(self._grid(values), values.dtype)
        q = grid.quantize(values)
        scales = 1 if self.scale == "tensor" else shape[0]
        after = values.size * self.bits // 8 + scales * values.dtype.itemsize + OVERHEAD
        if after >= constant.nbytes:
            raise RefusedRewrite(f"the table {name} would not shrink")
        why = f"{name}: {self.bits} bits, a scale per {self.scale}, {constant.nbytes} -> {after} bytes"
        with graph.site(node, why):
            if self.bits == 4:
                stored = graph.new_constant(f"{name}_packed", _halves(q))
            else:
                stored = graph.new_constant(f"{name}_quantized", q)
            factors = grid.scale.astype(values.dtype)
            scale = graph.new_constant(f"{name}_scale", factors.reshape(-1, 1) if factors.ndim else factors)
            for lookup in lookups:
                self._look_up(graph, lookup, stored, scale, values.dtype)
            if others:
                whole = self._to_float(graph, stored, scale, name, values.dtype)
                for use in others:
                    graph.set_input(use.node, use.slot, whole)

    def _readers(self, table: Tensor, graph: Rewriter) -> tuple[list[Node], list[Use]]:
        """Gathers of rows, and those who read the whole table."""
        lookups: list[Node] = []
        others: list[Use] = []
        for use in graph.uses(table):
            reader = use.node
            if not graph.is_live(reader):
                raise RefusedRewrite(f"the table {table.name} is also read in another body")
            if graph.keeps(reader):
                raise RefusedRewrite(f"{reader.name or reader.op}, which reads the table, is kept")
            if not graph.is_op(reader, "Gather"):
                others.append(use)
                continue
            if use.slot != 0 or graph.attr(reader, "axis") not in (0, -2):
                raise RefusedRewrite(f"the table {table.name} is looked up along another axis")
            if not picked(reader, self.nodes, self.exclude):
                raise RefusedRewrite(f"the table {table.name} is also read by {reader.name}, not selected")
            lookups.append(reader)
        return lookups, others

    def _grid(self, values: Array) -> Grid:
        axis = 0 if self.scale == "row" else None
        type = QUANT_TYPES["int8"] if self.bits == 8 else replace(QUANT_TYPES["int8"], qmin=-8, qmax=7)
        return weight_grid(values, type, axis=axis, method=self.method)

    def _look_up(
        self, graph: Rewriter, node: Node, stored: Tensor, scale: Tensor, dtype: np.dtype[np.generic]
    ) -> None:
        old, index = node.outputs[0], node.inputs[1]
        rows = graph.op("Gather", [stored, index], hint=f"{old.name}_rows")
        if self.scale == "row":
            scale = graph.op("Gather", [scale, index], hint=f"{old.name}_scales")
        graph.bypass(old, self._to_float(graph, rows, scale, old.name, dtype))

    def _to_float(
        self, graph: Rewriter, rows: Tensor, scale: Tensor, name: str, dtype: np.dtype[np.generic]
    ) -> Tensor:
        """Stored rows times their scales."""
        to = int(onnx.helper.np_dtype_to_tensor_dtype(dtype))
        if self.bits == 4:
            rows = _apart(graph, rows, name)
        wide = graph.op("Cast", [rows], attrs={"to": to}, hint=f"{name}_unscaled")
        if self.bits == 4:
            eight = graph.new_constant("eight", np.array(8, dtype))
            wide = graph.op("Sub", [wide, eight], hint=f"{name}_signed")
        return graph.op("Mul", [wide, scale], hint=f"{name}_scaled")


def _halves(q: Array) -> Array:
    """int8 values -8..7 of shape (V, D) as bytes (V, D / 2): the first half of a row in the low four bits."""
    unsigned = (q.astype(np.int16) + 8).astype(np.uint8)
    half = q.shape[1] // 2
    packed: Array = unsigned[:, :half] | (unsigned[:, half:] << 4)
    return packed


def _apart(graph: Rewriter, rows: Tensor, name: str) -> Tensor:
    """0..15 as uint8, twice as many along the last axis: the low halves of bytes, then the high ones."""
    four = graph.new_constant("four", np.array(4, np.uint8))
    high = graph.op("BitShift", [rows, four], attrs={"direction": "RIGHT"}, hint=f"{name}_high")
    # Shifted out at the top and back: uint8 has no bitwise And before opset 18.
    top = graph.op("BitShift", [rows, four], attrs={"direction": "LEFT"}, hint=f"{name}_top")
    low = graph.op("BitShift", [top, four], attrs={"direction": "RIGHT"}, hint=f"{name}_low")
    return graph.op("Concat", [low, high], attrs={"axis": -1}, hint=f"{name}_nibbles")
