"""Layers whose weight comes out of a DequantizeLinear, see `linear.layer`: their grids, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.passkit import Array, GraphView, RefusedRewrite, Rewriter
from graphopt.quantkit import Grid, QuantType
from graphopt_passes.linear.layer import LinearLayer, read_linear
from graphopt_passes.quantization._quantized import QuantizedNode, find_quantized
from graphopt_passes.quantization._rounding import Lattice


@dataclass(frozen=True, eq=False)
class Layer(LinearLayer):
    """A node with a quantized weight, and how to see it as a matrix.

    Attributes:
        quantized: the node and its grids; `slot` is where it reads what the DequantizeLinear makes.
    """

    quantized: QuantizedNode

    def lattice(self, codes: Array) -> Lattice:
        """The grid of the weight, per row where that says it all.

        Args:
            codes: the stored integers. Where they use fewer bits than their type has, so must new ones: 3
                bits are stored in 4, and 7-bit weights, which some processors need, in 8.
        """
        grid = self.quantized.grid
        scale = self._spread(grid, grid.scale)
        zero = self._spread(grid, grid.zero_points().astype(np.float32))
        if (scale == scale[..., :1]).all() and (zero == zero[..., :1]).all():
            scale, zero = scale[..., :1], zero[..., :1]
        wide = np.float64
        low, high = bits_used(codes, grid.type)
        return Lattice(scale.astype(wide), zero.astype(wide), low, high)

    def scale_groups(self) -> NDArray[Any] | None:
        """(K,): which columns of a row share a scale, as ranks from 0; None where rows share scales."""
        ids = self._scale_ids()
        first, ranks = np.unique(ids[0, 0], return_inverse=True)
        if len(np.unique(ids)) != len(first) * self.shape[0] * self.shape[1]:
            return None
        # Every row has as many scales as the first one; those must lie over the same columns.
        leaders = np.array([int(np.argmax(ranks == g)) for g in range(len(first))])
        same = ids == ids[..., leaders][..., ranks]
        groups: NDArray[Any] = ranks.reshape(-1)
        return groups if bool(same.all()) else None

    def with_scales(self, lattice: Lattice) -> Grid:
        """The grid with the scales of `lattice`."""
        grid = self.quantized.grid
        scale = grid.scale.reshape(-1).copy()
        scale[self._scale_ids().reshape(-1)] = np.broadcast_to(lattice.scale, self.shape).reshape(-1)
        return replace(grid, scale=scale.reshape(grid.scale.shape))

    def _scale_ids(self) -> NDArray[Any]:
        grid = self.quantized.grid
        ids = np.arange(grid.scale.size, dtype=np.float32).reshape(grid.scale.shape)
        return self._spread(grid, ids).astype(np.int64)

    def _spread(self, grid: Grid, values: Array) -> Array:
        """One value per scale as one per weight, (G, N, K)."""
        length = 1 if grid.axis is None else self.stored[grid.axis]
        spread = replace(grid, scale=values).steps(len(self.stored), length)
        return self.to_rows(np.broadcast_to(spread, self.stored))


def bits_used(codes: Array, type: QuantType) -> tuple[int, int]:
    """The range of the narrowest integers of the signedness of `type` that hold `codes`."""
    least, most = int(codes.min()), int(codes.max())
    for bits in range(2, type.bits):
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if type.signed else (0, (1 << bits) - 1)
        if low <= least and most <= high:
            return low, high
    return type.qmin, type.qmax


def layers_of(graph: Rewriter, check: Callable[[Layer], None]) -> list[Layer]:
    """The layers with quantized weights, in the order of the graph; the rest is refused with a reason.

    Args:
        graph: a body.
        check: raises RefusedRewrite for a layer that is not wanted.
    """
    layers = []
    for quantized in find_quantized(graph):
        node = quantized.node
        if node.op == "Gather":
            continue
        try:
            if graph.is_function:
                raise RefusedRewrite("the tensors of a function are not observed")
            if graph.keeps(node):
                raise RefusedRewrite(f"{node.name} is kept")
            layer = read_layer(graph, quantized)
            check(layer)
        except RefusedRewrite as refused:
            graph.refuse(node, refused.reason)
            continue
        layers.append(layer)
    return layers


def read_layer(graph: GraphView, quantized: QuantizedNode) -> Layer:
    """`quantized` as rows and columns.

    Raises:
        RefusedRewrite: it is not a convolution or the product with one matrix.
    """
    stored = tuple(int(d) for d in quantized.q.shape)
    seen = read_linear(graph, quantized.node, quantized.slot, stored)
    return Layer(seen.node, seen.slot, seen.unfolding, seen.shape, stored, seen.flip, quantized)
