"""The weights that pruning looks at: those of linear layers, and of other operators that multiply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from graphopt.passkit import Constant, GraphView, Node, RefusedRewrite, Rewriter
from graphopt_passes.linear.layer import WEIGHT_SLOTS, Floats, LinearLayer, read_linear, weight_slot
from graphopt_passes.pruning._structure import channels_last

#: Where other operators read weights; none of them is seen as rows and columns.
OTHER_SLOTS: Final = {"ConvTranspose": (1,), "GRU": (1, 2), "LSTM": (1, 2), "RNN": (1, 2)}
#: All operators whose weights can be pruned.
OPS: Final = (*WEIGHT_SLOTS, *OTHER_SLOTS)


@dataclass(frozen=True, eq=False)
class Site:
    """A weight to be pruned.

    Attributes:
        node: the node that reads it, the first of several.
        slot: where.
        shape: the weight's.
        layer: how to see it as a matrix; None where it is none.
        readers: all nodes and slots that read it.
    """

    node: Node
    slot: int
    shape: tuple[int, ...]
    layer: LinearLayer | None
    readers: tuple[tuple[Node, int], ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """Inputs and outputs, all groups and kernel positions together."""
        if self.layer is not None:
            groups, rows, columns = self.layer.shape
            return columns, rows * groups
        return math.prod(self.shape[1:]), self.shape[0]

    @property
    def channels(self) -> int | None:
        """How many inputs lie next to each other in `rows`; None where they do not."""
        if self.node.op == "ConvTranspose":
            return None
        if self.layer is not None and self.node.op == "Conv":
            return self.shape[1]
        return (
            self.layer.shape[2]
            if self.layer is not None
            else self.shape[-2 if self.node.op == "MatMul" else -1]
        )

    @property
    def is_shared(self) -> bool:
        """Several nodes read the weight: what it is multiplied with differs."""
        return len(self.readers) > 1

    def rows(self, graph: GraphView) -> Floats:
        """The weight as (G, outputs, inputs), a copy, the channels of one kernel position being neighbors."""
        values = graph.array(graph.input(self.node, self.slot))
        assert values is not None
        wide = values.astype(np.float64)
        if self.layer is not None:
            return self.layer.to_rows(wide)[..., channels_last(self.layer)]
        if self.node.op == "MatMul":
            return np.swapaxes(wide, -1, -2).reshape(-1, self.shape[-1], self.shape[-2])
        if self.node.op == "ConvTranspose":
            return wide.reshape(1, self.shape[0], -1)
        return wide  # recurrent: (directions, gates, inputs)

    def set_rows(self, graph: Rewriter, rows: Floats, why: str) -> None:
        """Have all readers read other values, in one site. Raises RefusedRewrite if they are too large."""
        if self.layer is not None:
            order = channels_last(self.layer)
            stored = np.empty_like(rows)
            stored[..., order] = rows
            values = self.layer.from_rows(stored)
        elif self.node.op == "MatMul":
            values = np.swapaxes(rows.reshape(*self.shape[:-2], self.shape[-1], self.shape[-2]), -1, -2)
        else:
            values = rows.reshape(self.shape)
        old = graph.constant(graph.input(self.node, self.slot))
        assert old is not None
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(values.astype(old.dtype))
        if not np.isfinite(values).all():
            raise RefusedRewrite(f"its new weights are too large for {np.dtype(old.dtype).name}")
        with graph.site(self.node, why):
            fresh = graph.new_constant(old.name, values)
            for node, slot in self.readers:
                graph.set_input(node, slot, fresh)


def find_sites(graph: Rewriter, ops: tuple[str, ...], depthwise: bool) -> list[Site]:
    """The weights of operators `ops` of a body in the order of the graph, each once.

    What has a constant weight and still cannot be pruned is refused with a reason.
    """
    sites: list[Site] = []
    seen: set[Constant] = set()
    for node in graph.nodes():
        if node.op not in ops or not graph.is_op(node, node.op):
            continue
        for slot in _slots(graph, node):
            weight = graph.constant(graph.input(node, slot))
            if weight is None or weight in seen or np.dtype(weight.dtype).kind in "iub":
                continue
            seen.add(weight)
            try:
                sites.append(_site(graph, node, slot, weight.shape, ops, depthwise))
            except RefusedRewrite as refused:
                graph.refuse(node, refused.reason)
    return sites


def _slots(graph: GraphView, node: Node) -> tuple[int, ...]:
    if node.op in OTHER_SLOTS:
        return OTHER_SLOTS[node.op]
    slot = weight_slot(graph, node)
    return () if slot is None else (slot,)


def _site(
    graph: GraphView, node: Node, slot: int, shape: tuple[int, ...], ops: tuple[str, ...], depthwise: bool
) -> Site:
    source = node.inputs[slot]
    readers = tuple((use.node, use.slot) for use in graph.uses(source))
    if graph.is_output(source):
        raise RefusedRewrite(f"its weight {source.name} is an output")
    for reader, at in readers:
        if graph.keeps(reader):
            raise RefusedRewrite(f"{reader.name} is kept")
        if not graph.is_live(reader):
            raise RefusedRewrite(f"its weight {source.name} is also read in another body, by {reader.name}")
        if reader.op not in ops or at not in _slots(graph, reader):
            raise RefusedRewrite(f"its weight {source.name} is also read by {reader.op} {reader.name}")
    if 0 in shape:
        raise RefusedRewrite("the weight has no elements")
    layer = None
    if (node.op in WEIGHT_SLOTS and len(shape) == 2) or node.op == "Conv":
        layer = read_linear(graph, node, slot)
        if layer.is_depthwise and not depthwise:
            raise RefusedRewrite("depthwise filters have few weights and each matters: they stay dense")
    return Site(node, slot, tuple(int(d) for d in shape), layer, readers)
