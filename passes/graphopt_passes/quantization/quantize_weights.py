"""quantize-weights: weights in 8, 4, 3 or 2 bits, activations in float."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from graphopt.passkit import Array, Node, Numerics, Pass, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt.quantkit import QUANT_TYPES, Grid, QuantType, WeightMethod, weight_grid
from graphopt_passes.quantization._nbits import check_product, replace_by_nbits
from graphopt_passes.quantization._pick import check_globs, picked
from graphopt_passes.quantization._weights import (
    HALF_SCALE_OPSET,
    RECURRENT,
    Weight,
    check_weight,
    dequantized,
    finite_values,
    float_bytes,
    in_order,
    owns,
    redirect,
    rescaled,
    stored_bytes,
    weight_slots,
)

_KNOWN = ("MatMul", "Gemm", "Conv", "ConvTranspose", *RECURRENT)
_BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """W -> DequantizeLinear(Q, scale): constant weights stored in few bits, computed with in float.

    Every weight is rounded to the nearest value on a grid per output channel, or per block of `block_size`
    values along the axis that products are summed over. No data is needed; `refine-weights` afterwards
    chooses the rounding by what the inputs look like, which 4 bits and fewer need. Weights of 3 bits stand
    in 4-bit integers, since ONNX has none of 3; those of 2 bits too, unless `native` asks for int2.

    What runs it: ONNX Runtime (1.32) turns DequantizeLinear -> MatMul or Gemm (without transB, alpha, beta; a
    bias of one dimension) into MatMulNBits when it loads the model, which reads the small weight and
    rounds activations to 8 bits per block unless the session asks for accuracy level 0. In front of a
    Conv, a transposed Gemm, or as left operand, DequantizeLinear runs again on every call: the file is
    small, and the model slower than in float. `expand-weights` respells those so that they are expanded once,
    at load.

    Refuses when: the weight is not constant (overridable initializers are not), not float32 or float16, not
    finite, kept, a graph output, or smaller than `min_elements`; something other than the operators of
    `ops` reads it too, or they disagree about its axes; it would not shrink; opset is too old for the
    form (4 bits and blocks need 21). With form=matmulnbits also: the target has no MatMulNBits; it is a
    Conv; the weight is not the right-hand matrix.
    """

    name: ClassVar[str] = "quantize-weights"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    quantizes: ClassVar[bool] = True

    bits: Literal[8, 4, 3, 2] = field(default=8, metadata={"help": "bits per weight"})
    block_size: int = field(
        default=0,
        metadata={"help": "weights that share a scale: 16, 32, 64, 128, 256; 0: one scale per channel"},
    )
    symmetric: bool = field(default=True, metadata={"help": "no zero points"})
    form: Literal["dq", "matmulnbits"] = field(
        default="dq",
        metadata={"help": "DequantizeLinear in front of the operator, or com.microsoft's MatMulNBits"},
    )
    ops: tuple[str, ...] = field(
        default=("MatMul", "Gemm", "Conv"),
        metadata={"help": "operators whose weights are quantized, of " + ", ".join(_KNOWN)},
    )
    nodes: tuple[str, ...] = field(default=(), metadata={"help": "globs; only nodes that match one"})
    exclude: tuple[str, ...] = field(default=(), metadata={"help": "globs; not nodes that match one"})
    method: WeightMethod = field(
        default="mse",
        metadata={"help": "scales of least squared error, or minmax: those that cover all weights"},
    )
    accuracy_level: Literal[0, 1, 4] = field(
        default=4,
        metadata={"help": "of MatMulNBits: 4 rounds activations to 8 bits in blocks, 1 and 0 do not"},
    )
    min_elements: int = field(default=256, metadata={"help": "leave weights with fewer elements alone"})
    native: bool = field(default=False, metadata={"help": "2 bits as int2, which needs opset 25"})

    def __post_init__(self) -> None:
        """Check options against each other."""
        if self.block_size not in (0, *_BLOCKS):
            raise ValueError(f"block_size is one of 0, {', '.join(map(str, _BLOCKS))}, not {self.block_size}")
        unknown = [op for op in self.ops if op not in _KNOWN]
        if unknown:
            raise ValueError(f"ops are among {', '.join(_KNOWN)}, not {', '.join(unknown)}")
        if self.form == "matmulnbits" and not self.block_size:
            raise ValueError("form=matmulnbits needs a block_size: its kernels work block by block")
        if self.native and self.bits != 2:
            raise ValueError("native is about 2 bits: other widths are stored as they are, or not at all")

    def least_opset(self) -> int:
        """25 for int2; 21 for 4-bit integers and for blocks; 13 for a scale per channel."""
        if self.form == "matmulnbits":
            return 0
        if self.native:
            return 25
        return 21 if self.bits < 8 or self.block_size else 13

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Quantize the weights whose readers stand in this body, or that it lends to bodies inside."""
        candidates = list(self._candidates(graph))
        check_globs(graph, ctx, self, candidates, (*self.nodes, *self.exclude))
        for node in candidates:
            if not picked(node, self.nodes, self.exclude):
                continue
            slots = weight_slots(graph, node)
            for slot in () if slots else (0, 1):
                t = graph.input(node, slot)
                if t is not None and t in graph.body.defaults:
                    graph.refuse(node, f"{t.name} can be overridden, so it is no constant")
            for slot in slots:
                try:
                    self._visit(node, slot, graph, ctx)
                except RefusedRewrite as refused:
                    graph.refuse(node, refused.reason)

    def _candidates(self, graph: Rewriter) -> Iterator[Node]:
        """Nodes in here, then readers inside of the initializers of this body."""
        own = in_order(graph, self.ops)
        yield from own
        seen = set(own)
        for constant in list(graph.body.initializers):
            for reader in graph.consumers(constant):
                if reader not in seen and graph.is_op(reader, *self.ops):
                    seen.add(reader)
                    yield reader

    def _visit(self, node: Node, slot: int, graph: Rewriter, ctx: PassContext) -> None:
        weight = check_weight(graph, node, slot)
        if not owns(graph, weight):
            return  # the body around this one does it
        self._check_readers(weight, graph)
        size = int(np.prod(weight.constant.shape))
        if size < self.min_elements:
            raise RefusedRewrite(f"its weight {weight.tensor.name} has {size} elements, too few to bother")
        if self.form == "matmulnbits":
            if not weight.local:
                raise RefusedRewrite(f"the readers of {weight.tensor.name} stand in several bodies")
            for role in weight.roles:
                check_product(graph, ctx, role)
        values = finite_values(graph, weight.tensor)
        grid = rescaled(self._grid(weight, values), values.dtype)
        if self.form != "matmulnbits":
            self._check_opset(graph, grid, values)
        after = stored_bytes(size, grid, values.dtype.itemsize)
        if after >= float_bytes(weight):
            raise RefusedRewrite(
                f"its weight {weight.tensor.name} would not shrink ({float_bytes(weight)} bytes now)"
            )
        q = grid.quantize(values)
        with graph.site(weight.node, self._why(weight, grid, after)):
            if self.form == "matmulnbits":
                replace_by_nbits(graph, weight, q, grid, values.dtype, self.accuracy_level)
            else:
                new: Tensor = dequantized(graph, weight.tensor.name, q, grid, values.dtype)
                redirect(graph, weight, new)

    def _check_readers(self, weight: Weight, graph: Rewriter) -> None:
        for role in weight.roles:
            reader = role.node
            if graph.keeps(reader):
                raise RefusedRewrite(f"{reader.name or reader.op}, which reads the weight, is kept")
            if reader.op not in self.ops or not picked(reader, self.nodes, self.exclude):
                raise RefusedRewrite(
                    f"its weight {weight.tensor.name} is also read by {reader.op} {reader.name}, "
                    "which is not selected"
                )

    def _type(self, opset: int) -> QuantType:
        """The stored type, restricted to the bits asked for."""
        signed = "" if self.symmetric else "u"
        if self.bits == 8:
            return QUANT_TYPES[f"{signed}int8"]
        if self.bits == 2 and self.native and opset >= 25:
            return QUANT_TYPES[f"{signed}int2"]
        container = QUANT_TYPES[f"{signed}int4"]
        low, high = (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1) if self.symmetric else (0, 0)
        return replace(container, qmin=low, qmax=high if self.symmetric else (1 << self.bits) - 1)

    def _grid(self, weight: Weight, values: Array) -> Grid:
        type = self._type(25 if self.native else 0)
        shape, axis, block = values.shape, weight.channel, 0
        if self.block_size and shape[weight.depth] > 1:
            axis, block = weight.depth, self.block_size
            if weight.node.op in ("Conv", "ConvTranspose") and shape[axis] < block:
                # Blocks of a Conv's weight run along its input channels: fewer of them, and a scale would
                # be spent on each kernel position.
                axis, block = weight.channel, 0
        return weight_grid(values, type, axis=axis, block=block, symmetric=self.symmetric, method=self.method)

    def _check_opset(self, graph: Rewriter, grid: Grid, values: Array) -> None:
        needed = max(grid.min_opset, HALF_SCALE_OPSET if values.dtype == np.float16 else 0)
        if graph.opset < needed:
            raise RefusedRewrite(
                f"DequantizeLinear of {grid.type.name}{' in blocks' if grid.block else ''} to {values.dtype} "
                f"needs opset {needed}, this is {graph.opset}"
            )

    def _why(self, weight: Weight, grid: Grid, after: int) -> str:
        stored = f"{self.bits} bits" + (f" in {grid.type.name}" if grid.type.bits != self.bits else "")
        per = f"per {grid.block} weights" if grid.block else "per channel"
        return f"{weight.tensor.name}: {stored}, one scale {per}, {float_bytes(weight)} -> {after} bytes"
