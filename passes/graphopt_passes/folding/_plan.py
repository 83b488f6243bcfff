"""What to compute ahead of time: as much as is known, as long as the model does not grow by it.

The nodes whose inputs are all known form the *foldable* set. Their results are needed in the model only at
its *frontier*: tensors that something else reads. A frontier tensor that would weigh more than what its
computation allows to drop is not stored; its producer *stays* in the model, and what that reads becomes
frontier instead. So a large ConstantOfShape stays while the computation of its shape is folded, and an
Expand that a ReduceSum shrinks again is folded together with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

from graphopt.passkit import GraphView, Limits, Node, Tensor
from graphopt_passes.folding._foldable import elements_at_most, stored_bytes

# A result up to this size is stored without asking what it replaces.
FREE_BYTES = 1024


class _Group:
    """Results that are computed with common nodes, so that they replace the same constants together."""

    __slots__ = ("constants", "nodes", "surplus", "tensors")

    def __init__(self) -> None:
        self.surplus = 0  # bytes of constants that go, less the bytes stored
        self.tensors: list[Tensor] = []
        self.constants: list[Tensor] = []
        self.nodes: list[Node] = []


class Plan:
    """The foldable nodes of one body, and which results to store.

    Args:
        graph: the body.
        folds: whether a node with known inputs may be computed ahead of time.
        limits: bounds on single results and on growth.
        allowance: bytes by which all stored results together may outweigh what they replace.
        failed: nodes that could not be computed before.

    Attributes:
        foldable: nodes whose inputs are known, in topological order.
        nbytes: upper bound of the size of each of their outputs.
        stored: frontier tensors to store -> bytes by which each outweighs what it replaces.
        refused: nodes that stay though their inputs are known -> why.
    """

    def __init__(
        self,
        graph: GraphView,
        folds: Callable[[Node, GraphView], bool],
        limits: Limits,
        allowance: int,
        failed: Collection[Node],
    ) -> None:
        self.graph, self.limits, self.allowance = graph, limits, allowance
        self.folds = folds
        self.foldable: dict[Node, None] = {}
        self.nbytes: dict[Tensor, int] = {}
        self.stored: dict[Tensor, int] = {}
        self.refused: dict[Node, str] = {}
        self._doomed: dict[Node, None] = {}
        self._claimed: dict[Tensor, _Group] = {}
        self._walked: dict[Node, _Group] = {}
        self._collect(failed)
        self._cut()

    # -- the foldable set --------------------------------------------------------------------------

    def _collect(self, failed: Collection[Node]) -> None:
        graph = self.graph
        elements: dict[Tensor, int] = {}
        for node in graph.nodes():
            inputs = [t for t in node.inputs if t.name]
            if not inputs or node in failed:
                continue
            for t in inputs:
                if t in elements:
                    continue
                found = graph.constant(t)
                if found is None:
                    break
                size = 1
                for d in found.shape:
                    size *= int(d)
                elements[t] = size
            else:
                if self.folds(node, graph) and not graph.keeps(node) and self._fits(node, elements):
                    self.foldable[node] = None

    def _fits(self, node: Node, elements: dict[Tensor, int]) -> bool:
        """Bound the outputs of `node`; False when they are too large or of unknown size."""
        graph = self.graph
        bounds: dict[Tensor, tuple[int, int]] = {}
        for t in node.outputs:
            if not t.name:
                continue
            dtype = graph.dtype(t)
            size = elements_at_most(node, t, graph, elements)
            nbytes = None if dtype is None or size is None else stored_bytes(size, dtype)
            if size is None or nbytes is None:
                if dtype is not None:
                    self.refused[node] = f"the size of {t.name} is not known before it is computed"
                return False
            if nbytes > self.limits.folded_bytes:
                self.refused[node] = f"{t.name} would take {size_text(nbytes)}"
                return False
            bounds[t] = size, nbytes
        for t, (size, nbytes) in bounds.items():
            elements[t], self.nbytes[t] = size, nbytes
        return True

    # -- the frontier ------------------------------------------------------------------------------

    def _cut(self) -> None:
        """Choose the frontier."""
        graph, limits = self.graph, self.limits
        self._doomed = dict(self.foldable)
        queue = deque(t for node in self.foldable for t in node.outputs if t.name and self._leaves(t))
        while queue:
            t = queue.popleft()
            producer = graph.producer(t)
            if producer is None or producer not in self._doomed or t in self.stored:
                continue
            nbytes = self.nbytes[t]
            if nbytes <= FREE_BYTES:
                self.stored[t] = 0
                continue
            group = self._group(t)
            excess = max(nbytes - group.surplus, 0)
            if excess <= min(limits.growth_bytes, self.allowance):
                group.surplus -= nbytes - excess
                group.tensors.append(t)
                self.stored[t] = excess
                self.allowance -= excess
                continue
            self.refused[producer] = (
                f"{t.name} would take {size_text(nbytes)}, {size_text(excess)} more than what it replaces"
            )
            queue.extend(self._stay(producer))

    def _leaves(self, t: Tensor) -> bool:
        """Whether something that is not folded away reads `t`."""
        return self.graph.is_read(t) and not self.graph.only_read_by(t, self._doomed)

    def _group(self, t: Tensor) -> _Group:
        """The group of `t`, credited with the constants that go when `t` is stored."""
        graph = self.graph
        group = _Group()
        stack = [graph.producer(t)]
        while stack:
            node = stack.pop()
            if node is None or node not in self._doomed:
                continue
            met = self._walked.get(node)
            if met is group:
                continue
            if met is not None:
                group = self._join(group, met)
                continue
            self._walked[node] = group
            group.nodes.append(node)
            for u in node.inputs:
                if u in self.nbytes:
                    stack.append(graph.producer(u))
                    continue
                constant = graph.constant(u)
                if constant is None or graph.keeps(u):
                    continue
                met = self._claimed.get(u)
                if met is not None:
                    group = group if met is group else self._join(group, met)
                elif graph.only_read_by(u, self._doomed):
                    self._claimed[u] = group
                    group.constants.append(u)
                    group.surplus += constant.nbytes
        return group

    def _join(self, a: _Group, b: _Group) -> _Group:
        if len(a.nodes) < len(b.nodes):
            a, b = b, a
        self._walked.update(dict.fromkeys(b.nodes, a))
        self._claimed.update(dict.fromkeys(b.constants, a))
        a.surplus += b.surplus
        a.nodes += b.nodes
        a.constants += b.constants
        a.tensors += b.tensors
        return a

    def _stay(self, node: Node) -> list[Tensor]:
        """Leave `node` in the model; the tensors to look at again because of that."""
        again: list[Tensor] = []
        groups = [self._walked.get(node), *(self._claimed.get(t) for t in node.inputs)]
        for group in dict.fromkeys(g for g in groups if g is not None):
            for t in group.tensors:
                self.allowance += self.stored.pop(t)
                again.append(t)
            for n in group.nodes:
                del self._walked[n]
            for t in group.constants:
                del self._claimed[t]
        del self._doomed[node]
        for t in node.outputs:
            self.stored.pop(t, None)
        again.extend(t for t in node.inputs if t in self.nbytes)
        return again

    # -- what to compute ---------------------------------------------------------------------------

    def needed(self, tensors: Sequence[Tensor]) -> list[Node]:
        """The foldable nodes that `tensors` are computed with, in topological order."""
        wanted: set[Node] = set()
        stack = list(tensors)
        while stack:
            node = self.graph.producer(stack.pop())
            if node is None or node in wanted or node not in self.foldable:
                continue
            wanted.add(node)
            stack.extend(t for t in node.inputs if t.name)
        return [node for node in self.foldable if node in wanted]


def size_text(nbytes: int) -> str:
    """A size for people."""
    if nbytes < 1 << 10:
        return f"{nbytes} bytes"
    for unit, shift in (("KiB", 10), ("MiB", 20), ("GiB", 30)):
        if nbytes < 1 << (shift + 10) or unit == "GiB":
            return f"{nbytes / (1 << shift):.1f} {unit}"
    raise AssertionError
