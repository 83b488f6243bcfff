"""Putting a constant in the place of a computed tensor."""

from __future__ import annotations

from graphopt.passkit import Array, Rewriter, Tensor


def store(t: Tensor, value: Array, graph: Rewriter, why: str) -> bool:
    """Make `value` known as the value of `t`, a tensor that a node of this body computes.

    An output of the body is computed by a Constant node from now on, so that it keeps its name.

    Returns:
        Whether it was done: a node may be kept, or bisection may leave it out.
    """
    node = graph.producer(t)
    if node is None:
        return False
    with graph.site(node, why):
        if value.ndim and value.size == 1:
            # Runtimes accept a vector of one element here until they see that it is one.
            for use in graph.uses(t):
                if graph.is_op(use.node, "Range"):
                    scalar = graph.new_constant(t.name, value.reshape(()))
                    graph.set_input(use.node, use.slot, scalar)
        constant = graph.new_constant(t.name, value)
        if graph.is_output(t):
            graph.replace(t, "Constant", [], attrs={"value": constant})
        elif graph.is_read(t):
            graph.bypass(t, constant)
    return graph.producer(t) is not node
