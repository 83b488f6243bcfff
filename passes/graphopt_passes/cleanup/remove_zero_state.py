"""Initial states of recurrent operators that are zero anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from graphopt.passkit import AttributeRef, Constant, Node, NodePass, Numerics, PassContext, Rewriter, Tensor
from graphopt_passes.cleanup.operands import uniform

# Operators whose output holds elements of their first input, and nothing else.
_MOVES: Final = (
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
_FAR: Final = 16


@dataclass(frozen=True)
class RemoveZeroState(NodePass):
    """LSTM(x, ..., initial_h = 0, initial_c = 0) = LSTM(x, ...), and GRU and RNN likewise.

    An initial state that is not given is zero (ONNX, LSTM). Exporters compute one all the same, from the
    batch size: Shape, Concat, ConstantOfShape and Slice for every layer.

    Refuses when: the state is not provably +0.0 throughout.
    """

    name: ClassVar[str] = "remove-zero-state"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("LSTM", "GRU", "RNN")
    reach: ClassVar[int] = 4

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Omit the states that are zero."""
        for slot in (5, 6):
            state = graph.input(node, slot)
            if state is not None and is_zero(graph, state):
                with graph.site(node, f"{state.name} is zero, as it is when it is not given"):
                    graph.set_input(node, slot, None)
        while len(node.inputs) > 3 and not node.inputs[-1].name:
            with graph.site(node, "inputs that are not given at the end"):
                graph.set_inputs(node, list(node.inputs[:-1]))


def is_zero(graph: Rewriter, tensor: Tensor) -> bool:
    """Whether every element of `tensor` is +0.0, whatever its shape turns out to be."""
    at = tensor
    for _ in range(_FAR):
        if graph.is_constant(at):
            value = uniform(graph, at)
            return value is not None and not any(value.tobytes())
        node = graph.producer(at)
        if node is None:
            return False
        if graph.is_op(node, "ConstantOfShape"):
            value = node.attrs.get("value")
            if isinstance(value, Constant):
                return not any(value.values.tobytes())
            return not isinstance(value, AttributeRef)  # the default is 0.0
        source = graph.input(node, 0)
        if not graph.is_op(node, *_MOVES) or source is None:
            return False
        at = source
    return False
