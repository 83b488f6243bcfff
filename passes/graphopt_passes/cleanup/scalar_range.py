"""Range with operands of one element instead of scalars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.passkit import Node, NodePass, Numerics, PassContext, Rewriter


@dataclass(frozen=True)
class ScalarRange(NodePass):
    """Range([a], [b], [c]) = Range(a, b, c): operands of shape [1] become the scalars that ONNX asks for.

    Exporters, and ONNX's own function bodies, hand Range vectors of one element. Runtimes accept that only
    as long as shape inference does not notice, and any simplification upstream may make it notice. So this
    runs before the passes that do.

    Refuses when: the shape of an operand is not known to be [1].
    """

    name: ClassVar[str] = "scalar-range"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Range",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Replace each vector of one element by its element."""
        for slot, tensor in enumerate(node.inputs):
            if graph.shape(tensor) != (1,):
                continue
            with graph.site(node, f"{tensor.name} becomes a scalar"):
                array = graph.array(tensor)
                if array is not None:
                    scalar = graph.new_constant(tensor.name, array.reshape(()))
                elif graph.opset < 13:
                    scalar = graph.op("Squeeze", [tensor], attrs={"axes": [0]}, hint=tensor.name)
                else:
                    axes = graph.new_constant("axes", np.array([0], np.int64))
                    scalar = graph.op("Squeeze", [tensor, axes], hint=tensor.name)
                graph.set_input(node, slot, scalar)
