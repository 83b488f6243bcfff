"""Round the weights of a quantized model again, so that its layers' outputs on data change least."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np

from graphopt.passkit import Array, Numerics, Pass, PassContext, RefusedRewrite, Rewriter
from graphopt.quantkit import Watch
from graphopt_passes.linear.moments import LayerMoments
from graphopt_passes.linear.sweeps import Sequential, plan_sweeps
from graphopt_passes.quantization._layers import Layer, layers_of
from graphopt_passes.quantization._quantized import bias_array, set_bias, set_weight
from graphopt_passes.quantization._refinement import Match, Refined, refine
from graphopt_passes.quantization._rounding import Method

# Columns of the largest second-moment matrix: 512 MiB in float64.
_COLUMNS: Final = 8192


@dataclass(frozen=True)
class RefineWeights(Pass):
    """Codes of W that minimize |X (W_q - W)^T|^2 on the inputs X of the quantized layer: GPTQ, OBQ, AdaRound.

    For every Conv, Gemm and MatMul whose weight comes out of a DequantizeLinear, whether its activations are
    quantized or not. Layers are done in the order of the graph, each on the inputs that the quantized model
    gives it once the layers before it are done, and with `match=teacher` towards the outputs that the float
    model has there, so that a layer also makes up for the errors of those before it. Coordinate descent over
    the codes follows each method. A layer is changed only if its error on the data goes down.

    `gptq`: Frantar et al., "GPTQ", arXiv:2210.17323 (2022), columns in the order of the inputs' power. `obq`:
    Frantar and Alistarh, "Optimal Brain Compression", arXiv:2208.11580 (2022), for small layers; large ones
    get GPTQ. `adaround`: Nagel et al., "Up or Down? Adaptive Rounding", arXiv:2004.10568 (2020), with the
    exact gradient over all data. `nearest`: coordinate descent alone.

    Refuses when: there is no data; the float model does not have the layer, or its weight is scaled against
    it; the weight is no filter of a Conv and no matrix; an output has more than 8192 inputs; inputs are not
    finite; the error does not go down, or only on the half of the data that the weights were fitted to.
    """

    name: ClassVar[str] = "refine-weights"
    numerics: ClassVar[Numerics] = Numerics.LOSSY
    quantizes: ClassVar[bool] = True

    method: Method = field(default="gptq", metadata={"help": "how weights are rounded"})
    match: Match = field(
        default="teacher",
        metadata={"help": "come close to the float model's outputs, or to its weights' outputs"},
    )
    sequential: Sequential = field(
        default="auto",
        metadata={
            "help": "one sweep over the data per layer; auto: in large models several layers share one"
        },
    )
    damping: float | None = field(
        default=None,
        metadata={"help": "added to the inputs' moments, relative to their mean; none: by cross-validation"},
    )
    sweeps: int = field(default=20, metadata={"help": "sweeps of coordinate descent at most; 0: none"})
    scales: bool = field(default=True, metadata={"help": "fit scales to the data as well"})
    bias: bool | None = field(
        default=None,
        metadata={
            "help": "let a bias that is there take the mean error; none: of Conv and Gemm only, because the "
            "rows of a MatMul are often tokens, and those of the padding have errors of their own"
        },
    )

    def __post_init__(self) -> None:
        """Check ranges."""
        if (self.damping or 0.0) < 0 or self.sweeps < 0:
            raise ValueError("damping and sweeps must not be negative")

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Refine the layers of one body, in order."""
        layers = self._layers(graph, ctx)
        if layers and not ctx.has_data:
            graph.refuse(layers[0].quantized.node, "there is no data to measure errors on")
            return
        for sweep in plan_sweeps(graph, layers, self.sequential):
            watches = [self._watch(layer, ctx, first) for layer, first in sweep]
            for (layer, _), watch, moments in zip(
                sweep, watches, ctx.observe(graph, watches, ctx.reference), strict=True
            ):
                try:
                    self._refine(graph, ctx, layer, moments, toward_outputs=bool(watch.teacher))
                except RefusedRewrite as refused:
                    graph.refuse(layer.quantized.node, refused.reason)

    def _layers(self, graph: Rewriter, ctx: PassContext) -> list[Layer]:
        def check(layer: Layer) -> None:
            if layer.shape[2] > _COLUMNS:
                raise RefusedRewrite(f"{layer.shape[2]} inputs per output are more than {_COLUMNS}")
            if ctx.reference.array(layer.quantized.node, layer.quantized.slot) is None:
                raise RefusedRewrite("the float weights are not known")

        return layers_of(graph, check)

    def _watch(self, layer: Layer, ctx: PassContext, first: bool) -> Watch:
        """What to observe: outputs as well where all layers before this one are done."""
        node = layer.quantized.node
        x = node.inputs[layer.quantized.data_slot]
        moments = LayerMoments(layer.unfolding)
        twin = ctx.reference.node(node)
        if self.match == "weights" or not first or twin is None:
            return Watch(moments, student=(x,))
        return Watch(moments, student=(x, node.outputs[0]), teacher=(twin.outputs[0],))

    def _refine(
        self, graph: Rewriter, ctx: PassContext, layer: Layer, moments: LayerMoments, toward_outputs: bool
    ) -> None:
        """Give one layer its new weights.

        Raises:
            RefusedRewrite: see the class.
        """
        quantized = layer.quantized
        wanted = ctx.reference.array(quantized.node, quantized.slot)
        codes = graph.array(quantized.q)
        assert wanted is not None
        assert codes is not None
        if wanted.shape != layer.stored:
            raise RefusedRewrite("the float weights have another shape")
        takes_mean = quantized.node.op != "MatMul" if self.bias is None else self.bias
        bias = bias_array(graph, quantized) if takes_mean and toward_outputs else None
        if bias is not None and (bias.size != layer.outputs or bias.shape[-1] != layer.outputs):
            bias = None
        result = refine(
            layer,
            moments,
            codes,
            wanted,
            method=self.method,
            damping=self.damping,
            sweeps=self.sweeps,
            scales=self.scales,
            shift=bias is not None,
        )
        self._write(graph, layer, result, bias)

    def _write(self, graph: Rewriter, layer: Layer, result: Refined, bias: Array | None) -> None:
        quantized = layer.quantized
        with graph.site(quantized.node, result.why):
            now = set_weight(graph, quantized, result.codes, result.why, grid=result.grid)
            if bias is not None and result.shift is not None:
                moved = bias.astype(np.float64) + result.shift.reshape(bias.shape)
                set_bias(graph, now, moved.astype(np.float32), result.why)
