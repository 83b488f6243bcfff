"""Gelu from its parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.fusion._algebra import matches, near
from graphopt_passes.fusion._gates import Gate, gates
from graphopt_passes.fusion._region import accepts, contrib_accepts, epsilon, replace_by_contrib

_TANH = math.sqrt(2.0 / math.pi)
_CUBIC = 0.044715
QUICK = 1.702
# How many units in the last place a constant may be off: it is a rounded product of rounded constants.
ULPS = 8.0


@dataclass(frozen=True)
class FuseGelu(NodePass):
    """0.5 * x * (1 + erf(x / sqrt(2))) = Gelu(x), and likewise its tanh and sigmoid forms.

    In whatever order and grouping the factors come:

    * `0.5 * x * (1 + erf(x / sqrt(2)))` -> Gelu (opset 20), or com.microsoft's Gelu;
    * `0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x^3)))`, also written as
      `x * sigmoid(2 * sqrt(2/pi) * (...))` -> Gelu(approximate="tanh")
      (opset 20), or com.microsoft's FastGelu;
    * `x * sigmoid(1.702 * x)` -> com.microsoft's QuickGelu.

    com.microsoft's operators are used only under a target that has them.

    Refuses when: an intermediate result has another reader or is a graph output; a constant would
    broadcast x to a higher rank; neither the opset nor the target has the operator for x's type.
    Constants that are off by more than the float type's rounding are no Gelu at all.
    """

    name: ClassVar[str] = "fuse-gelu"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Mul", "Div")
    reach: ClassVar[int] = 9

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fuse the Gelu that ends in `node`."""
        for gate in gates(graph, node):
            kind = gelu_kind(gate, graph.dtype(node.outputs[0]))
            if kind is None:
                continue
            gate.region.check_closed(node)
            gate.region.check_rank(gate.x)
            with graph.site(node, f"{node.op} ends the {kind} form of Gelu"):
                self._rewrite(node, gate, kind, graph, ctx)
            return

    def _rewrite(self, node: Node, gate: Gate, kind: str, graph: Rewriter, ctx: PassContext) -> None:
        old = node.outputs[0]
        dtype = graph.dtype(old)
        # ONNX Runtime has no Erf, hence no Gelu, for double.
        standard = accepts(graph, "Gelu", dtype) and dtype != onnx.TensorProto.DOUBLE
        if kind != "sigmoid" and standard:
            graph.replace(old, "Gelu", [gate.x], attrs={"approximate": "tanh"} if kind == "tanh" else None)
            return
        contrib = {"erf": "Gelu", "tanh": "FastGelu", "sigmoid": "QuickGelu"}[kind]
        if not contrib_accepts(ctx, contrib, dtype):
            raise RefusedRewrite(
                f"no operator for the {kind} form of Gelu at opset {graph.opset} and target {ctx.target.name}"
            )
        attrs: dict[str, object] | None = {"alpha": gate.argument[1]} if kind == "sigmoid" else None
        replace_by_contrib(graph, old, contrib, [gate.x], attrs)


def gelu_kind(gate: Gate, dtype: int | None) -> str | None:
    """Which form of Gelu `gate` is: "erf", "tanh", "sigmoid", or None if it is not one."""
    eps = epsilon(dtype)
    if eps is None:
        return None
    rtol = ULPS * eps
    odd = {1: _TANH, 3: _TANH * _CUBIC}
    if gate.curve == "Sigmoid":
        if not near(gate.coefficient, 1.0, rtol):
            return None
        if matches(gate.argument, {1: QUICK}, rtol):
            return "sigmoid"
        return "tanh" if matches(gate.argument, {d: 2.0 * c for d, c in odd.items()}, rtol) else None
    if not near(gate.coefficient, 0.5, rtol):
        return None
    if gate.curve == "Erf":
        return "erf" if matches(gate.argument, {1: math.sqrt(0.5)}, rtol) else None
    return "tanh" if matches(gate.argument, odd, rtol) else None
