"""Operators that make channels and sum over them: convolutions, matrix products, recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.passkit import AttributeRef, Node, RefusedRewrite, Tensor
from graphopt_passes.pruning._channels.axes import Axes, Consumer, Producer
from graphopt_passes.pruning._channels.labels import Ints, along

# A grouped convolution with fewer groups loses as many channels of each instead of whole groups.
_FEW_GROUPS = 8
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PEEPHOLES = 3


def attribute(ax: Axes, node: Node, name: str) -> Any:
    """An attribute's value.

    Raises:
        RefusedRewrite: it refers to an attribute of the enclosing function.
    """
    value = ax.graph.attr(node, name)
    if isinstance(value, AttributeRef):
        raise RefusedRewrite(f"{name} of {node.op} is a parameter of the function")
    return value


def data_only(ax: Axes, node: Node, slot: int = 0) -> Tensor:
    """The tensor at `slot`, the only one whose elements may be removed."""
    for i, t in enumerate(node.inputs):
        if i != slot and ax.varies(t):
            raise RefusedRewrite(f"{t.name} is a parameter of {node.op} {node.name}")
    return node.inputs[slot]


def _weight(ax: Axes, node: Node, slot: int) -> tuple[int, ...]:
    tensor = ax.graph.input(node, slot)
    shape = ax.weight_shape(tensor)
    if tensor is None or shape is None:
        name = tensor.name if tensor is not None else ""
        raise RefusedRewrite(f"the weight {name} of {node.op} {node.name} is not constant")
    if 0 in shape:
        raise RefusedRewrite(f"the weight {tensor.name} has no elements")
    return shape


def conv(ax: Axes, node: Node) -> None:
    """Conv and ConvTranspose."""
    x, shape = node.inputs[0], _weight(ax, node, 1)
    transposed = node.op == "ConvTranspose"
    data_only(ax, node)
    rank, groups = len(shape), int(attribute(ax, node, "group") or 1)
    if rank < 3 or groups < 1 or shape[0] % groups:
        raise RefusedRewrite(f"the weight of {node.op} {node.name} does not fit its groups")
    n_in, n_out = (shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0])
    has_bias = ax.graph.input(node, 2) is not None
    inputs = ax.channels(x, 1, n_in)
    rows, columns = (1, 0) if transposed else (0, 1)
    if groups == 1:
        ax.cut(node, 1, along(inputs, columns, rank))
        outputs = ax.labels.fresh(n_out)
        ax.cut(node, 1, along(outputs, rows, rank))
        ax.consumers.append(Consumer(node, 1, x, inputs, columns))
    elif groups >= _FEW_GROUPS or n_in == groups:
        whole = ax.labels.level(inputs.reshape(groups, -1), [1])
        outputs = np.repeat(whole.reshape(-1), n_out // groups)
        # Axis 0 of either weight runs through all groups, axis 1 through one.
        ax.cut(node, 1, along(np.repeat(whole.reshape(-1), shape[0] // groups), 0, rank))
        ax.fix(node, whole.reshape(-1), lambda s: s.set_attr(node, "group", s.count(whole.reshape(-1))))
    else:
        if transposed:
            raise RefusedRewrite(f"ConvTranspose {node.name} has few groups")
        inside = ax.labels.level(inputs.reshape(groups, -1), [0]).reshape(-1)
        ax.cut(node, 1, along(inside, 1, rank))
        outputs = np.tile(ax.labels.fresh(n_out // groups), groups)
        ax.cut(node, 1, along(outputs, 0, rank))
        ax.consumers.append(Consumer(node, 1, x, inside, 1))
    if has_bias:
        ax.cut(node, 2, outputs)
    ax.put(node.outputs[0], along(outputs, 1, rank))
    if groups == 1 or inputs.size != groups or not ax.varies(x):
        ax.producers.append(Producer(node, outputs))


def gemm(ax: Axes, node: Node) -> None:
    """Gemm, one of whose factors is constant."""
    graph = ax.graph
    if graph.opset < 7:
        raise RefusedRewrite("Gemm broadcasts by attribute before opset 7")
    slot = next((s for s in (1, 0) if ax.weight_shape(graph.input(node, s)) is not None), None)
    if slot is None:
        raise RefusedRewrite(f"no factor of Gemm {node.name} is constant")
    transposed = [bool(attribute(ax, node, name)) for name in ("transA", "transB")]
    # The axis of each factor that is summed over; of two axes, the other one goes to the output.
    depth = [0 if transposed[0] else 1, 1 if transposed[1] else 0]
    outputs = _product(ax, node, slot, depth[1 - slot], depth[slot], slot)
    bias = graph.input(node, 2)
    if bias is not None:
        shape = ax.weight_shape(bias)
        if shape is None:
            raise RefusedRewrite(f"the bias {bias.name} of Gemm {node.name} is not constant")
        axis = len(shape) - 1 if slot else len(shape) - 2
        if axis >= 0 and shape[axis] != 1:
            ax.cut(node, 2, along(outputs, axis, len(shape)))
    _made(ax, node, outputs, 2, slot)


def matmul(ax: Axes, node: Node) -> None:
    """MatMul: with a constant matrix, or of two tensors."""
    a, b = node.inputs
    shapes = [ax.weight_shape(t) for t in (a, b)]
    if shapes[0] is not None and shapes[1] is not None:
        return
    if shapes[0] is None and shapes[1] is None:
        _two_tensors(ax, node)
        return
    slot = 0 if shapes[0] is not None else 1
    shape, x = shapes[slot] or (), node.inputs[1 - slot]
    rank = len(ax.shape(x))
    if len(shape) < 2 or rank < 2:
        raise RefusedRewrite(f"MatMul {node.name} multiplies by a vector")
    if len(shape) > 2:
        raise RefusedRewrite(f"the weight of MatMul {node.name} is a stack of matrices")
    outputs = _product(ax, node, slot, rank - 1 if slot else rank - 2, 0 if slot else 1, slot)
    _made(ax, node, outputs, len(ax.shape(node.outputs[0])), slot)


def _product(ax: Axes, node: Node, slot: int, data_axis: int, weight_axis: int, column: int) -> Ints:
    """Cut the constant factor at `slot` along both axes; the labels of the output's channels."""
    shape, x = _weight(ax, node, slot), node.inputs[1 - slot]
    if len(shape) != 2:
        raise RefusedRewrite(f"the weight of {node.op} {node.name} has {len(shape)} axes, not 2")
    inputs = ax.channels(x, data_axis, shape[weight_axis])
    outputs = ax.labels.fresh(shape[1 - weight_axis])
    ax.cut(node, slot, along(inputs, weight_axis, 2))
    ax.cut(node, slot, along(outputs, 1 - weight_axis, 2))
    ax.consumers.append(Consumer(node, slot, x, inputs, weight_axis))
    return outputs


def _made(ax: Axes, node: Node, outputs: Ints, rank: int, slot: int) -> None:
    ax.put(node.outputs[0], along(outputs, rank - 1 if slot else rank - 2, rank))
    ax.producers.append(Producer(node, outputs))


def _two_tensors(ax: Axes, node: Node) -> None:
    """Heads lie side by side on the leading axes; what is summed over is removed from both."""
    a, b = node.inputs
    ranks = [len(ax.shape(t)) for t in (a, b)]
    if min(ranks) < 2:
        raise RefusedRewrite(f"MatMul {node.name} multiplies by a vector")
    left, right = ax.layout(a), ax.layout(b)
    reason = f"{node.op} {node.name} multiplies it with a tensor that has no such channels"
    stacked = any(d > 1 for x in (left, right) for d in x.shape[:-2])
    if stacked:
        left = ax.labels.level(left, (left.ndim - 2, left.ndim - 1))
        right = ax.labels.level(right, (right.ndim - 2, right.ndim - 1))
        rank = max(ranks)
        batch = []
        for t, layout in ((a, left), (b, right)):
            lead = layout.reshape((1,) * (rank - layout.ndim) + layout.shape)
            sizes = (1,) * (rank - layout.ndim) + ax.shape(t)
            batch.append((lead, sizes[:-2]))
        heads = broadcast_layouts(ax, batch, rank, reason)
        ax.heads.append(heads)
        ax.put(node.outputs[0], heads)
        return
    rank = max(ranks)
    rows, columns = left.take([0], -1), right.take([0], -2)
    if left.shape[-1] > 1 and left.shape[-2] > 1:
        left = ax.labels.level(left, [left.ndim - 2])
        rows = left.take([0], -1)
    if right.shape[-1] > 1 and right.shape[-2] > 1:
        right = ax.labels.level(right, [right.ndim - 1])
        columns = right.take([0], -2)
    ax.labels.join(left[..., 0, :].reshape(-1), right[..., :, 0].reshape(-1), reason)
    if left.shape[-1] > 1 or right.shape[-2] > 1:
        # What is summed over is gone: the output varies with the other axes only.
        rows = rows if left.shape[-1] == 1 else np.zeros((1, 1), np.int64)
        columns = columns if right.shape[-2] == 1 else np.zeros((1, 1), np.int64)
    rows, columns = rows.reshape(-1, 1), columns.reshape(1, -1)
    if rows.any() and columns.any():
        raise RefusedRewrite(f"MatMul {node.name} multiplies channels with channels")
    out = rows if rows.any() else columns
    ax.put(node.outputs[0], out.reshape((1,) * (rank - 2) + out.shape))


def broadcast_layouts(ax: Axes, operands: list[tuple[Ints, tuple[Any, ...]]], rank: int, reason: str) -> Ints:
    """The layout of what is computed element by element from operands of one rank that broadcast.

    Args:
        ax: the axes.
        operands: of each the layout and the sizes of its leading axes, at least as many as vary.
        rank: that of the layouts.
        reason: why channels must stay that meet something that has none.
    """
    varying = []
    others = []
    for layout, sizes in operands:
        layout = ax.labels.compress(layout)
        if layout.size > 1:
            varying.append(layout)
        else:
            # All of it or nothing: whatever is computed from it would go with it.
            ax.labels.pin(layout, "it is the only channel of a tensor")
            others.append(sizes)
    if not varying:
        return np.zeros((1,) * rank, np.int64)
    whole = ax.same_along(varying, reason)
    axes = [axis for axis, size in enumerate(whole.shape) if size > 1]
    if any(sizes[axis] != 1 for sizes in others for axis in axes):
        ax.labels.pin(whole, reason)
    return whole


def recurrent(ax: Axes, node: Node) -> None:
    """LSTM, GRU and RNN: a hidden unit is a row of each gate and a column of the recurrence."""
    graph, gates = ax.graph, _GATES[node.op]
    x, shape, recurrence = node.inputs[0], _weight(ax, node, 1), _weight(ax, node, 2)
    data_only(ax, node)
    size = recurrence[2]
    if shape[1] != gates * size or recurrence[1] != gates * size:
        raise RefusedRewrite(f"the weights of {node.op} {node.name} do not fit each other")
    inputs = ax.channels(x, -1, shape[2])
    units = ax.labels.fresh(size)
    ax.cut(node, 1, along(inputs, 2, 3))
    tiled = np.tile(units, gates)
    for slot in (1, 2):
        ax.cut(node, slot, along(tiled, 1, 3))
    ax.cut(node, 2, along(units, 2, 3))
    if graph.input(node, 3) is not None:
        ax.cut(node, 3, along(np.tile(units, 2 * gates), 1, 2))
    for slot in (5, 6):
        if graph.input(node, slot) is not None:
            ax.cut(node, slot, along(units, 2, 3))
    if node.op == "LSTM" and graph.input(node, 7) is not None:
        ax.cut(node, 7, along(np.tile(units, _PEEPHOLES), 1, 2))
    ax.fix(node, units, lambda s: s.set_attr(node, "hidden_size", s.count(units)))
    for t in node.outputs:
        if t.name:
            ax.put(t, along(units, -1, len(ax.shape(t))))
    ax.consumers.append(Consumer(node, 1, x, inputs, 2))
    ax.consumers.append(Consumer(node, 2, node.outputs[0], units, 2))
    ax.producers.append(Producer(node, units, "hidden units"))
