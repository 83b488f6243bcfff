"""RMSNormalization from its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.fusion._norm import read_scaled, read_tail, scale_and_shift
from graphopt_passes.fusion._region import Region, accepts, contrib_accepts

_CONTRIB = "SimplifiedLayerNormalization"


@dataclass(frozen=True)
class FuseRmsNorm(NodePass):
    """x / sqrt(mean(x^2) + eps) * w = RMSNormalization(x, w).

    The mean runs over the last axes; w is optional. The square is Pow or Mul, the division Div, or Mul by
    Reciprocal, by 1 / Sqrt or by Pow -0.5. If x is cast from half precision to float before and back
    after, the operator takes x as it was, because it computes in float anyway.

    -> RMSNormalization (opset 23). Under a target that has it, SimplifiedLayerNormalization at lower
    opsets: ONNX Runtime registers it in the standard domain although ONNX does not know it, so
    `onnx.checker` rejects the result, and no other runtime loads it.

    Refuses when: neither opset nor target has the operator; an intermediate result has another reader or
    is a graph output; the mean runs over other axes; the exponent is not 2; epsilon is no constant
    scalar; x is double; x is itself a difference to its mean, and only SimplifiedLayerNormalization
    could be used: ONNX Runtime fuses a LayerNormalization whole when it loads it. Where w does not have the
    shape of the normalized axes, it stays as it is.
    A LayerNormalization is one of these of x - mean(x), so run fuse-layer-norm before.
    """

    name: ClassVar[str] = "fuse-rms-norm"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Div", "Mul")
    reach: ClassVar[int] = 7

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fuse the normalization whose division is `node`."""
        region = Region(graph)
        scaled = read_scaled(region, node)
        if scaled is None or scaled.numerator is not scaled.squared:
            return
        x = scaled.numerator
        tail = read_tail(graph, region, node, x, scaled.count, shifts=False)
        region.check_closed(tail.last)
        region.check_rank(x)
        dtype = graph.dtype(tail.x)
        if dtype == onnx.TensorProto.DOUBLE:
            raise RefusedRewrite("RMSNormalization need not compute in double")
        if accepts(graph, "RMSNormalization", dtype):
            op = "RMSNormalization"
        elif contrib_accepts(ctx, _CONTRIB, dtype):
            if _is_centred(graph, x):
                raise RefusedRewrite("it is part of a LayerNormalization, which onnxruntime fuses whole")
            op = _CONTRIB
        else:
            raise RefusedRewrite(
                f"no RMSNormalization for the type of {x.name} at opset {graph.opset} "
                f"and target {ctx.target.name}"
            )
        with graph.site(node, f"{node.op} divides by the root mean square"):
            scale, _ = scale_and_shift(graph, ctx, tail, scaled.count, op)
            attrs = {"axis": -scaled.count, "epsilon": scaled.epsilon}
            graph.replace(tail.last.outputs[0], op, [tail.x, scale], attrs=attrs)


def _is_centred(graph: Rewriter, x: Tensor) -> bool:
    """`x` is the difference of a tensor to its mean."""
    sub = graph.producer(x)
    if sub is None or sub.op != "Sub":
        return False
    mean = graph.producer(sub.inputs[1])
    return mean is not None and mean.op == "ReduceMean" and mean.inputs[0] is sub.inputs[0]
