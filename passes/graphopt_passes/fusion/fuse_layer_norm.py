"""LayerNormalization from its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.fusion._norm import read_scaled, read_tail, scale_and_shift, trailing_axes
from graphopt_passes.fusion._region import Region, accepts


@dataclass(frozen=True)
class FuseLayerNorm(NodePass):
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * gamma + beta = LayerNormalization(x, gamma, beta).

    The means run over the last axes; gamma and beta are optional. The square is Pow or Mul, the division
    Div, or Mul by Reciprocal, by 1 / Sqrt or by Pow -0.5, and the difference may be computed twice. If x
    is cast from half precision to float before and back after, the operator takes x as it was, because
    it computes in float anyway. Half precision without casts is fused as well: the result is the more
    precise one, and finite where the square overflowed.

    Refuses when: the opset has no LayerNormalization (17); an intermediate result has another reader or
    is a graph output; the means run over other axes, different axes, or different tensors; the exponent
    is not 2; epsilon is no constant scalar; x is double, which the operator may compute in float. Where
    gamma and beta do not have the shape of the normalized axes, they stay behind as they are.
    """

    name: ClassVar[str] = "fuse-layer-norm"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Div", "Mul")
    reach: ClassVar[int] = 8

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fuse the normalization whose division is `node`."""
        region = Region(graph)
        scaled = read_scaled(region, node)
        if scaled is None:
            return
        x = self._centred(region, scaled.numerator, scaled.count)
        if x is None:
            return  # nothing is subtracted: that is for fuse-rms-norm
        if scaled.squared is not scaled.numerator and (
            self._centred(region, scaled.squared, scaled.count) is not x
        ):
            raise RefusedRewrite("the variance is that of another tensor")
        tail = read_tail(graph, region, node, x, scaled.count, shifts=True)
        region.check_closed(tail.last)
        region.check_rank(x)
        dtype = graph.dtype(tail.x)
        if dtype == onnx.TensorProto.DOUBLE:
            raise RefusedRewrite("LayerNormalization need not compute in double")
        if not accepts(graph, "LayerNormalization", dtype):
            raise RefusedRewrite(f"no LayerNormalization for the type of {x.name} at opset {graph.opset}")
        with graph.site(node, f"{node.op} divides by the standard deviation"):
            scale, shift = scale_and_shift(graph, ctx, tail, scaled.count, "LayerNormalization")
            attrs = {"axis": -scaled.count, "epsilon": scaled.epsilon}
            inputs = [tail.x, scale] if shift is None else [tail.x, scale, shift]
            graph.replace(tail.last.outputs[0], "LayerNormalization", inputs, attrs=attrs)

    @staticmethod
    def _centred(region: Region, tensor: Tensor, count: int) -> Tensor | None:
        """`x` if `tensor` is `x - mean(x)` over the last `count` axes.

        Raises:
            RefusedRewrite: the mean is that of another tensor, or over other axes.
        """
        sub = region.find(tensor, "Sub")
        if sub is None:
            return None
        x, mean = sub.inputs
        node = region.find(mean, "ReduceMean")
        if node is None:
            raise RefusedRewrite("what is subtracted is not a mean")
        if node.inputs[0] is not x:
            raise RefusedRewrite("the mean is that of another tensor")
        if trailing_axes(region.graph, node) != count:
            raise RefusedRewrite("mean and variance run over different axes")
        return x
