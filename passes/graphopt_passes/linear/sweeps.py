"""Which layers are observed together in one sweep over the data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Final, Literal, Protocol, TypeAlias, TypeVar

from graphopt.passkit import GraphView, Node, Tensor, reads

#: One sweep over the data per layer, one in all, or as many as are affordable.
Sequential: TypeAlias = Literal["auto", "yes", "no"]

# Multiplications of all sweeps together, per sample: some layers of larger models share a sweep.
_SWEEP_WORK: Final = 1 << 35
# Sweeps that any model gets.
_SWEEPS: Final = 4
# What a dimension that is not known counts for.
_UNKNOWN_DIM: Final = 32
# Bytes of moments that are held at a time.
_HELD: Final = 1 << 29


class Observed(Protocol):
    """What is observed: a layer, or something like it."""

    @property
    def node(self) -> Node:
        """The node."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, outputs, and inputs of each output."""
        ...


Some = TypeVar("Some", bound=Observed)


def depths(graph: GraphView, nodes: Collection[Node]) -> dict[Tensor, int]:
    """How many of `nodes` lie on the way to each tensor, at most; 0 where none does.

    A node that holds bodies depends on what they capture.
    """
    depth: dict[Tensor, int] = defaultdict(int)
    wanted = set(nodes)
    for node in graph.nodes():
        before = max((depth[t] for t in reads(node)), default=0)
        for tensor in node.outputs:
            depth[tensor] = before + (node in wanted)
    return depth


def by_depth(graph: GraphView, layers: Sequence[Some]) -> list[list[Some]]:
    """The layers in order, those together that do not depend on each other."""
    depth = depths(graph, [layer.node for layer in layers])
    groups: dict[int, list[Some]] = {}
    for layer in layers:
        groups.setdefault(max(depth[t] for t in layer.node.outputs), []).append(layer)
    return [groups[d] for d in sorted(groups)]


def plan_sweeps(
    graph: GraphView, layers: Sequence[Some], sequential: Sequential
) -> list[list[tuple[Some, bool]]]:
    """Which layers are observed in one sweep over the data, in order.

    Args:
        graph: the body.
        layers: its layers.
        sequential: "yes": only layers that do not depend on each other share a sweep; "no": all do; "auto":
            more of them share one where the work of all sweeps, as far as shapes tell it, would be large.

    Returns:
        For each sweep the layers, each with whether no other layer of the sweep comes before it.
    """
    levels = by_depth(graph, layers)
    if not levels:
        return []
    allowed = len(levels)
    if sequential == "no":
        allowed = 1
    elif sequential == "auto":
        work = sum(math.prod(layer.shape) * _positions(graph, layer) for layer in layers)
        allowed = max(_SWEEPS, _SWEEP_WORK // max(work, 1))
    per_sweep = -(-len(levels) // min(allowed, len(levels)))
    sweeps = []
    for start in range(0, len(levels), per_sweep):
        members = levels[start : start + per_sweep]
        sweeps.append([(layer, rank == 0) for rank, level in enumerate(members) for layer in level])
    return [part for sweep in sweeps for part in _bounded(sweep)]


def _bounded(sweep: list[tuple[Some, bool]]) -> list[list[tuple[Some, bool]]]:
    """The sweep in parts whose moments fit into memory together."""
    parts: list[list[tuple[Some, bool]]] = []
    held = 0
    for member in sweep:
        groups, rows, columns = member[0].shape
        size = 8 * groups * columns * (columns + rows)
        if not parts or held + size > _HELD:
            parts.append([])
            held = 0
        parts[-1].append(member)
        held += size
    return parts


def _positions(graph: GraphView, layer: Observed) -> int:
    """Rows of the layer for one sample, as far as shapes tell."""
    shape = graph.shape(layer.node.outputs[0]) or ()
    known = [d if isinstance(d, int) else _UNKNOWN_DIM for d in shape[1:]]
    return max(1, math.prod(known) // (layer.shape[0] * layer.shape[1])) if known else 1
