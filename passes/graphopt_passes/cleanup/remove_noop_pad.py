"""remove-noop-pad: a Pad of nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import AttributeRef, Node, NodePass, Numerics, PassContext, Rewriter
from graphopt_passes.cleanup.operands import known_ints


@dataclass(frozen=True)
class RemoveNoopPad(NodePass):
    """Pad(x, zeros) = x in every mode.

    Leaves alone pads that are not known before the model runs, and those that cut and add (their sum may
    be 0).
    """

    name: ClassVar[str] = "remove-noop-pad"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Pad",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the input."""
        source, result = graph.input(node, 0), graph.output(node, 0)
        if source is None or result is None:
            return
        if graph.opset >= 11:
            pads = known_ints(graph, graph.input(node, 1))
        else:
            given = graph.attr(node, "paddings" if graph.opset < 2 else "pads")
            pads = None if given is None or isinstance(given, AttributeRef) else list(given)
        if pads is not None and all(p == 0 for p in pads):
            graph.bypass(result, source, "Pad by nothing")
