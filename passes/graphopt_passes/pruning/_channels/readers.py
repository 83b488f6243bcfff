"""What consumers make of channels: their weights as rows and columns, and the moments of their inputs."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.passkit import Array, GraphView, Node, PassContext, RefusedRewrite, Rewriter
from graphopt.quantkit import Watch
from graphopt_passes.linear.layer import LinearLayer, bias_place, read_linear
from graphopt_passes.linear.moments import LayerMoments, selection_of, twin_of
from graphopt_passes.linear.rows import MatrixRows
from graphopt_passes.pruning._channels.axes import Axes, Consumer
from graphopt_passes.pruning._channels.labels import Ints, Mask

Floats = NDArray[np.float64]

# Columns of the largest second-moment matrix that is made: 512 MiB in float64.
_COLUMNS = 8192


@dataclass(frozen=True, eq=False)
class Reader:
    """A consumer as Y = X W^T in groups: X (G, rows, K), W (G, N, K).

    Attributes:
        consumer: the operator.
        layer: how it is seen; None for recurrent layers, whose weights are stacks of matrices.
        unfolding: how its input becomes rows.
        columns: (K,), the label of each column.
        rows: (G * N,), the label of each output; None where all stay.
        refits: its weights may be changed: nothing else reads them.
    """

    consumer: Consumer
    layer: LinearLayer | None
    unfolding: Any
    columns: Ints
    rows: Ints | None
    refits: bool

    @property
    def node(self) -> Node:
        """The operator."""
        return self.consumer.node

    def weights(self, graph: GraphView) -> Floats:
        """(G, N, K), a copy."""
        values = graph.array(self.node.inputs[self.consumer.slot])
        assert values is not None
        if self.layer is None:
            stacked: Floats = values.reshape(1, -1, values.shape[2]).astype(np.float64)
            return stacked
        rows: Floats = self.layer.to_rows(values).astype(np.float64)
        return rows

    def set_weights(self, graph: Rewriter, rows: Floats) -> None:
        """Have the operator read other weights of the same shape."""
        old = graph.constant(self.node.inputs[self.consumer.slot])
        assert old is not None
        if self.layer is not None and self.layer.flip:
            values = np.ascontiguousarray(rows.reshape(old.shape[::-1]).T)
        else:
            values = rows.reshape(old.shape)
        with np.errstate(over="ignore"):
            values = values.astype(old.dtype)
        if not np.isfinite(values).all():
            raise RefusedRewrite(f"new weights are too large for {np.dtype(old.dtype).name}")
        graph.set_input(self.node, self.consumer.slot, graph.new_constant(old.name, values))

    def bias(self, graph: GraphView) -> tuple[Node, int] | None:
        """Where a bias is read that can take a mean error; None where there is none."""
        if self.layer is None:
            return None  # a recurrence begins at zero, whatever the mean is later
        place = bias_place(graph, self.node)
        if place is None or graph.array(graph.input(*place)) is None:
            return None
        return place

    def shift_bias(self, graph: Rewriter, shift: Floats) -> None:
        """Add `shift`, one number per output, to the bias."""
        place = self.bias(graph)
        if place is None:
            return
        node, slot = place
        old = graph.constant(node.inputs[slot])
        values = graph.array(node.inputs[slot])
        assert old is not None
        assert values is not None
        if values.size != shift.size or values.shape[-1] != shift.size:
            return
        moved = (values.astype(np.float64) + shift.reshape(values.shape)).astype(values.dtype)
        if np.isfinite(moved).all():
            graph.set_input(node, slot, graph.new_constant(old.name, moved))


def read(graph: GraphView, axes: Axes, consumer: Consumer, gone: Mask) -> Reader | None:
    """A consumer as rows and columns; None where it cannot be seen that way.

    Args:
        graph: the body.
        axes: what is known of it.
        consumer: the operator.
        gone: by label, whether it has been removed.
    """
    node, slot = consumer.node, consumer.slot
    constant = graph.constant(node.inputs[slot])
    if constant is None or np.dtype(constant.dtype).kind != "f":
        return None
    refits = graph.n_uses(constant) == 1
    labels = axes.labels.find(consumer.labels)
    labels = labels[~gone[labels]]
    if node.op in ("LSTM", "GRU", "RNN"):
        # Outputs of all directions are observed together, and each direction reads its own.
        refits = refits and (slot == 1 or constant.shape[0] == 1)
        return Reader(consumer, None, MatrixRows(), labels, None, refits)
    try:
        layer = read_linear(graph, node, slot)
    except RefusedRewrite:
        return None
    taps = layer.shape[2] // max(1, labels.size)
    if layer.shape[2] != taps * labels.size:
        return None
    rows = axes.layouts.get(node.outputs[0])
    if rows is not None:
        rows = axes.labels.find(np.broadcast_to(axes.labels.compress(rows).reshape(-1), rows.size))
        rows = rows[~gone[rows]]
    return Reader(consumer, layer, layer.unfolding, np.repeat(labels, taps), rows, refits)


def is_affordable(reader: Reader) -> bool:
    """Whether its second moments fit into memory."""
    return reader.columns.size <= _COLUMNS


def watch(graph: GraphView, ctx: PassContext, reader: Reader) -> Watch:
    """The second moments of a reader's inputs, with the teacher's outputs where they can be compared."""
    data, y = reader.consumer.data, reader.node.outputs[0]
    twin = twin_of(ctx, y)
    if reader.layer is None or twin is None:
        return Watch(LayerMoments(reader.unfolding), student=(data,))
    return Watch(LayerMoments(reader.unfolding, selection_of(ctx, y)), student=(data, y), teacher=(twin,))


class ChannelSums:
    """Sums of x, |x| and x^2 per channel.

    Args:
        axis: the channels' axis.

    Attributes:
        sums: (3, channels).
        count: values per channel.
    """

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.sums: Floats = np.zeros((3, 0))
        self.count = 0

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("ChannelSums", self.axis)

    @property
    def nbytes(self) -> int:
        """About how much memory this takes."""
        return self.sums.nbytes

    def fresh(self) -> ChannelSums:
        """An empty one with the same settings."""
        return ChannelSums(self.axis)

    def update(self, *values: Array) -> None:
        """Take in one batch; what is not finite counts as 0."""
        for value in values:
            rows = np.moveaxis(value, self.axis, 0).reshape(value.shape[self.axis], -1).astype(np.float64)
            rows = np.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0)
            self._include(np.stack([rows.sum(1), np.abs(rows).sum(1), (rows * rows).sum(1)]), rows.shape[1])

    def merge(self, other: ChannelSums) -> None:
        """Take in what another one has seen."""
        if other.key != self.key:
            raise ValueError("statistics of different kinds do not merge")
        if other.count:
            self._include(other.sums, other.count)

    def _include(self, sums: Floats, count: int) -> None:
        self.sums = sums if not self.count else self.sums + sums
        self.count += count

    @property
    def magnitude(self) -> Floats:
        """Mean |x| per channel."""
        mean: Floats = self.sums[1] / max(self.count, 1)
        return mean

    @property
    def variance(self) -> Floats:
        """Variance of x per channel."""
        mean = self.sums[0] / max(self.count, 1)
        spread: Floats = np.maximum(self.sums[2] / max(self.count, 1) - mean * mean, 0.0)
        return spread
