"""Constant nodes become initializers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt.passkit import (
    Array,
    AttributeRef,
    Constant,
    Node,
    NodePass,
    Numerics,
    PassContext,
    Rewriter,
)


def literal(node: Node) -> Array | None:
    """The value of a Constant node that spells it as Python numbers or strings.

    Args:
        node: a Constant node.

    Returns:
        An array of the dtype that the attribute stands for: float32 for `value_float(s)`, int64 for
        `value_int(s)`, strings for `value_string(s)`; rank 0 for the singular, 1 for the plural form.
        None for a tensor, a sparse tensor, or a reference to an attribute of the enclosing function.
    """
    for name, dtype in (("float", np.float32), ("int", np.int64), ("string", object)):
        for attr, rank in ((f"value_{name}", 0), (f"value_{name}s", 1)):
            value: Any = node.attrs.get(attr)
            if value is None or isinstance(value, AttributeRef):
                continue
            items = [value] if rank == 0 else list(value)
            array = np.empty(len(items), dtype)
            array[:] = items
            return array.reshape(()) if rank == 0 else array
    return None


@dataclass(frozen=True)
class LiftConstants(NodePass):
    """Constant nodes become initializers of their body.

    The initializer takes the name of the node's output and, for a tensor, the very same bytes, which are
    not loaded. Where no initializer can stand for the node - in a local function, which has none, or when
    its output is what the body returns - numbers and strings become a tensor attribute, which other
    passes read as a constant.

    Left alone: sparse values, and values that refer to an attribute of the enclosing function.
    """

    name: ClassVar[str] = "lift-constants"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Constant",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Lift one Constant node."""
        output = graph.output(node, 0)
        if output is None or not graph.is_read(output) or graph.keeps(node):
            return
        tensor = node.attrs.get("value")
        if isinstance(tensor, Constant):
            lifted = tensor
        else:
            array = literal(node)
            if array is None:
                return
            lifted = graph.new_constant(output.name, array)
        if graph.is_function or graph.is_output(output):
            if lifted is not tensor:
                graph.replace(output, "Constant", [], attrs={"value": lifted}, why="its value is a tensor")
            return
        before = lifted.name
        # The variable of this name goes with the node: nobody else reads or returns it.
        lifted.name = output.name
        graph.bypass(output, lifted, why="a constant is an initializer")
        if graph.is_live(node):
            lifted.name = before
