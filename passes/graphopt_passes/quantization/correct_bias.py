"""Correct the biases of a quantized model by the mean error that its layers make on data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from graphopt.passkit import Array, Node, Numerics, Pass, PassContext, RefusedRewrite, Rewriter
from graphopt.quantkit import MeanDifference, Score, Watch
from graphopt_passes.linear.sweeps import Sequential, plan_sweeps
from graphopt_passes.quantization._layers import Layer, layers_of
from graphopt_passes.quantization._quantized import bias_array, find_quantized_node, set_bias

# Outputs may get worse by this much, in dB, without it being called worse: rounding does that by chance.
_SLACK = 0.01


@dataclass(frozen=True)
class CorrectBias(Pass):
    """b += E[y] - E[y'] per output channel: y in the float model, y' here, on this model's own inputs.

    For every Conv, Gemm and MatMul (+ Add) with a quantized weight, in the order of the graph: each on the
    inputs that the quantized model gives it once the layers before it are corrected. A Conv or Gemm without a
    bias gets one; integer biases are rounded again. All corrections are taken back if they do not bring the
    model's outputs closer to the float model's on the calibration data.

    Nagel et al., "Data-free quantization through weight equalization and bias correction", arXiv:1906.04721
    (2019), section 4.2, the empirical form of appendix D; Finkelstein et al., "Fighting quantization bias
    with bias", arXiv:1906.03193 (2019).

    Refuses when: there is no data; the float model does not have the layer; the product has no constant bias
    and no place for one, or one that is not a number per output; the outputs do not get better.
    """

    name: ClassVar[str] = "correct-bias"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    quantizes: ClassVar[bool] = True

    sequential: Sequential = field(
        default="auto",
        metadata={
            "help": "one sweep over the data per layer; auto: in large models several layers share one"
        },
    )

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Correct the layers of one body if that pays."""
        layers = self._layers(graph, ctx)
        if not layers:
            return
        root = layers[0].quantized.node
        if not ctx.has_data:
            graph.refuse(root, "there is no data to measure errors on")
            return
        before = ctx.score(graph)
        corrections: list[tuple[Node, Array, float]] = []
        with graph.trial(root):
            for sweep in plan_sweeps(graph, layers, self.sequential):
                # Of layers that share a sweep the later ones still see the errors of the earlier ones.
                self._correct(graph, ctx, [layer for layer, _ in sweep], corrections)
            after = ctx.score(graph) if corrections else before
        if not corrections:
            return
        if not _no_worse(after, before):
            graph.refuse(
                root,
                f"the outputs do not get better: SQNR {before.sqnr_db:.2f} -> {after.sqnr_db:.2f} dB "
                f"with {len(corrections)} biases corrected",
            )
            return
        for node, bias, moved in corrections:
            quantized = find_quantized_node(graph, node)
            if quantized is not None:
                set_bias(graph, quantized, bias, f"bias corrected by {moved:.3g} (RMS over channels)")

    def _layers(self, graph: Rewriter, ctx: PassContext) -> list[Layer]:
        def check(layer: Layer) -> None:
            quantized = layer.quantized
            if ctx.reference.node(quantized.node) is None:
                raise RefusedRewrite("the float model does not have this layer")
            if quantized.bias_at is None:
                raise RefusedRewrite("it has no constant bias and no place for one")
            if graph.keeps(quantized.bias_at[0]):
                raise RefusedRewrite(f"{quantized.bias_at[0].name} is kept")
            if quantized.slot == 0:
                raise RefusedRewrite("its weight is the left operand, a bias would add to the wrong axis")
            check_bias(layer, bias_array(graph, quantized))

        return layers_of(graph, check)

    def _correct(
        self,
        graph: Rewriter,
        ctx: PassContext,
        layers: Sequence[Layer],
        corrections: list[tuple[Node, Array, float]],
    ) -> None:
        """Correct `layers` by what is observed now, and add what was done to `corrections`."""
        watches = []
        for layer in layers:
            node = layer.quantized.node
            twin = ctx.reference.node(node)
            assert twin is not None
            axis = 1 if node.op == "Conv" else -1
            watches.append(
                Watch(MeanDifference(axis), student=(node.outputs[0],), teacher=(twin.outputs[0],))
            )
        for layer, error in zip(layers, ctx.observe(graph, watches, ctx.reference), strict=True):
            node = layer.quantized.node
            shift = -error.mean
            if shift.size != layer.outputs or not np.isfinite(shift).all() or not shift.any():
                continue
            # Bodies that were rewritten in between read the node's bias afresh.
            quantized = find_quantized_node(graph, node)
            assert quantized is not None
            old = bias_array(graph, quantized)
            fresh = shift if old is None else shifted(old, shift)
            fresh = fresh.astype(np.float32)
            set_bias(graph, quantized, fresh, "bias corrected")
            corrections.append((node, fresh, float(np.sqrt(np.mean(shift**2)))))


def check_bias(layer: Layer, bias: Array | None) -> None:
    """Raise RefusedRewrite unless `bias` is one number per output, one in all, or none."""
    if bias is None or bias.size == 1:
        return
    if bias.size != layer.outputs or bias.shape[-1] != layer.outputs:
        raise RefusedRewrite(f"its bias of shape {list(bias.shape)} is not one number per output")


def shifted(bias: Array, shift: Array) -> Array:
    """`bias` plus one number per output, float64: in its own shape, or per output where it was one number."""
    wide = bias.astype(np.float64)
    if bias.size == 1:
        return wide.reshape(-1) + shift
    return wide + shift.reshape(bias.shape)


def _no_worse(after: Score, before: Score) -> bool:
    """Whether outputs came closer, or stayed within what chance does, and no task metric fell."""
    if not after.sqnr_db >= before.sqnr_db - _SLACK:
        return False
    return all(drop <= before.drops.get(name, 0.0) for name, drop in after.drops.items())
