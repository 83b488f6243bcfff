"""What lies between two tensors of a dataflow graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from graphopt.passkit import GraphView, Node, Tensor, reads


class Flow:
    """Who depends on whom in a body.

    Args:
        graph: the body, as it is now.

    Attributes:
        rank: where each node stands in topological order.
    """

    def __init__(self, graph: GraphView) -> None:
        order = graph.nodes()
        self.rank = {node: i for i, node in enumerate(order)}
        self._producer = {t: node for node in order for t in node.outputs if t.name}
        self._readers: dict[Tensor, list[Node]] = {}
        self._reads: dict[Node, list[Tensor]] = {}
        for node in order:
            self._reads[node] = list(reads(node))
            for tensor in self._reads[node]:
                self._readers.setdefault(tensor, []).append(node)

    def between(self, x: Tensor, ends: Sequence[Tensor], root: Node) -> set[Node] | None:
        """The nodes by which `ends`, which `root` reads, depend on `x`; None if one of them does not."""
        limit = self.rank[root]
        after = self._after(x, limit)
        if any(self._producer.get(end) not in after for end in ends):
            return None
        region: set[Node] = set()
        stack = [self._producer[end] for end in ends]
        while stack:
            node = stack.pop()
            if node in region:
                continue
            region.add(node)
            stack += [p for t in self._reads[node] if (p := self._producer.get(t)) in after and p is not None]
        return region

    def _after(self, x: Tensor, limit: int) -> set[Node]:
        """The nodes that depend on `x`, those before the node of rank `limit`."""
        found: set[Node] = set()
        stack = list(self._readers.get(x, ()))
        while stack:
            node = stack.pop()
            if node in found or self.rank[node] >= limit:
                continue
            found.add(node)
            stack += [reader for t in node.outputs for reader in self._readers.get(t, ())]
        return found

    def _before(self, x: Tensor) -> set[Node]:
        found: set[Node] = set()
        stack = [p] if (p := self._producer.get(x)) is not None else []
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack += [p for t in self._reads[node] if (p := self._producer.get(t)) is not None]
        return found

    def both_computed(self, a: Tensor, b: Tensor, ops: Collection[str]) -> bool:
        """Whether `a` and `b` are computed from one tensor, each by a node of the types `ops`."""
        before_a, before_b = self._before(a), self._before(b)
        return all(
            any(node.op in ops for node in mine - theirs)
            for mine, theirs in ((before_a, before_b), (before_b, before_a))
        )


def summands(graph: GraphView, root: Node, adds: tuple[str, ...]) -> tuple[list[Tensor], frozenset[Node]]:
    """What the sum at `root` adds up, and the Adds that do, where they are read by nothing else."""
    terms: list[Tensor] = []
    nodes = {root}
    stack = list(reversed(root.inputs))
    while stack:
        tensor = stack.pop()
        node = graph.producer_op(tensor, *adds)
        if node is not None and graph.is_local(tensor) and graph.sole_consumer(tensor) in nodes:
            nodes.add(node)
            stack += reversed(node.inputs)
        else:
            terms.append(tensor)
    return terms, frozenset(nodes)
