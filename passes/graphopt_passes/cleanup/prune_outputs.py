"""prune-outputs: optional outputs that nobody reads need not be computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import onnx.defs

from graphopt.passkit import GraphView, Node, NodePass, Numerics, PassContext, Rewriter

# The presence of an output means something: BatchNormalization before opset 14 trains when it has any
# further output, and from 14 on must have them in training.
_MEANINGFUL: Final = frozenset({"BatchNormalization"})
_OPTIONAL: Final = onnx.defs.OpSchema.FormalParameterOption.Optional


@dataclass(frozen=True)
class PruneOutputs(NodePass):
    """Omit outputs that nobody reads, where the operator's schema says that an output is optional.

    Such as the mask of Dropout, the indices of MaxPool, Y / Y_h / Y_c of LSTM, the statistics of
    LayerNormalization. Stays: required and variadic outputs (TopK, Split), those of operators whose
    behaviour depends on them (BatchNormalization, Attention with a cache), and the only output of a node.
    """

    name: ClassVar[str] = "prune-outputs"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Omit the unused outputs of one node, if something of it is used."""
        named = [slot for slot, t in enumerate(node.outputs) if t.name]
        if len(named) < 2:
            return
        unused = [slot for slot in named if not graph.is_read(node.outputs[slot])]
        if not unused or len(unused) == len(named) or graph.keeps(node):
            return
        droppable = [slot for slot in unused if _is_optional(graph, node, slot)]
        if not droppable:
            return
        with graph.site(node, f"{len(droppable)} of {len(named)} outputs of {node.op} are not used"):
            for slot in reversed(droppable):
                graph.omit_output(node, slot)


def _is_optional(graph: GraphView, node: Node, slot: int) -> bool:
    domain = node.domain or ""
    version = graph.opset_of(domain)
    if version is None or not graph.is_op(node, node.op, domain=domain) or node.op in _MEANINGFUL:
        return False
    if node.op == "Attention" and slot in (1, 2) and graph.input(node, 4) is not None:
        return False  # past and present of the key/value cache come together
    try:
        outputs = onnx.defs.get_schema(node.op, version, domain).outputs
    except onnx.defs.SchemaError:
        return False
    return slot < len(outputs) and outputs[slot].option == _OPTIONAL
