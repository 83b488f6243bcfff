"""quantize-codebook: weights as indices into a few values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from graphopt.passkit import Array, Numerics, Pass, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.quantization._palette import Kind, Palette, fit
from graphopt_passes.quantization._pick import check_globs, picked
from graphopt_passes.quantization._unpacked import ints, unpacked
from graphopt_passes.quantization._weights import (
    OVERHEAD,
    RECURRENT,
    Weight,
    check_weight,
    finite_values,
    float_bytes,
    in_order,
    owns,
    redirect,
    weight_slots,
)

_KNOWN = ("MatMul", "Gemm", "Conv", "ConvTranspose", *RECURRENT)
_SHIFT_OPSET = 11
_FIXED = {"binary": 1, "ternary": 2, "nf4": 4}


@dataclass(frozen=True)
class QuantizeCodebook(Pass):
    """W = Gather(palette, indices) [* scale]: weights that share a few values. A storage format: no kernel.

    The file gets small, nothing gets faster: no runtime computes on indices. ONNX Runtime expands the weights
    once, while it loads the model, and then runs as with float weights. What is done here has standard
    operators only, of opset 11: indices of any width are packed into bytes without a gap (3 bits as 2 + 1)
    and taken apart by BitShifts.

    kind:
      kmeans: the 2**bits values of least squared error, per tensor or per output channel (Han et al., "Deep
        Compression", ICLR 2016, arXiv:1510.00149; here optimal, by dynamic programming);
      binary: sign times the mean magnitude per channel (Rastegari et al., "XNOR-Net", arXiv:1603.05279);
      ternary: -a, 0, a per channel (Li et al., "Ternary Weight Networks", arXiv:1605.04711);
      nf4: quantiles of the normal distribution, one scale per `block_size` weights (Dettmers et al., "QLoRA",
        arXiv:2305.14314);
      pow2: 0 and signed powers of two (Zhou et al., "Incremental Network Quantization", arXiv:1702.03044);
      apot: sums of powers of two (Li et al., "Additive Powers-of-Two Quantization", arXiv:1909.13144).

    Refuses when: the weight is not a constant float32 or float16 tensor, or not finite, kept, a graph output,
    or smaller than `min_elements`; something other than the operators of `ops` reads it too; it would not
    shrink; the opset is older than 11. Run it last: `fold-constants` would compute what it writes.
    """

    name: ClassVar[str] = "quantize-codebook"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    quantizes: ClassVar[bool] = True

    kind: Kind = field(default="kmeans", metadata={"help": "which values may be used"})
    bits: int = field(
        default=4, metadata={"help": "bits per index of kmeans (1 to 8), pow2 and apot (2 to 8)"}
    )
    per_channel: bool = field(
        default=False, metadata={"help": "kmeans: a palette per output channel instead of one per tensor"}
    )
    block_size: int = field(default=64, metadata={"help": "nf4: weights that share a scale"})
    ops: tuple[str, ...] = field(
        default=("MatMul", "Gemm", "Conv"),
        metadata={"help": "operators whose weights are quantized, of " + ", ".join(_KNOWN)},
    )
    nodes: tuple[str, ...] = field(default=(), metadata={"help": "globs; only nodes that match one"})
    exclude: tuple[str, ...] = field(default=(), metadata={"help": "globs; not nodes that match one"})
    min_elements: int = field(default=1024, metadata={"help": "leave weights with fewer elements alone"})

    def __post_init__(self) -> None:
        """Check options against each other."""
        if not (2 if self.kind in ("pow2", "apot") else 1) <= self.bits <= 8:
            raise ValueError(f"bits of {self.kind} are out of range: {self.bits}")
        if self.block_size < 8:
            raise ValueError("block_size is at least 8")
        unknown = [op for op in self.ops if op not in _KNOWN]
        if unknown:
            raise ValueError(f"ops are among {', '.join(_KNOWN)}, not {', '.join(unknown)}")

    def least_opset(self) -> int:
        """BitShift is of opset 11."""
        return _SHIFT_OPSET

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Quantize the weights that only nodes of this body read."""
        candidates = in_order(graph, self.ops)
        check_globs(graph, ctx, self, candidates, (*self.nodes, *self.exclude))
        for node in candidates:
            if not picked(node, self.nodes, self.exclude):
                continue
            for slot in weight_slots(graph, node):
                try:
                    weight = check_weight(graph, node, slot)
                    if owns(graph, weight):
                        self._rewrite(weight, graph)
                    else:
                        graph.refuse(node, f"{weight.tensor.name} is also read in another body")
                except RefusedRewrite as refused:
                    graph.refuse(node, refused.reason)

    def _rewrite(self, weight: Weight, graph: Rewriter) -> None:
        name = weight.tensor.name
        for role in weight.roles:
            if graph.keeps(role.node):
                raise RefusedRewrite(f"{role.node.name or role.node.op}, which reads the weight, is kept")
            if role.node.op not in self.ops or not picked(role.node, self.nodes, self.exclude):
                raise RefusedRewrite(f"{name} is also read by {role.node.name}, which is not selected")
        if graph.opset < _SHIFT_OPSET:
            raise RefusedRewrite(f"BitShift needs opset 11, this is {graph.opset}")
        size = int(np.prod(weight.constant.shape))
        if size < self.min_elements:
            raise RefusedRewrite(f"its weight {name} has {size} elements, too few to bother")
        bits = _FIXED.get(self.kind, self.bits)
        # Of the size alone, before the work: a palette per channel and a scale per block take their part.
        channels = weight.constant.shape[weight.channel]
        extra = {
            "kmeans": (channels if self.per_channel else 1) << bits,
            "nf4": 16 + -(-size // self.block_size),
        }.get(self.kind, (1 << bits) + channels)
        after = -(-size * bits // 8) + 4 * extra + 4 * OVERHEAD
        if after >= float_bytes(weight):
            raise RefusedRewrite(f"its weight {name} would not shrink ({float_bytes(weight)} bytes now)")
        values = finite_values(graph, weight.tensor)
        palette, form = self._fit(values, weight.channel)
        why = (
            f"{name}: {self.kind}, {palette.bits} bits per index, {float_bytes(weight)} -> {after} bytes; "
            "a storage format, computed with in float"
        )
        with graph.site(weight.node, why):
            redirect(graph, weight, _expanded(graph, name, palette, form, values))

    def _fit(self, values: Array, channel: int) -> tuple[Palette, tuple[int, ...] | None]:
        """A palette, and the shape of what there is one of per channel; None for blocks."""
        wide = values.astype(np.float32)
        if self.kind == "nf4":
            flat = wide.reshape(-1)
            rows = np.pad(flat, (0, -flat.size % self.block_size)).reshape(-1, self.block_size)
            return fit(rows, self.kind, 4), None
        if self.kind == "kmeans" and not self.per_channel:
            return fit(wide.reshape(1, -1), self.kind, self.bits), (1,) * values.ndim
        # One group per channel; what is stored keeps the order of the weight.
        moved = np.moveaxis(wide, channel, 0)
        found = fit(moved.reshape(len(moved), -1), self.kind, self.bits)
        indices = np.moveaxis(found.indices.reshape(moved.shape), 0, channel)
        form = tuple(values.shape[channel] if a == channel else 1 for a in range(values.ndim))
        return Palette(found.values, indices, found.scale), form


def _expanded(
    graph: Rewriter, name: str, palette: Palette, form: tuple[int, ...] | None, values: Array
) -> Tensor:
    """The nodes that make the weight `name` of its palette, inside a site.

    Args:
        graph: the body.
        name: the float weight's, after which things are named.
        palette: its indices stand in the weight's order; those of blocks are `(blocks, elements)`.
        form: shape of what there is one of per channel, so that it broadcasts to the weight; None: blocks.
        values: the float weight.
    """
    shape = palette.indices.shape if form is None else values.shape
    index = unpacked(graph, name, palette.indices, palette.bits)
    index = graph.op("Reshape", [index, ints(graph, name, shape)], hint=f"{name}_indices")
    table = palette.values.astype(values.dtype)
    if table.ndim == 2 and len(table) > 1 and form is not None:
        # A palette per channel, one behind the other: indices move on by the channel.
        step = (np.arange(len(table), dtype=np.int32) * table.shape[1]).reshape(form)
        index = graph.op("Add", [index, graph.new_constant(f"{name}_first", step)], hint=f"{name}_index")
    colors = graph.new_constant(f"{name}_palette", table.reshape(-1))
    result = graph.op("Gather", [colors, index], hint=f"{name}_picked")
    if palette.scale is None:
        return result
    scale = palette.scale.astype(values.dtype)
    if not np.isfinite(scale).all():
        raise RefusedRewrite("a scale does not fit into float16")
    factor = graph.new_constant(f"{name}_scale", scale.reshape((-1, 1) if form is None else form))
    result = graph.op("Mul", [result, factor], hint=f"{name}_scaled")
    if form is not None:
        return result
    if palette.indices.size != values.size:
        result = graph.op("Reshape", [result, ints(graph, name, (-1,))], hint=f"{name}_flat")
        bounds = [ints(graph, name, (n,)) for n in (0, values.size)]
        result = graph.op("Slice", [result, *bounds], hint=f"{name}_cut")
    return graph.op("Reshape", [result, ints(graph, name, values.shape)], hint=f"{name}_whole")
