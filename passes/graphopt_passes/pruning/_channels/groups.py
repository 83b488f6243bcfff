"""Groups of channels that are chosen together, and what may be removed of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.passkit import GraphView, Node
from graphopt_passes.pruning._channels.axes import Axes, Consumer, Cut, Producer
from graphopt_passes.pruning._channels.labels import Ints, Mask

# Where operators read weights that are multiplied with every position of the data.
_WEIGHTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), (1,)),
    **dict.fromkeys(("Gemm", "MatMul"), (0, 1)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
}


@dataclass(frozen=True, eq=False)
class Group:
    """A connected component of producers and the units that they share.

    Attributes:
        producers: in the order of the graph.
        units: their labels; each stands for all indices that must go together.
        width: channels of a producer that one unit stands for.
        kind: "channels", "heads" or "hidden units".
        consumers: what multiplies the units with a weight and sums over them.
        parts: sets of units, by number, of which at least one each must be left.
    """

    producers: tuple[Producer, ...]
    units: Ints
    width: int
    kind: str
    consumers: tuple[Consumer, ...]
    parts: tuple[Ints, ...]

    @property
    def root(self) -> Node:
        """The node that stands for the group."""
        return self.producers[0].node

    @property
    def size(self) -> int:
        """How many units there are."""
        return len(self.units)

    @property
    def label(self) -> str:
        """A name for people."""
        return self.root.name or self.root.outputs[0].name


def find_groups(axes: Axes) -> tuple[list[Group], list[tuple[Node, str]]]:
    """The groups of a body in the order of the graph, and the producers of which nothing can be removed."""
    import networkx as nx

    labels = axes.labels
    heads = {r for layout in axes.heads for r in np.unique(labels.find(layout)).tolist()}
    links = nx.Graph()
    refused = list(axes.failed)
    for number, producer in enumerate(axes.producers):
        roots = np.unique(labels.find(producer.labels)).tolist()
        free = [r for r in roots if labels.reason(r) is None]
        if len(free) < 2:
            reasons = [x for r in roots if (x := labels.reason(r)) is not None]
            reason = reasons[0] if reasons else "there is one only"
            refused.append((producer.node, f"its {producer.kind} stay: {reason}"))
            continue
        links.add_edges_from(((number, None), r) for r in free)
    found = []
    vectors = _vectors(axes)
    for component in nx.connected_components(links):
        numbers = sorted(x[0] for x in component if isinstance(x, tuple))
        units = np.array(sorted(x for x in component if not isinstance(x, tuple)), np.int64)
        producers = tuple(axes.producers[n] for n in numbers)
        found.append((numbers[0], _group(axes, producers, units, heads, vectors)))
    return [group for _, group in sorted(found, key=lambda x: x[0])], refused


def _vectors(axes: Axes) -> list[Ints]:
    """The distinct sets of labels that lie along one axis of some tensor or constant."""
    seen: dict[bytes, Ints] = {}
    for layout in [*axes.layouts.values(), *(c.layout for c in axes.cuts)]:
        found = np.unique(axes.labels.find(layout))
        seen.setdefault(found.tobytes(), found)
    return list(seen.values())


def _group(
    axes: Axes, producers: tuple[Producer, ...], units: Ints, heads: set[int], vectors: list[Ints]
) -> Group:
    labels = axes.labels
    first = labels.find(producers[0].labels)
    _, counts = np.unique(first[np.isin(first, units)], return_counts=True)
    kind = "heads" if heads.intersection(units.tolist()) else producers[0].kind
    consumers = tuple(c for c in axes.consumers if np.isin(labels.find(c.labels), units).any())
    parts = []
    for vector in vectors:
        places = np.searchsorted(units, vector).clip(max=len(units) - 1)
        if (units[places] == vector).all() and len(vector) < len(units):
            parts.append(places)
    return Group(producers, units, int(counts.max()), kind, consumers, tuple(parts))


def spare_parts(group: Group, gone: Mask, order: Ints) -> None:
    """Have at least one unit left of every part: the most important one, the last in `order`."""
    rank = np.argsort(order)
    for part in group.parts:
        if gone[part].all():
            gone[part[np.argmax(rank[part])]] = False


class Cost:
    """Parameters and multiplications of a body, depending on which labels are gone.

    Multiplications are those of layers with constant weights, of one sample; sizes that are not known count
    as 1.

    Attributes:
        params: numbers in all constants of the body.
        flops: multiplications.
    """

    def __init__(self, graph: GraphView, axes: Axes) -> None:
        self.axes = axes
        self._cuts: dict[tuple[Node, int], list[Cut]] = {}
        for cut in axes.cuts:
            self._cuts.setdefault((cut.node, cut.slot), []).append(cut)
        self._size: dict[tuple[Node, int], tuple[int, int]] = {}
        constants: dict[object, int] = {}
        for node in graph.nodes():
            for slot, t in enumerate(node.inputs):
                constant = graph.constant(t)
                if constant is None:
                    continue
                size = math.prod(int(d) for d in constant.shape)
                constants[constant] = size
                self._size[node, slot] = size, size * _positions(graph, node, slot)
        self.params = sum(constants.values())
        self.flops = sum(work for _, work in self._size.values())

    def of(self, gone: Mask) -> tuple[float, float]:
        """Parameters and multiplications that are left when labels are gone."""
        params, flops = float(self.params), float(self.flops)
        for key, cuts in self._cuts.items():
            size, work = self._size[key]
            left = math.prod(float((~gone[self.axes.labels.find(c.layout)]).mean()) for c in cuts)
            params -= size * (1 - left)
            flops -= work * (1 - left)
        return params, flops


def _positions(graph: GraphView, node: Node, slot: int) -> int:
    """How often each number of a weight is multiplied for one sample; 0 for what is no weight."""
    if slot not in _WEIGHTS.get(node.op, ()):
        return 0
    by_input = node.op in ("ConvTranspose", "LSTM", "GRU", "RNN")
    shape = graph.shape(node.inputs[0] if by_input else node.outputs[0]) or ()
    inner: Sequence[object] = shape[2:] if node.op.startswith("Conv") else shape[1:-1]
    if node.op in ("LSTM", "GRU", "RNN"):
        inner = shape[:1]
    return math.prod(d for d in inner if isinstance(d, int))
