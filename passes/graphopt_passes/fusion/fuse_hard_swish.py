"""HardSigmoid and HardSwish from their parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.fusion._algebra import matches, near, polynomial, product
from graphopt_passes.fusion._bounds import read_bounds
from graphopt_passes.fusion._region import Region, accepts, epsilon, plain_attr

_ALPHA, _BETA = 1.0 / 6.0, 0.5
_ULPS = 8.0


@dataclass(frozen=True)
class FuseHardSwish(NodePass):
    """x * clip(x + 3, 0, 6) / 6 = HardSwish(x), and clip(x + 3, 0, 6) / 6 = HardSigmoid(x, 1/6, 1/2).

    In whatever order and grouping; x * HardSigmoid(x, 1/6, 1/2) is a HardSwish (opset 14) as well. Relu6
    spelled as Relu and Min becomes a Clip by merge-clips first.

    Refuses when: an intermediate result has another reader or is a graph output; a constant broadcasts x
    to a higher rank; the opset has no such operator for x's type; x is double, for which ONNX Runtime
    has no kernel.
    """

    name: ClassVar[str] = "fuse-hard-swish"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Mul", "Div", "Clip")
    reach: ClassVar[int] = 5

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fuse the HardSwish or HardSigmoid that ends in `node`."""
        eps = epsilon(graph.dtype(node.outputs[0]))
        if eps is None:
            return
        for shared in (False, True):
            found = self._read(graph, node, _ULPS * eps, shared)
            if found is None:
                continue
            op, x, region = found
            region.check_closed(node)
            region.check_rank(x)
            dtype = graph.dtype(node.outputs[0])
            if dtype == onnx.TensorProto.DOUBLE or not accepts(graph, op, dtype):
                raise RefusedRewrite(f"no {op} for the type of {x.name} at opset {graph.opset}")
            attrs = {"alpha": _ALPHA, "beta": _BETA} if op == "HardSigmoid" else None
            with graph.site(node, f"{node.op} ends a {op}"):
                graph.replace(node.outputs[0], op, [x], attrs=attrs)
            return

    @staticmethod
    def _read(graph: Rewriter, root: Node, rtol: float, shared: bool) -> tuple[str, Tensor, Region] | None:
        region = Region(graph)
        if root.op == "Clip":
            factors: tuple[Tensor, ...] = (root.outputs[0],)
            coefficient = 1.0
        else:
            found = product(region, root, shared)
            factors, coefficient = found.factors, found.coefficient
        if len(factors) == 1:
            x = _hard_sigmoid(region, factors[0], None, coefficient, rtol)
            return None if x is None else ("HardSigmoid", x, region)
        if len(factors) != 2:
            return None
        for x, gate in (factors, factors[::-1]):
            attempt = region.fork()
            if _hard_sigmoid(attempt, gate, x, coefficient, rtol) is x:
                return "HardSwish", x, attempt
        return None


def _hard_sigmoid(
    region: Region, tensor: Tensor, x: Tensor | None, coefficient: float, rtol: float
) -> Tensor | None:
    """`x` if `coefficient * tensor` is HardSigmoid(x, 1/6, 1/2); with x None, whatever it is of."""
    graph = region.graph
    node = region.find(tensor, "Clip", "HardSigmoid")
    if node is None:
        return None
    if node.op == "HardSigmoid":
        alpha, beta = plain_attr(graph, node, "alpha"), plain_attr(graph, node, "beta")
        if x is None or not isinstance(alpha, float) or not isinstance(beta, float):
            return None
        if coefficient != 1.0 or not near(alpha, _ALPHA, rtol) or not near(beta, _BETA, rtol):
            return None
        return node.inputs[0]
    bounds = read_bounds(region, node)
    if bounds is None or bounds.low != 0 or not near(coefficient * bounds.high, 1.0, rtol):
        return None
    x = _origin(region, bounds.x) if x is None else x
    line = None if x is None else polynomial(region, bounds.x, x)
    if line is None or not matches(
        {d: coefficient * c for d, c in line.items()}, {1: _ALPHA, 0: _BETA}, rtol
    ):
        return None
    return x


def _origin(region: Region, tensor: Tensor) -> Tensor | None:
    """What `tensor` is a line in: the first operand that is no sum or product with a constant."""
    for _ in range(3):
        node = region.fork().find(tensor, "Add", "Sub", "Mul", "Div")
        if node is None:
            return tensor
        variable = [t for t in node.inputs if not region.graph.is_constant(t)]
        if len(variable) != 1:
            return tensor
        (tensor,) = variable
    return tensor
