"""The model as it was before the first pass that moves the numbers, to measure and learn from."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.graph.state import GraphState
from graphopt.graph.view import Array
from graphopt.ir import Constant, Node, Tensor
from graphopt.model import Model


class Teacher:
    """A snapshot of a model, with the way from what is left of the model's objects to their twins in it.

    Args:
        state: the model; its weights are shared, its structure is copied.

    Attributes:
        model: the snapshot.
    """

    def __init__(self, state: GraphState) -> None:
        original = state.finish()
        self.model: Model = original.copy()
        self._nodes: dict[Node, Node] = {}
        self._tensors: dict[Tensor, Tensor] = {}
        for old, new in zip(original.bodies(), self.model.bodies(), strict=True):
            self._tensors.update(zip(old.inputs, new.inputs, strict=True))
            self._tensors.update(zip(old.initializers, new.initializers, strict=True))
            for node, twin in zip(old.nodes, new.nodes, strict=True):
                self._nodes[node] = twin
                self._tensors.update(zip(node.outputs, twin.outputs, strict=True))

    @classmethod
    def of(cls, model: Model, tensors: Mapping[Tensor, Tensor]) -> Teacher:
        """Another model, which has some of the tensors.

        Args:
            model: has the same inputs and outputs; not changed afterwards.
            tensors: of the model that is to learn -> of `model`.
        """
        teacher = cls.__new__(cls)
        teacher.model, teacher._nodes, teacher._tensors = model, {}, dict(tensors)
        return teacher

    def node(self, node: Node) -> Node | None:
        """What `node` was then; None when a later pass made it."""
        return self._nodes.get(node)

    def tensor(self, tensor: Tensor) -> Tensor | None:
        """What `tensor` was then; None when a later pass made it."""
        return self._tensors.get(tensor)

    def array(self, node: Node, slot: int) -> Array | None:
        """The constant that `node` read at `slot` then; None when it read none. Do not write to it."""
        twin = self._nodes.get(node)
        if twin is None or slot >= len(twin.inputs):
            return None
        source = twin.inputs[slot]
        if not isinstance(source, Constant):
            return None
        self.model.lend(source.nbytes)
        values: Array = source.values
        return values
