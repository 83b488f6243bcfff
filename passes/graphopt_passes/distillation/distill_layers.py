"""Fit the layers of a changed model again, one after another, to what the original computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from graphopt.passkit import Node, Numerics, Pass, PassContext, RefusedRewrite, Rewriter, Watch, is_selected
from graphopt_passes.distillation._fit import fit_layer, fit_lines, fitted_words
from graphopt_passes.distillation._integers import fit_integers
from graphopt_passes.distillation._plan import Fit, find_fits
from graphopt_passes.distillation._targets import Bias, NormTarget, set_line
from graphopt_passes.linear.channels import ChannelLines
from graphopt_passes.linear.layer import LinearLayer, set_weight_rows, weight_rows
from graphopt_passes.linear.least_squares import supports
from graphopt_passes.linear.moments import LayerMoments, selection_of, twin_of
from graphopt_passes.linear.sweeps import plan_sweeps
from graphopt_passes.quantization._layers import Layer


@dataclass(frozen=True)
class DistillLayers(Pass):
    """W, b = argmin |Y - X W^T - b|^2 + d |W - W_now|^2: Y of the teacher, X of this model, over the data.

    The teacher is the model as it was before the first pass that moved the numbers. Every Conv, Gemm and
    MatMul, and the scale and bias of every normalization, is fitted in the order of the graph, each on the
    inputs that this model gives it once the layers before are done: so a layer also makes up for what those
    before it could not. Weights that are zero stay zero; of channels that were removed the teacher's are left
    out; every group of a grouped convolution is a problem of its own; of quantized layers the codes are
    rounded again (as `refine-weights` does, with the same target). What has to be known of the data are
    sums of products, so memory does not grow with the number of samples.

    d is found by cross-validation: what is learned from one half of the data must suit the other better than
    the weights as they are. A layer whose error would not go down stays as it is.

    Layer-wise: Y. He, X. Zhang, J. Sun, "Channel pruning for accelerating very deep neural networks",
    arXiv:1707.06168 (2017), section 3.1, and asymmetric as X. Zhang et al., "Accelerating very deep
    convolutional networks for classification and detection", arXiv:1505.06798 (2015), section 2.3: the inputs
    are the student's, the outputs the teacher's. Without labels: G. Hinton, O. Vinyals, J. Dean, "Distilling
    the knowledge in a neural network", arXiv:1503.02531 (2015), layer by layer as A. Romero et al.,
    "FitNets", arXiv:1412.6550 (2015).

    Refuses when: there is no data; the teacher does not compute the layer's output, or its channels were
    scaled since (`smooth-activations`); an output has more than
    8192 inputs; inputs are not finite; the error does not go down, or only on the half of the data that was
    fitted to. The weight of a layer that other nodes read as well stays, and its bias is fitted.
    """

    name: ClassVar[str] = "distill-layers"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    layers: tuple[str, ...] = field(default=(), metadata={"help": "only nodes that match one of these globs"})
    damping: float | None = field(
        default=None,
        metadata={"help": "d, relative to the inputs' mean power; none: by cross-validation"},
    )
    bias: bool = field(default=True, metadata={"help": "fit biases, and give one to a Conv or Gemm without"})
    norms: bool = field(default=True, metadata={"help": "fit scale and bias of normalizations"})

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.damping is not None and not self.damping >= 0:
            raise ValueError(f"damping must not be negative, not {self.damping:g}")

    def needs_data(self) -> bool:
        """It learns from nothing else."""
        return True

    def globs(self) -> tuple[str, ...]:
        """Names of layers."""
        return self.layers

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Fit the layers of one body, in order."""
        fits = find_fits(graph, ctx, self._is_wanted, biases=self.bias, norms=self.norms)
        if fits and not ctx.has_data:
            graph.refuse(fits[0].node, "there is no data to learn from")
            return
        # Layers at one depth share a sweep. Fitted to inputs that are about to change, deeper ones would make
        # up for the same errors twice.
        for sweep in plan_sweeps(graph, fits, "yes"):
            members = [fit for fit, _ in sweep]
            watches = [self._watch(fit, ctx) for fit in members]
            for fit, found in zip(members, ctx.observe(graph, watches), strict=True):
                try:
                    if fit.norm is not None:
                        self._fit_norm(graph, fit.norm, found)
                    elif isinstance(fit.layer, Layer):
                        fit_integers(graph, ctx, fit.layer, found, shift=fit.shifts, damping=self.damping)
                    elif fit.layer is not None:
                        self._fit_layer(graph, fit.layer, fit.bias, found)
                except RefusedRewrite as refused:
                    graph.refuse(fit.node, refused.reason)

    def _is_wanted(self, node: Node) -> bool:
        return is_selected(node, self.layers)

    def _watch(self, fit: Fit, ctx: PassContext) -> Watch:
        y = fit.output.tensor
        twin, selection = twin_of(ctx, y), selection_of(ctx, y)
        assert twin is not None
        if fit.norm is not None:
            return Watch(ChannelLines(fit.norm.axis, selection), student=(y,), teacher=(twin,))
        assert fit.layer is not None
        x = fit.node.inputs[fit.layer.data_slot]
        moments = LayerMoments(fit.layer.unfolding, selection, fit.output.bounds)
        return Watch(moments, student=(x, y), teacher=(twin,))

    def _fit_layer(
        self, graph: Rewriter, layer: LinearLayer, bias: Bias | None, moments: LayerMoments
    ) -> None:
        now = weight_rows(graph, layer)
        found = fit_layer(
            moments,
            now,
            supports(now),
            shifts=bias is not None,
            damping=self.damping,
            fixed=len(graph.uses(layer.node.inputs[layer.slot])) > 1,
        )
        with graph.site(layer.node, found.why):
            if found.weights is not None:
                set_weight_rows(graph, layer, found.weights, found.why)
            if bias is not None and found.shift is not None:
                name = f"{layer.node.inputs[layer.slot].name}_bias"
                if (old := graph.input(bias.node, bias.slot)) is not None:
                    name = old.name
                fresh = graph.new_constant(name, bias.shifted(found.shift))
                graph.set_input(bias.node, bias.slot, fresh)

    def _fit_norm(self, graph: Rewriter, norm: NormTarget, lines: ChannelLines) -> None:
        slope, shift, before, after = fit_lines(lines, shifted=norm.shifted)
        power = float((lines.total.tt - lines.total.t**2 / lines.total.count).sum())
        set_line(graph, norm, slope, shift, f"scale and bias {fitted_words(power, before, after)}")
