"""share-weights: weights that take few values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

import numpy as np

from graphopt.passkit import Array, Node, Numerics, Pass, PassContext, RefusedRewrite, Rewriter, is_selected
from graphopt_passes.linear.judged import judged_by, watch_layer
from graphopt_passes.linear.layer import LinearLayer
from graphopt_passes.linear.moments import LayerMoments
from graphopt_passes.linear.sweeps import Sequential, depths, plan_sweeps
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
from graphopt_passes.quantization.expand_weights import becomes_nbits
from graphopt_passes.sharing._forms import (
    SHIFT_OPSET,
    gathered,
    gathered_bytes,
    stored_arrays,
    uniform_grid,
)
from graphopt_passes.sharing._measured import input_powers, layer_of, share_by_outputs
from graphopt_passes.sharing._palettes import (
    Slices,
    Totals,
    decibels,
    deflated,
    has_zeros,
    share,
)

_KNOWN: Final = ("MatMul", "Gemm", "Conv", "ConvTranspose", *RECURRENT)
_GRIDS: Final = ("dequantize", "block")
_BLOCK: Final = 64


@dataclass(frozen=True)
class ShareWeights(Pass):
    """W ~ P[I]: weights become the 2**bits values of least squared error that stand for them best.

    P minimizes sum_i h_i (w_i - P[I_i])^2 exactly, by dynamic programming on the sorted weights (Wang and
    Song, "Ckmeans.1d.dp", The R Journal 3/2, 2011; above 4096 distinct values to within a bound, which
    sharing/kmeans.py derives). Without data h = 1 (Han et al., "Deep Compression", arXiv:1510.00149). With
    data h is the mean square of the input that the weight multiplies, the diagonal of X^T X (Kim et al.,
    "SqueezeLLM", arXiv:2306.07629), and from there P and I are fitted to the layer's outputs,
    |Y - X P[I]^T|^2: weights one after another, the rest making up for each error, as in GPTQ
    (arXiv:2210.17323), and by turns the best entry for every weight and the best values for all entries. Y
    are the outputs of the original, X the inputs that the layers before give once they are done. Zeros of a
    pruned weight stay zeros: 0 is an entry of its palettes.

    form, and where it saves what:
      gather: Gather(P, I). The file is smaller. Runtimes compute the weights once, while they load the
        model, and then hold and read them as floats: neither memory nor time is saved. Standard operators.
      dequantize: P is evenly spaced around 0, so that DequantizeLinear makes the weights, of int8 or, from
        opset 21 and up to 4 bits on, int4. MatMul and Gemm then run as MatMulNBits on integers in ONNX
        Runtime, and memory is saved as well; a Conv dequantizes on every call, unless `expand-weights`
        follows.
      block: like dequantize, with a step per output channel and `group_size` inputs. Opset 21.
      dense: floats as before, of few values. The file is not smaller until it is compressed. Passes that
        come later see ordinary weights; a second `share-weights` stores them in another form, and nothing
        more is lost.

    Refuses when: the weight is not a constant float32 or float16 tensor, or not finite, kept, a graph output,
    or smaller than `min_elements`; something other than the operators of `ops`, or a node that is not
    selected, reads it too; what is stored would not be smaller; the opset lacks the form; there is no data
    for what needs it.
    """

    name: ClassVar[str] = "share-weights"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    bits: int = field(default=6, metadata={"help": "a palette has 2**bits entries, 1 to 8 bits"})
    granularity: Literal["tensor", "channel", "column"] = field(
        default="tensor",
        metadata={
            "help": "what has a palette of its own: the weight, or `group_size` of its output channels, or "
            "`group_size` of its inputs"
        },
    )
    group_size: int = field(
        default=0, metadata={"help": "channels or inputs per palette; 0: 1 channel, 64 inputs"}
    )
    form: Literal["gather", "dequantize", "block", "dense"] = field(
        default="gather", metadata={"help": "how the weights are stored"}
    )
    packed: bool = field(
        default=True,
        metadata={
            "help": "gather: indices without a gap between their bits; false: a byte each, which makes a "
            "larger file that compresses better"
        },
    )
    importance: Literal["auto", "outputs", "inputs", "none"] = field(
        default="auto",
        metadata={
            "help": "what an error counts: its effect on the outputs, the input's square, or 1; auto: with "
            "data outputs, or inputs for even steps"
        },
    )
    sequential: Sequential = field(
        default="auto",
        metadata={
            "help": "outputs: one sweep over the data per layer; auto: in large models several share one"
        },
    )
    ops: tuple[str, ...] = field(
        default=("MatMul", "Gemm", "Conv"),
        metadata={"help": "operators whose weights are shared, of " + ", ".join(_KNOWN)},
    )
    layers: tuple[str, ...] = field(default=(), metadata={"help": "globs; only nodes that match one"})
    exclude: tuple[str, ...] = field(default=(), metadata={"help": "globs; not nodes that match one"})
    min_elements: int = field(default=1024, metadata={"help": "leave weights with fewer elements alone"})

    def __post_init__(self) -> None:
        """Check options against each other."""
        low = 2 if self.form in _GRIDS else 1
        if not low <= self.bits <= 8:
            raise ValueError(f"bits of form={self.form} are from {low} to 8, not {self.bits}")
        if self.group_size < 0:
            raise ValueError("group_size must not be negative")
        if self.importance == "outputs" and self.form in _GRIDS:
            raise ValueError(f"form={self.form} has importance=inputs; refine-weights behind it sees outputs")
        if self.form == "dequantize" and (self.granularity == "column" or self.group_size > 1):
            raise ValueError("form=dequantize has a step per tensor or per channel; form=block has groups")
        if self.form == "block" and self.granularity == "channel":
            raise ValueError("form=block has a step per channel and block of inputs: leave granularity out")
        if self.min_elements < 1:
            raise ValueError("min_elements is at least 1")
        unknown = [op for op in self.ops if op not in _KNOWN]
        if unknown:
            raise ValueError(f"ops are among {', '.join(_KNOWN)}, not {', '.join(unknown)}")

    def least_opset(self) -> int:
        """11 for BitShift, 13 for a step per channel, 21 for blocks."""
        return {"gather": SHIFT_OPSET, "dequantize": 13, "block": 21, "dense": 0}[self.form]

    def needs_data(self) -> bool:
        """Where the importance of weights is asked for."""
        return self.importance in ("outputs", "inputs")

    def globs(self) -> tuple[str, ...]:
        """Those of `layers` and `exclude`."""
        return (*self.layers, *self.exclude)

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Share the weights whose readers stand in this body, or that it lends to bodies inside."""
        candidates = in_order(graph, self.ops)
        weights: dict[int, Weight] = {}
        for node in candidates:
            if not is_selected(node, self.layers, self.exclude):
                continue
            for slot in weight_slots(graph, node):
                try:
                    weight = check_weight(graph, node, slot)
                    if not owns(graph, weight):
                        raise RefusedRewrite(f"{weight.tensor.name} is also read in another body")
                    self._check(graph, weight)
                except RefusedRewrite as refused:
                    graph.refuse(node, refused.reason)
                else:
                    weights.setdefault(id(weight.tensor), weight)
        if self.needs_data() and not ctx.has_data:
            for weight in weights.values():
                graph.refuse(weight.node, f"there is no data for importance={self.importance}")
            return
        how = self._how(graph, ctx)
        layers: dict[Node, tuple[Weight, LinearLayer]] = {}
        if how == "outputs":
            found = ((weight, layer_of(graph, weight)) for weight in weights.values())
            layers = {w.node: (w, layer) for w, layer in found if layer is not None}
        rest = [weight for weight in weights.values() if weight.node not in layers]
        powers = input_powers(graph, ctx, rest) if how != "none" else {}
        for weight in rest:
            self._visit(graph, ctx, weight, powers.get(id(weight.tensor)), None)
        self._in_order(graph, ctx, layers)

    def _how(self, graph: Rewriter, ctx: PassContext) -> str:
        """What errors count for in this body; data says nothing about tensors of local functions."""
        if not ctx.has_data or graph.is_function:
            return "none"
        if self.importance != "auto":
            return self.importance
        return "inputs" if self.form in _GRIDS else "outputs"

    def _in_order(
        self, graph: Rewriter, ctx: PassContext, layers: Mapping[Node, tuple[Weight, LinearLayer]]
    ) -> None:
        """Share each weight on the inputs that the layers before it give once theirs are shared."""
        depth = depths(graph, list(layers))
        for sweep in plan_sweeps(graph, [layer for _, layer in layers.values()], self.sequential):
            watches = [
                watch_layer(layer, ctx, judged_by(graph, layer, depth) if first else None)
                for layer, first in sweep
            ]
            for (layer, _), moments in zip(sweep, ctx.observe(graph, watches), strict=True):
                self._visit(graph, ctx, layers[layer.node][0], None, (layer, moments))

    def _visit(
        self,
        graph: Rewriter,
        ctx: PassContext,
        weight: Weight,
        importance: Array | None,
        seen: tuple[LinearLayer, LayerMoments] | None,
    ) -> None:
        try:
            values = finite_values(graph, weight.tensor)
            if self.form in _GRIDS:
                self._to_grid(graph, ctx, weight, values, importance)
            else:
                self._share(graph, ctx, weight, values, importance, seen)
        except RefusedRewrite as refused:
            graph.refuse(weight.node, refused.reason)

    def _check(self, graph: Rewriter, weight: Weight) -> None:
        """What can be said without the values.

        Raises:
            RefusedRewrite: see the class.
        """
        name, size = weight.tensor.name, int(np.prod(weight.constant.shape))
        if size < self.min_elements:
            raise RefusedRewrite(f"its weight {name} has {size} elements, too few to bother")
        if graph.opset < self.least_opset():
            raise RefusedRewrite(f"form={self.form} needs opset {self.least_opset()}, this is {graph.opset}")
        for role in weight.roles:
            if graph.keeps(role.node):
                raise RefusedRewrite(f"{role.node.name or role.node.op}, which reads the weight, is kept")
            if role.node.op not in self.ops or not is_selected(role.node, self.layers, self.exclude):
                raise RefusedRewrite(f"{name} is also read by {role.node.name}, which is not selected")

    def _share(
        self,
        graph: Rewriter,
        ctx: PassContext,
        weight: Weight,
        values: Array,
        importance: Array | None,
        seen: tuple[LinearLayer, LayerMoments] | None,
    ) -> None:
        """Form gather or dense: palettes."""
        name, entries = weight.tensor.name, 1 << self.bits
        slices, keep_zero = self._slices(weight), has_zeros(values, entries)
        if seen is None:
            shared = share(values, entries, slices, importance, keep_zero=keep_zero)
            new = shared.expand()
            error = _spell(decibels(values, new))
        else:
            shared, error = share_by_outputs(*seen, values, entries, slices, keep_zero=keep_zero)
            new = shared.expand()
        what = f"{name}: {entries} values{self._per(slices)}, {error}"
        before, packed = float_bytes(weight), deflated(values)
        if self.form == "dense":
            if np.array_equal(new, values):
                raise RefusedRewrite(f"its weight {name} has no more values than that already")
            what += f"; {before} bytes in the file as before, deflated {packed} -> {deflated(new)}"
            with graph.site(weight.node, what):
                redirect(graph, weight, graph.new_constant(name, new))
            self._count(ctx, before, before, packed, deflated(new), before)
            return
        # A wide index may take less in nodes than its packed form saves in bytes.
        pack = self.packed and gathered_bytes(name, shared, packed=True) < gathered_bytes(
            name, shared, packed=False
        )
        after = gathered_bytes(name, shared, packed=pack)
        if after >= before:
            raise RefusedRewrite(f"its weight {name} would not shrink ({before} -> {after} bytes)")
        small = deflated(*stored_arrays(shared, packed=pack))
        what += (
            f"; {before} -> {after} bytes in the file, deflated {packed} -> {small}; floats in memory as "
            "before: expanded at load"
        )
        with graph.site(weight.node, what):
            redirect(graph, weight, gathered(graph, name, shared, packed=pack))
        self._count(ctx, before, after, packed, small, before)

    def _count(self, ctx: PassContext, *figures: int) -> None:
        totals = ctx.notes.setdefault((self.name, self), Totals())
        totals.add(*figures)
        ctx.remark(self, str(totals))

    def _slices(self, weight: Weight) -> Slices:
        if self.granularity == "tensor":
            return Slices()
        if self.granularity == "channel":
            return Slices(weight.channel, self.group_size or 1)
        return Slices(weight.depth, self.group_size or _BLOCK)

    def _per(self, slices: Slices) -> str:
        if slices.axis is None:
            return ""
        what = "channel" if self.granularity == "channel" else "input"
        return f" per {what}" if slices.size == 1 else f" per {slices.size} {what}s"

    def _to_grid(
        self, graph: Rewriter, ctx: PassContext, weight: Weight, values: Array, importance: Array | None
    ) -> None:
        """Form dequantize or block: an evenly spaced palette."""
        name, size = weight.tensor.name, values.size
        axis = weight.channel if self.granularity == "channel" else None
        block = 0
        if self.form == "block":
            axis, block = weight.depth, self.group_size or _BLOCK
        if values.dtype == np.float16 and graph.opset < HALF_SCALE_OPSET:
            raise RefusedRewrite(f"steps in float16 need opset {HALF_SCALE_OPSET}, this is {graph.opset}")
        grid = uniform_grid(values, self.bits, axis, block, importance, four=graph.opset >= 21)
        grid = rescaled(grid, values.dtype)
        before, after = float_bytes(weight), stored_bytes(size, grid, values.dtype.itemsize)
        if after >= before:
            raise RefusedRewrite(f"its weight {name} would not shrink ({before} -> {after} bytes)")
        q = grid.quantize(values)
        error = decibels(values, grid.dequantize(q))
        ran = all(becomes_nbits(graph, r.node, r.slot) for r in weight.roles)
        memory = f"{after} bytes in memory (MatMulNBits)" if ran else "dequantized on every call"
        per = f" per channel and {block} inputs" if block else "" if axis is None else " per channel"
        packed, small = deflated(values), deflated(q.astype(np.int8), grid.scale)
        what = (
            f"{name}: {1 << self.bits} even steps{per}, {_spell(error)}; {before} -> {after} bytes in the "
            f"file, deflated {packed} -> {small}; {memory}"
        )
        with graph.site(weight.node, what):
            redirect(graph, weight, dequantized(graph, name, q, grid, values.dtype))
        self._count(ctx, before, after, packed, small, after if ran else before + after)


def _spell(db: float) -> str:
    return "nothing lost" if np.isinf(db) else f"{db:.1f} dB"
