"""remove-dropout: in inference Dropout(x) = x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.passkit import AttributeRef, Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter


@dataclass(frozen=True)
class RemoveDropout(NodePass):
    """Dropout(x) = x in inference.

    That is: before opset 7 with is_test; from 7 to 11 always; from 12 on without training_mode, with a
    training_mode that is constantly False, or with a ratio that is constantly 0.

    Refuses when it may train, and when its mask is used.
    """

    name: ClassVar[str] = "remove-dropout"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Dropout",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Let readers read the input."""
        source, result, mask = graph.input(node, 0), graph.output(node, 0), graph.output(node, 1)
        if source is None or result is None:
            return
        if mask is not None and graph.is_read(mask):
            raise RefusedRewrite(f"the mask {mask.name} is used")
        if graph.opset < 7:
            is_test = graph.attr(node, "is_test")
            if isinstance(is_test, AttributeRef) or not is_test:
                raise RefusedRewrite("is_test is not set, so it drops elements")
        elif graph.opset >= 12:
            mode = graph.input(node, 2)
            ratio = graph.input(node, 1)
            if mode is not None and graph.scalar(mode) is not False and graph.scalar(ratio) != 0:
                raise RefusedRewrite(f"training_mode {mode.name} is not constantly False")
        graph.bypass(result, source, "Dropout changes nothing in inference")
