"""Views of a body as a dataflow graph: dependencies, what is live when, convex regions, the longest chain.

Computed on demand from the nodes as they are; nothing here is kept up to date. A node that holds bodies
also reads what these capture. networkx is imported by the functions that need it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.graph.dims import evaluate
from graphopt.graph.facts import Facts
from graphopt.graph.shapes import ordered
from graphopt.io.dtypes import stored_nbytes
from graphopt.ir import Body, Node, Tensor

if TYPE_CHECKING:
    import networkx as nx

# How far `regions` looks for a path around two regions before it leaves them apart.
_SEARCH_LIMIT = 10_000


def reads(node: Node) -> Iterator[Tensor]:
    """The tensors that `node` reads, each once: its inputs, and what its bodies capture."""
    seen: set[Tensor] = set()
    for tensor in itertools.chain(node.inputs, captures(node)):
        if tensor.name and tensor not in seen:
            seen.add(tensor)
            yield tensor


def captures(node: Node) -> list[Tensor]:
    """The tensors that the bodies of `node` (and bodies in them) use but do not define."""
    used: dict[Tensor, None] = {}
    own: set[Tensor] = set()
    stack: list[Body] = list(node.bodies())
    while stack:
        body = stack.pop()
        own.update(body.inputs, body.initializers)
        for inner in body.nodes:
            own.update(inner.outputs)
            used.update(dict.fromkeys(inner.inputs))
            stack.extend(inner.bodies())
        used.update(dict.fromkeys(body.outputs))
    return [t for t in used if t.name and t not in own]


def _producers(nodes: Iterable[Node]) -> dict[Tensor, Node]:
    return {t: node for node in nodes for t in node.outputs if t.name}


def dependency_graph(body: Body) -> nx.DiGraph:
    """Nodes of `body`; an edge carries the tensors read along it as `tensors`."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(body.nodes)
    producer = _producers(body.nodes)
    for node in body.nodes:
        for tensor in reads(node):
            source = producer.get(tensor)
            if source is None:
                continue
            if graph.has_edge(source, node):
                graph.edges[source, node]["tensors"].append(tensor)
            else:
                graph.add_edge(source, node, tensors=[tensor])
    return graph


@dataclass(frozen=True)
class Interval:
    """When a tensor exists: from the step that makes it to the last that needs it, both included.

    Attributes:
        start: position of the producing node in execution order; -1 for inputs of the body.
        end: position of the last reader; the number of nodes for outputs of the body.
        nbytes: size, None where it is not known.
    """

    start: int
    end: int
    nbytes: int | None


@dataclass(frozen=True)
class Liveness:
    """What is live while each node runs.

    Attributes:
        order: the nodes in execution order.
        intervals: of every tensor but initializers.
        live: bytes that are live while each node of `order` runs, counting what is known.
        peak: the largest of `live`, 0 for a body without nodes.
        peak_node: where it occurs.
        unknown: tensors whose size is not known.
    """

    order: list[Node]
    intervals: dict[Tensor, Interval]
    live: list[int]
    peak: int
    peak_node: Node | None
    unknown: list[Tensor]


def nbytes(facts: Facts, tensor: Tensor, sizes: Mapping[str, int] | None = None) -> int | None:
    """Bytes of a tensor, with symbolic dims bound by `sizes`; None where something is not known."""
    shape, dtype = facts.shape(tensor), facts.dtype(tensor)
    if shape is None or dtype is None:
        return None
    try:
        return stored_nbytes(dtype, [evaluate(d, sizes or {}) for d in shape])
    except KeyError:
        return None


def liveness(body: Body, facts: Facts, sizes: Mapping[str, int] | None = None) -> Liveness:
    """Live intervals and bytes of the tensors of `body`, each freed after its last reader.

    Args:
        body: the body, whose nodes are taken in their topological order.
        facts: for the sizes of tensors.
        sizes: values of symbolic dims, by name.
    """
    order = ordered(body)
    start: dict[Tensor, int] = dict.fromkeys(body.inputs, -1)
    end: dict[Tensor, int] = dict.fromkeys(body.inputs, -1)
    for step, node in enumerate(order):
        for tensor in reads(node):
            if tensor in start:
                end[tensor] = step
        for tensor in node.outputs:
            if tensor.name:
                start[tensor] = end[tensor] = step
    for tensor in body.outputs:
        if tensor in start:
            end[tensor] = len(order)
    intervals = {t: Interval(start[t], end[t], nbytes(facts, t, sizes)) for t in start}
    change = [0] * (len(order) + 1)
    for interval in intervals.values():
        if interval.nbytes and order:
            change[max(interval.start, 0)] += interval.nbytes
            change[min(interval.end + 1, len(order))] -= interval.nbytes
    live = list(itertools.accumulate(change[:-1]))
    peak = max(live, default=0)
    return Liveness(
        order,
        intervals,
        live,
        peak,
        order[live.index(peak)] if live else None,
        [t for t, interval in intervals.items() if interval.nbytes is None],
    )


def critical_path(body: Body, cost: Callable[[Node], float] = lambda node: 1.0) -> tuple[list[Node], float]:
    """The chain of dependent nodes with the largest total cost (not negative), and that total."""
    order = ordered(body)
    producer = _producers(order)
    best: dict[Node, float] = {}
    before: dict[Node, Node] = {}
    for node in order:
        longest = 0.0
        for tensor in reads(node):
            source = producer.get(tensor)
            if source is not None and (node not in before or best[source] > longest):
                longest, before[node] = best[source], source
        best[node] = longest + cost(node)
    if not best:
        return [], 0.0
    last = max(best, key=best.__getitem__)
    path = [last]
    while path[-1] in before:
        path.append(before[path[-1]])
    return path[::-1], best[last]


def regions(body: Body, predicate: Callable[[Node], bool]) -> list[list[Node]]:
    """Connected, convex sets of nodes for which `predicate` holds; together they hold all such nodes.

    Convex: no path leaves a region and comes back, so each could become one node. Neighbouring regions
    are joined as long as that stays true.

    Returns:
        The regions in topological order of their first nodes; nodes in topological order.
    """
    order = ordered(body)
    producer = _producers(order)
    rank = {node: i for i, node in enumerate(order)}
    member = {node: bool(predicate(node)) for node in order}
    sources = {
        node: list(dict.fromkeys(p for t in reads(node) if (p := producer.get(t)) is not None))
        for node in order
    }
    # A node's phase counts how often a path to it came back from outside. Members of one phase that are
    # connected are convex: a path that leaves can only come back in a later phase.
    phase: dict[Node, int] = {}
    groups = _Groups(order, rank)
    for node in order:
        if member[node]:
            phase[node] = max((phase[p] + (not member[p]) for p in sources[node]), default=0)
        else:
            phase[node] = max((phase[p] for p in sources[node]), default=-1)
    readers: dict[Node, list[Node]] = {node: [] for node in order}
    for node in order:
        for source in sources[node]:
            readers[source].append(node)
            if member[source] and member[node] and phase[source] == phase[node]:
                groups.join(source, node)
    for node in order:
        for source in sources[node]:
            if member[source] and member[node] and not groups.detour(source, node, readers):
                groups.join(source, node)
    found: dict[Node, list[Node]] = {}
    for node in order:
        if member[node]:
            found.setdefault(groups.find(node), []).append(node)
    return list(found.values())


class _Groups:
    """Disjoint sets of nodes."""

    def __init__(self, order: list[Node], rank: Mapping[Node, int]) -> None:
        self.parent = {node: node for node in order}
        self.members = {node: [node] for node in order}
        self.first = dict(rank)
        self.last = dict(rank)

    def find(self, node: Node) -> Node:
        while self.parent[node] is not node:
            self.parent[node] = node = self.parent[self.parent[node]]
        return node

    def join(self, a: Node, b: Node) -> None:
        a, b = self.find(a), self.find(b)
        if a is b:
            return
        if len(self.members[a]) < len(self.members[b]):
            a, b = b, a
        self.parent[b] = a
        self.members[a] += self.members.pop(b)
        self.first[a] = min(self.first[a], self.first[b])
        self.last[a] = max(self.last[a], self.last[b])

    def detour(self, a: Node, b: Node, readers: Mapping[Node, list[Node]]) -> bool:
        """Whether a path leads from the group of `a` to that of `b` through other groups."""
        start, goal = self.find(a), self.find(b)
        if start is goal:
            return False
        stack = [r for n in self.members[start] for r in readers[n]]
        stack = [r for r in stack if self.find(r) is not start and self.find(r) is not goal]
        seen = {self.find(r) for r in stack}
        visited = 0
        while stack:
            node = self.find(stack.pop())
            for inside in self.members[node]:
                visited += 1
                if visited > _SEARCH_LIMIT:
                    return True
                for reader in readers[inside]:
                    group = self.find(reader)
                    if group is goal:
                        return True
                    if group not in seen and group is not start and self.first[group] < self.last[goal]:
                        seen.add(group)
                        stack.append(reader)
        return False
