"""Constant weights of linear operators: where they are, how their axes run, and who else reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from graphopt.passkit import Array, AttributeRef, Constant, GraphView, Node, RefusedRewrite, Rewriter, Tensor
from graphopt.quantkit import Grid

_T = onnx.TensorProto
FLOAT_TYPES: dict[int, np.dtype[Any]] = {
    int(_T.FLOAT): np.dtype(np.float32),
    int(_T.FLOAT16): np.dtype(np.float16),
}
# Before this opset scales are float32 only.
HALF_SCALE_OPSET = 19
# What is quantized reaches this magnitude, unless it is all 0: scales are normal numbers then.
TINY = float(np.finfo(np.float32).tiny) * (1 << 16)
# Their input weights are (directions, gates * hidden, input), their recurrent ones alike.
RECURRENT = ("LSTM", "GRU", "RNN")
# What a DequantizeLinear, its scale and their names take in a file, about.
OVERHEAD = 160


@dataclass(frozen=True)
class Role:
    """How a node uses a constant.

    Attributes:
        node: the reader.
        slot: its input.
        channel: axis of the weight with one output channel (or column) per index.
        depth: axis that products are summed along.
    """

    node: Node
    slot: int
    channel: int
    depth: int


def role_of(graph: GraphView, node: Node, slot: int, rank: int) -> Role | None:
    """The axes of the weight of rank `rank` at `slot`, None where `node` is not linear in it."""
    if graph.is_op(node, "Conv") and slot == 1 and rank >= 3:
        return Role(node, slot, 0, 1)
    if graph.is_op(node, "ConvTranspose") and slot == 1 and rank >= 3:
        return Role(node, slot, 1, 0)
    if graph.is_op(node, *RECURRENT) and slot in (1, 2) and rank == 3:
        return Role(node, slot, 1, 2)
    if rank < 2 or slot > 1:
        return None
    if graph.is_op(node, "MatMul"):
        return Role(node, 1, rank - 1, rank - 2) if slot else Role(node, 0, rank - 2, rank - 1)
    if graph.is_op(node, "Gemm"):
        transposed = graph.attr(node, "transB" if slot else "transA")
        if isinstance(transposed, AttributeRef):
            return None
        channel = (0 if transposed else 1) if slot else (1 if transposed else 0)
        return Role(node, slot, channel, 1 - channel)
    return None


@dataclass(frozen=True)
class Weight:
    """A constant with all its readers, which agree on its axes.

    Attributes:
        tensor: what they read: the initializer, or the output of a Constant node.
        constant: its values.
        roles: the readers, the first of which names the site.
        local: they all stand in the body at hand.
    """

    tensor: Tensor
    constant: Constant
    roles: tuple[Role, ...]
    local: bool

    @property
    def channel(self) -> int:
        """Axis of the output channels."""
        return self.roles[0].channel

    @property
    def depth(self) -> int:
        """Axis that products are summed along."""
        return self.roles[0].depth

    @property
    def node(self) -> Node:
        """The reader that stands for all."""
        return self.roles[0].node


def weight_slots(graph: GraphView, node: Node) -> list[int]:
    """The slots at which `node` reads weights; none when it has no constant, or multiplies two."""
    if graph.is_op(node, *RECURRENT):
        slots: tuple[int, ...] = (1, 2)
    elif graph.is_op(node, "Conv", "ConvTranspose"):
        slots = (1,)
    else:
        slots = (0, 1)
    constant = [s for s in slots if graph.is_constant(graph.input(node, s))]
    return [] if slots == (0, 1) and len(constant) != 1 else constant


def check_weight(graph: GraphView, node: Node, slot: int) -> Weight:
    """The weight of `node`, with everybody who reads it.

    Raises:
        RefusedRewrite: it may not be replaced: it is kept, an output, no float, or has readers that use it
            in another way.
    """
    tensor = node.inputs[slot]
    constant = graph.constant(tensor)
    if constant is None:
        raise RefusedRewrite(f"its weight {tensor.name} is not constant")
    dtype = graph.dtype(tensor)
    if dtype not in FLOAT_TYPES:
        raise RefusedRewrite(f"its weight {tensor.name} is {_spell(dtype)}, neither float32 nor float16")
    if graph.keeps(tensor):
        raise RefusedRewrite(f"its weight {tensor.name} is kept")
    if graph.is_output(tensor):
        raise RefusedRewrite(f"its weight {tensor.name} is a graph output, so it has to stay")
    rank = len(constant.shape)
    roles: list[Role] = []
    for use in graph.uses(tensor):
        role = role_of(graph, use.node, use.slot, rank)
        if role is None:
            raise RefusedRewrite(
                f"its weight {tensor.name} is also read by {use.node.op} {use.node.name}, so it has to stay"
            )
        roles.append(role)
    if len({(r.channel, r.depth) for r in roles}) > 1:
        raise RefusedRewrite(f"the readers of {tensor.name} disagree about which axis has its channels")
    roles.sort(key=lambda r: r.node is not node)
    local = all(graph.is_live(r.node) for r in roles)
    return Weight(tensor, constant, tuple(roles), local)


def owns(graph: GraphView, weight: Weight) -> bool:
    """Whether this body is where the integers of `weight` belong: beside its readers if they stand
    together, else beside the constant, where all of them can see it.
    """
    if weight.local:
        return True
    producer = graph.producer(weight.tensor)
    if producer is not None:
        return graph.is_live(producer)
    return weight.constant in graph.body.initializers


def finite_values(graph: GraphView, tensor: Tensor) -> Array:
    """Values of a constant.

    Raises:
        RefusedRewrite: there are none, one is not finite, or they are too small for a scale.
    """
    values = graph.array(tensor)
    assert values is not None
    if not values.size:
        raise RefusedRewrite(f"{tensor.name} has no elements")
    if not np.isfinite(values.astype(np.float32)).all():
        raise RefusedRewrite(f"{tensor.name} has values that are not finite")
    if values.dtype == np.float32 and 0 < np.abs(values).max() < TINY:
        raise RefusedRewrite(f"{tensor.name} is too small for a float32 scale")
    return values


def rescaled(grid: Grid, dtype: np.dtype[np.generic]) -> Grid:
    """`grid` with scales that `dtype`, that of the weight, can hold.

    Raises:
        RefusedRewrite: a scale is too large or too small for it.
    """
    if dtype != np.float16:
        return grid
    scale = grid.scale.astype(np.float16)
    if not np.isfinite(scale).all() or (scale == 0).any():
        raise RefusedRewrite("a scale does not fit into float16")
    return Grid(grid.type, scale.astype(np.float32), grid.zero_point, grid.axis, grid.block)


def stored_bytes(elements: int, grid: Grid, scale_bytes: int) -> int:
    """Bytes of integers, scales, zero points, and of the nodes that read them."""
    bits = grid.type.bits
    zero = 0 if is_symmetric(grid) else -(-grid.scale.size * bits // 8)
    return -(-elements * bits // 8) + grid.scale.size * scale_bytes + zero + OVERHEAD


def is_symmetric(grid: Grid) -> bool:
    """Whether zero is stored as 0 everywhere, so that no zero point needs to be."""
    return grid.zero_point is None or not np.any(np.asarray(grid.zero_point).astype(np.int32))


def dequantized(graph: Rewriter, name: str, q: Array, grid: Grid, dtype: np.dtype[np.generic]) -> Tensor:
    """A DequantizeLinear of new initializers, inside a site.

    Args:
        graph: the body.
        name: the float weight's, after which things are named.
        q: integers in the stored dtype and the weight's shape.
        grid: what they stand for.
        dtype: the weight's, which the scale has too.
    """
    inputs: list[Tensor | None] = [
        graph.new_constant(f"{name}_quantized", q),
        graph.new_constant(f"{name}_scale", grid.scale.astype(dtype)),
    ]
    if not is_symmetric(grid):
        inputs.append(graph.new_constant(f"{name}_zero_point", grid.zero_points()))
    attrs: dict[str, int] = {}
    if grid.axis is not None and grid.axis != 1:
        attrs["axis"] = grid.axis
    if grid.block:
        attrs["block_size"] = grid.block
    return graph.op("DequantizeLinear", inputs, attrs=attrs, hint=f"{name}_dq")


def redirect(graph: Rewriter, weight: Weight, new: Tensor) -> None:
    """All readers of `weight` read `new`, inside a site."""
    if weight.local:
        for role in weight.roles:
            graph.set_input(role.node, role.slot, new)
    else:
        graph.redirect(weight.tensor, new, root=weight.node)


def float_bytes(weight: Weight) -> int:
    """What the weight takes as it is."""
    return int(weight.constant.nbytes)


def in_order(graph: GraphView, ops: Sequence[str]) -> list[Node]:
    """Nodes of types `ops`, in topological order: names of what is made then do not depend on anything."""
    wanted = set(ops)
    return [n for n in graph.nodes() if n.op in wanted and graph.is_op(n, *ops)]


def _spell(dtype: int | None) -> str:
    return "of unknown type" if dtype is None else str(_T.DataType.Name(dtype)).lower()
