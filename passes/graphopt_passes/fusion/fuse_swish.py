"""Swish from its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.fusion._gates import gates
from graphopt_passes.fusion._region import accepts, contrib_accepts, epsilon, replace_by_contrib

_EXPANDED = 24


@dataclass(frozen=True)
class FuseSwish(NodePass):
    """x * sigmoid(alpha * x) = Swish(x, alpha); alpha = 1 is SiLU.

    -> com.microsoft's QuickGelu under a target that has it, otherwise Swish of opset 24.

    Refuses when: an intermediate result has another reader or is a graph output; a constant would
    broadcast x to a higher rank. Without com.microsoft's operators nothing is done at other opsets than
    24: onnxruntime (1.32) has no kernel for Swish and expands it only in models of the very opset that
    defines it.
    """

    name: ClassVar[str] = "fuse-swish"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Mul", "Div")
    reach: ClassVar[int] = 4

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fuse the Swish that ends in `node`."""
        if graph.opset != _EXPANDED and not ctx.target.has_contrib("QuickGelu"):
            return
        for gate in gates(graph, node):
            dtype = graph.dtype(node.outputs[0])
            is_swish = gate.curve == "Sigmoid" and gate.coefficient == 1.0 and set(gate.argument) == {1}
            if not is_swish or epsilon(dtype) is None:
                continue
            gate.region.check_closed(node)
            gate.region.check_rank(gate.x)
            alpha: dict[str, object] = {"alpha": gate.argument[1]}
            with graph.site(node, f"{node.op} multiplies x by the sigmoid of x"):
                if contrib_accepts(ctx, "QuickGelu", dtype):
                    replace_by_contrib(graph, node.outputs[0], "QuickGelu", [gate.x], alpha)
                elif graph.opset == _EXPANDED and accepts(graph, "Swish", dtype):
                    graph.replace(node.outputs[0], "Swish", [gate.x], attrs=alpha)
                else:
                    raise RefusedRewrite(f"no Swish for the type of {gate.x.name} at opset {graph.opset}")
            return
