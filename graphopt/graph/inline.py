"""Putting the body of a control-flow branch in the place of its node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.graph.index import Index
from graphopt.ir import Body, Node, Tensor, Variable

if TYPE_CHECKING:
    from graphopt.graph.rewriter import Rewriter


def inline_branch(graph: Rewriter, node: Node, branch: Body) -> None:
    """Move the nodes and initializers of `branch` in front of `node`, then drop `node`.

    An output of the branch that a moved node computes becomes the node's output itself; one that the
    branch merely passes on (an outer tensor, a constant, or the same tensor twice) goes through an
    Identity, so that names of graph outputs survive in every case.
    """
    state, index = graph._state, graph._state.index
    outer = index.home[node]
    taken = names_outside(index, node)
    rank = index.rank[node]
    # Ranks stay in the branch's own order, all between the If's producers and its readers.
    moved = state.ordered(branch)
    for place, inner in enumerate(moved):
        state.move_node(inner, outer, rank + (place + 1) * 2.0**-30)
        for t in inner.outputs:
            if t.name in taken:
                state.rename(t, graph.fresh_name(t.name))
    for constant in list(branch.initializers):
        state.move_constant(constant, outer)
        if constant.name in taken:
            state.rename(constant, graph.fresh_name(constant.name))
    results = list(branch.outputs)
    for slot in range(len(results)):
        state.set_body_output(branch, slot, Variable.empty())
    own = set(moved)
    seen: set[Tensor] = set()
    for result, target in zip(results, list(node.outputs), strict=False):
        if not target.name:
            continue
        source = index.producer.get(result)
        if source is None or source not in own or result in seen or graph.is_output(result):
            graph.replace(target, "Identity", [result])
            continue
        seen.add(result)
        state.merge_facts(target, result)
        graph._redirect(result, target)
        state.set_output(source, next(i for i, t in enumerate(source.outputs) if t is result), target)
    if node in index.home:
        state.remove_node(node)


def names_outside(index: Index, node: Node) -> set[str]:
    """Tensor names of the whole model, but for those inside the bodies of `node`."""
    inside: set[Body] = set()
    stack = list(node.bodies())
    while stack:
        body = stack.pop()
        inside.add(body)
        for inner in index.nodes[body]:
            stack.extend(inner.bodies())
    names: set[str] = set()
    for body, nodes in index.nodes.items():
        if body in inside:
            continue
        names.update(t.name for t in body.inputs)
        names.update(c.name for c in body.initializers)
        for other in nodes:
            names.update(t.name for t in other.outputs)
    return names
