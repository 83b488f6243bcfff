"""Convolutions and matrix products as the product of rows of inputs and a matrix of weights.

Every layer is seen as Y = X W^T in groups: X (G, rows, K), W (G, N, K), Y (G, rows, N). G is 1 except for
grouped and depthwise convolutions. What a bias adds is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from graphopt.passkit import Array, AttributeRef, GraphView, RefusedRewrite, Rewriter
from graphopt.quantkit import Grid, QuantType
from graphopt_passes.quantization._quantized import QuantizedNode, find_quantized
from graphopt_passes.quantization._rounding import Lattice

# Elements of X that are unfolded at a time (16 MiB of float32).
_CHUNK = 1 << 22
# Positions of a sample's output that are used, at most, and per input of an output (K): sums over more tell
# hardly more. Beyond them every 3rd, 5th, ... is used, along every axis.
_POSITIONS = 4096
_LEAST_POSITIONS = 1024
_POSITIONS_PER_INPUT = 16


@dataclass(frozen=True)
class MatrixRows:
    """Rows of a MatMul or Gemm.

    Attributes:
        flip_x: what is summed over lies along the last axis but one.
        flip_y: the weight is the left operand: its outputs lie along the last axis but one.
        alpha: what the product is multiplied by.
    """

    flip_x: bool = False
    flip_y: bool = False
    alpha: float = 1.0

    def blocks(self, x: Array, *outputs: Array) -> Iterator[list[Array]]:
        """Rows of the input, (1, rows, K), and the matching ones of output-shaped values, (1, rows, N)."""
        rows = _matrix(x, self.flip_x)
        outs = [_matrix(y, self.flip_y) for y in outputs]
        if self.alpha != 1.0:
            rows = rows * np.float32(self.alpha)
        size = max(1, _CHUNK // max(1, rows.shape[1]))
        for start in range(0, len(rows), size):
            at = slice(start, start + size)
            yield [rows[None, at], *(y[None, at] for y in outs)]


def _matrix(value: Array, flip: bool) -> Array:
    value = np.swapaxes(value, -1, -2) if flip else value
    rows: Array = value.reshape(-1, value.shape[-1])
    return rows


@dataclass(frozen=True)
class ConvRows:
    """Rows of a convolution with any number of spatial axes: one per position of its output.

    Attributes:
        groups: groups of channels.
        kernel, strides, dilations: one number per spatial axis.
        pads: before and after each axis, as ONNX orders them; None for `auto_pad`.
        auto_pad: SAME_UPPER, SAME_LOWER or VALID.
    """

    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    auto_pad: str = "NOTSET"

    def blocks(self, x: Array, *outputs: Array) -> Iterator[list[Array]]:
        """Rows of the input, (G, rows, K), and the matching ones of output-shaped values, (G, rows, N).

        One block per few samples; large outputs are thinned out evenly.
        """
        before, after = self._padding(x.shape[2:])
        padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
        spans = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        axes = tuple(range(2, x.ndim))
        windows = sliding_window_view(padded, spans, axis=axes)
        positions = tuple(
            (n - span) // s + 1 for n, span, s in zip(padded.shape[2:], spans, self.strides, strict=True)
        )
        every = thinning(positions, x.shape[1] // self.groups * math.prod(self.kernel))
        steps = tuple(slice(None, None, s * every) for s in self.strides)
        taps = tuple(slice(None, None, d) for d in self.dilations)
        windows = windows[(slice(None), slice(None), *steps, *taps)]
        outs = [y[(slice(None), slice(None), *(slice(None, None, every) for _ in axes))] for y in outputs]
        per_sample = max(1, math.prod(windows.shape[1:]))
        size = max(1, _CHUNK // per_sample)
        for start in range(0, len(x), size):
            at = slice(start, start + size)
            yield [self._rows(windows[at]), *(self._outputs(y[at]) for y in outs)]

    def _rows(self, windows: Array) -> Array:
        """(B, C, positions..., taps...) -> (G, rows, K)."""
        count = len(self.kernel)
        batch, channels = windows.shape[:2]
        split = windows.reshape(batch, self.groups, channels // self.groups, *windows.shape[2:])
        order = (1, 0, *range(3, 3 + count), 2, *range(3 + count, 3 + 2 * count))
        columns = channels // self.groups * math.prod(self.kernel)
        rows: Array = split.transpose(order).reshape(self.groups, -1, columns)
        return rows

    def _outputs(self, y: Array) -> Array:
        """(B, M, positions...) -> (G, rows, N)."""
        split = y.reshape(len(y), self.groups, y.shape[1] // self.groups, -1)
        outs: Array = split.transpose(1, 0, 3, 2).reshape(self.groups, -1, split.shape[2])
        return outs

    def _padding(self, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        count = len(self.kernel)
        if self.pads is not None:
            return self.pads[:count], self.pads[count:]
        if self.auto_pad == "VALID":
            return (0,) * count, (0,) * count
        before, after = [], []
        for n, k, s, d in zip(shape, self.kernel, self.strides, self.dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            small, large = total // 2, total - total // 2
            before.append(small if self.auto_pad == "SAME_UPPER" else large)
            after.append(large if self.auto_pad == "SAME_UPPER" else small)
        return tuple(before), tuple(after)


def thinning(positions: Sequence[int], inputs: int) -> int:
    """Along each axis every how many-th position of a sample is used, for outputs of so many `inputs`.

    Odd, so that it keeps no step with the even strides of the layers before and after.
    """
    every = 1
    most = min(max(_LEAST_POSITIONS, _POSITIONS_PER_INPUT * inputs), _POSITIONS)
    while math.prod(-(-n // every) for n in positions) > most:
        every += 2
    return every


@dataclass(frozen=True, eq=False)
class Layer:
    """A node with a quantized weight, and how to see it as a matrix.

    Attributes:
        quantized: the node.
        unfolding: how inputs and outputs become rows.
        shape: (G, N, K).
        stored: shape of the weight as it is stored.
        flip: the stored weight is (K, N).
    """

    quantized: QuantizedNode
    unfolding: MatrixRows | ConvRows
    shape: tuple[int, int, int]
    stored: tuple[int, ...]
    flip: bool

    @property
    def outputs(self) -> int:
        """Outputs per row of all groups together."""
        return self.shape[0] * self.shape[1]

    @property
    def work(self) -> int:
        """Numbers of weights: multiplications for one row."""
        return math.prod(self.shape)

    def to_rows(self, weight: Array) -> Array:
        """The stored form as (G, N, K)."""
        rows: Array = (weight.T if self.flip else weight).reshape(self.shape)
        return rows

    def from_rows(self, rows: Array) -> Array:
        """(G, N, K) in the stored form."""
        if self.flip:
            rows = rows.reshape(self.stored[::-1]).T
        return np.ascontiguousarray(rows.reshape(self.stored))

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
    node = quantized.node
    stored = tuple(int(d) for d in quantized.q.shape)
    if 0 in stored:
        raise RefusedRewrite("the weight has no elements")
    if node.op == "Conv":
        return _conv(graph, quantized, stored)
    if node.op not in ("Gemm", "MatMul"):
        raise RefusedRewrite(f"{node.op} is no convolution or matrix product")
    if len(stored) != 2:
        raise RefusedRewrite(f"the weight of {node.op} has {len(stored)} axes, not 2")
    left = quantized.slot == 0
    trans_a = trans_b = False
    alpha = 1.0
    if node.op == "Gemm":
        trans_a, trans_b, alpha = (_attribute(graph, quantized, n) for n in ("transA", "transB", "alpha"))
    if left:
        columns, rows = stored if trans_a else stored[::-1]
        unfolding = MatrixRows(not trans_b, True, float(alpha))
        return Layer(quantized, unfolding, (1, rows, columns), stored, bool(trans_a))
    rows, columns = stored if trans_b else stored[::-1]
    unfolding = MatrixRows(bool(trans_a), False, float(alpha))
    return Layer(quantized, unfolding, (1, rows, columns), stored, not trans_b)


def _conv(graph: GraphView, quantized: QuantizedNode, stored: tuple[int, ...]) -> Layer:
    if quantized.slot != 1 or len(stored) < 3:
        raise RefusedRewrite("the weight of Conv is not its filter")
    kernel = stored[2:]
    ones = (1,) * len(kernel)
    read = {n: _attribute(graph, quantized, n) for n in ("group", "auto_pad", "strides", "dilations", "pads")}
    groups, mode = int(read["group"]), str(read["auto_pad"] or "NOTSET")
    if groups < 1 or stored[0] % groups:
        raise RefusedRewrite("the weight of Conv does not fit its groups")
    unfolding = ConvRows(
        groups,
        kernel,
        tuple(read["strides"] or ones),
        tuple(read["dilations"] or ones),
        tuple(read["pads"] or (0,) * 2 * len(kernel)) if mode == "NOTSET" else None,
        mode,
    )
    shape = groups, stored[0] // groups, math.prod(stored[1:])
    return Layer(quantized, unfolding, shape, stored, False)


def _attribute(graph: GraphView, quantized: QuantizedNode, name: str) -> Any:
    value = graph.attr(quantized.node, name)
    if isinstance(value, AttributeRef):
        raise RefusedRewrite(f"{name} of {quantized.node.op} is a parameter of the function")
    return value.decode() if isinstance(value, bytes) else value


def by_depth(graph: GraphView, layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers in order, those together that do not depend on each other."""
    depth: dict[Any, int] = {}
    found = {layer.quantized.node: layer for layer in layers}
    groups: dict[int, list[Layer]] = {}
    for node in graph.nodes():
        before = max((depth.get(t, 0) for t in node.inputs), default=0)
        if node in found:
            groups.setdefault(before, []).append(found[node])
            before += 1
        for tensor in node.outputs:
            depth[tensor] = before
    return [groups[d] for d in sorted(groups)]
