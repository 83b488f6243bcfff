"""The nodes around the place where a candidate starts to differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from graphopt.graph.text import op_text
from graphopt.ir import Node, Tensor
from graphopt.report.validated import NearbyNode

if TYPE_CHECKING:
    from graphopt.validation.layers import Comparison
    from graphopt.validation.matching import Pair

_BEFORE: Final = 2
_MOST: Final = 12


def neighbourhood(comparison: Comparison, pair: Pair, guilty: Node | None = None) -> tuple[NearbyNode, ...]:
    """What computes a pair that is off, what comes up to two nodes before it, and what reads it.

    Args:
        comparison: what is known of the tensors.
        pair: the first that differs.
        guilty: the node to mark, where that is not the one that computes it.

    Returns:
        the nodes in order of execution.
    """
    net = comparison.matching.candidate
    last = net.places[pair.candidate].node
    guilty = guilty or last
    near: dict[Node, None] = {guilty: None, last: None}
    frontier = [pair.candidate]
    for _ in range(_BEFORE):
        above: list[Tensor] = []
        for tensor in frontier:
            above += net.sources(tensor)
        for tensor in above:
            node = net.producer(tensor)
            if node is not None and len(near) < _MOST:
                near.setdefault(node)
        frontier = above
    for node in net.readers.get(pair.candidate, ()):
        if len(near) < _MOST and net.body_of[node] == net.body_of[guilty]:
            near.setdefault(node)
    order = {node: i for i, node in enumerate(net.nodes)}
    found = sorted(near, key=order.__getitem__)
    return tuple(
        NearbyNode(
            name=node.name,
            op=op_text(node),
            inputs=tuple(net.name(t) for t in node.inputs if t.name),
            outputs=tuple(net.name(t) for t in node.outputs if t.name),
            made_by=net.made_by(node),
            state=_state(comparison, node),
            guilty=node is guilty,
        )
        for node in found
    )


def _state(comparison: Comparison, node: Node) -> Literal["agrees", "diverges", "unknown"]:
    """What is known of a node's outputs."""
    matching = comparison.matching
    pairs = [p for t in node.outputs if (p := matching.of_candidate(t)) is not None]
    gaps = [g for g in comparison.gaps(pairs).values() if g is not None]
    if any(not g.ok for g in gaps):
        return "diverges"
    return "agrees" if gaps else "unknown"
