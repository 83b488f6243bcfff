"""Topological order of a body: iterative, stable, linear."""

from __future__ import annotations

from graphopt.errors import PassError
from graphopt.graph.index import Index
from graphopt.ir import Body, Node


def sort_body(index: Index, body: Body, blame: str = "") -> list[Node]:
    """Nodes of `body` such that producers come before readers.

    Depth first from the nodes in their present rank order, so that nodes which are already in order
    stay as they are. A node that holds bodies also waits for the tensors which these capture.

    Raises:
        PassError: the nodes form a cycle; `blame` names the pass that made it.
    """
    done: set[Node] = set()
    active: set[Node] = set()
    order: list[Node] = []
    home, producer_of = index.home, index.producer

    def waits_for(node: Node) -> list[Node]:
        reads = [*node.inputs, *index.captured(node)] if any(True for _ in node.bodies()) else node.inputs
        found = (producer_of.get(t) for t in reads)
        # Reversed: the stack visits the first input first.
        return [p for p in found if p is not None and p not in done and home[p] is body][::-1]

    for start in sorted(index.nodes[body], key=index.rank.__getitem__):
        if start in done:
            continue
        stack = [start]
        while stack:
            node = stack[-1]
            if node in done:
                stack.pop()
                continue
            pending = waits_for(node)
            if not pending:
                stack.pop()
                active.discard(node)
                done.add(node)
                order.append(node)
                continue
            if node in active:
                cycle = ", ".join(repr(n) for n in stack if n in active)
                raise PassError(blame, f"the graph has a cycle through {cycle}")
            active.add(node)
            stack.extend(pending)
    return order
