"""Operators that compute each channel from itself: activations, arithmetic, normalization per channel."""

from __future__ import annotations

import numpy as np

from graphopt.passkit import Node, RefusedRewrite
from graphopt_passes.pruning._channels.axes import Axes
from graphopt_passes.pruning._channels.labels import along
from graphopt_passes.pruning._channels.rules_linear import attribute, broadcast_layouts, data_only

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid "
    "Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Cast Clip Dropout"
).split()
BROADCASTING = (
    "Add Sub Mul Div Pow Min Max Mean Sum Mod Where PRelu Equal Greater GreaterOrEqual Less LessOrEqual "
    "And Or Xor BitwiseAnd BitwiseOr BitwiseXor"
).split()


def same(ax: Axes, node: Node) -> None:
    """Element for element; further inputs are parameters for all elements together."""
    data = data_only(ax, node)
    if any(t.name for t in node.outputs[1:]) and node.op != "Dropout":
        raise RefusedRewrite(f"{node.op} {node.name} has a second output")
    for t in node.outputs:
        ax.put(t, ax.layout(data))


def broadcasting(ax: Axes, node: Node) -> None:
    """Element for element with broadcasting; constants are cut with the channels that they meet."""
    graph = ax.graph
    if graph.opset < 7:
        raise RefusedRewrite(f"{node.op} broadcasts by attribute before opset 7")
    rank = len(ax.shape(node.outputs[0]))
    operands = []
    constants = []
    for slot, t in enumerate(node.inputs):
        if not t.name:
            continue
        shape = ax.weight_shape(t)
        if shape is not None and not ax.varies(t):
            constants.append((slot, shape))
            continue
        own = ax.shape(t)
        lead = rank - len(own)
        operands.append((ax.layout(t).reshape((1,) * lead + ax.layout(t).shape), (1,) * lead + own))
    reason = f"{node.op} {node.name} combines it with a tensor that has no such channels"
    whole = broadcast_layouts(ax, operands, rank, reason)
    for slot, shape in constants:
        if int(np.prod(shape)) != 1:
            ax.cut_beside(node, slot, whole)
    ax.put(node.outputs[0], whole)


def batch_norm(ax: Axes, node: Node) -> None:
    """BatchNormalization and InstanceNormalization: parameters and statistics of each channel."""
    data = data_only(ax, node)
    graph, rank = ax.graph, len(ax.shape(data))
    if any(t.name for t in node.outputs[1:]) or graph.attr(node, "training_mode"):
        raise RefusedRewrite(f"{node.op} {node.name} is in training mode")
    if node.op == "BatchNormalization" and attribute(ax, node, "spatial") == 0:
        raise RefusedRewrite(f"BatchNormalization {node.name} has statistics of each position")
    size = ax.weight_shape(graph.input(node, 1))
    if size is None or len(size) != 1:
        raise RefusedRewrite(f"the parameters of {node.op} {node.name} are not constant")
    labels = ax.channels(data, 1, size[0])
    for slot in range(1, len(node.inputs)):
        ax.cut(node, slot, labels)
    ax.put(node.outputs[0], along(labels, 1, rank))


def layer_norm(ax: Axes, node: Node) -> None:
    """LayerNormalization, Softmax and their kin pass along the axes that they do not normalize over."""
    data = data_only(ax, node)
    layout = ax.layout(data)
    axis = int(attribute(ax, node, "axis")) % layout.ndim
    old = node.op in ("Softmax", "LogSoftmax", "Hardmax") and ax.graph.opset < 13
    one = node.op in ("Softmax", "LogSoftmax", "Hardmax") and not old
    over = [axis] if one else range(axis, layout.ndim)
    if any(layout.shape[a] > 1 and np.unique(ax.labels.find(layout)).size > 1 for a in over):
        raise RefusedRewrite(f"{node.op} {node.name} normalizes over it")
    if any(t.name for t in node.outputs[1:]):
        raise RefusedRewrite(f"{node.op} {node.name} also returns its statistics")
    ax.put(node.outputs[0], layout)


def reduce(ax: Axes, node: Node) -> None:
    """Reductions: along other axes they keep channels apart; sums of channels lose what is removed."""
    data = data_only(ax, node)
    graph, layout = ax.graph, ax.layout(data)
    given = graph.attr(node, "axes")
    if given is None and graph.input(node, 1) is not None:
        given = graph.ints(node.inputs[1])
        if given is None:
            raise RefusedRewrite(f"the axes of {node.op} {node.name} are not constant")
    if not given and attribute(ax, node, "noop_with_empty_axes"):
        ax.put(node.outputs[0], layout)
        return
    axes = sorted(int(a) % layout.ndim for a in given) if given else list(range(layout.ndim))
    gone = [a for a in axes if layout.shape[a] > 1]
    if gone:
        if node.op not in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"):
            raise RefusedRewrite(f"{node.op} {node.name} reduces over it")
        if any(d > 1 for a, d in enumerate(layout.shape) if a not in gone):
            layout = ax.labels.level(layout, gone)
        else:
            return  # the sum of all channels has none
    keep = bool(attribute(ax, node, "keepdims"))
    ax.put(node.outputs[0], layout if keep else layout.squeeze(tuple(axes)))


def pool(ax: Axes, node: Node) -> None:
    """Pooling of each channel's plane."""
    data = data_only(ax, node)
    if any(t.name for t in node.outputs[1:]):
        raise RefusedRewrite(f"{node.op} {node.name} also returns indices")
    layout = ax.layout(data)
    ax.put(node.outputs[0], ax.labels.level(layout, range(2, layout.ndim)))


def quantize(ax: Axes, node: Node) -> None:
    """QuantizeLinear and DequantizeLinear of activations; those of weights are cut with their readers."""
    graph, data = ax.graph, data_only(ax, node)
    layout = ax.layout(data)
    if graph.attr(node, "block_size"):
        raise RefusedRewrite(f"{node.op} {node.name} has scales of blocks")
    for slot in (1, 2):
        shape = ax.weight_shape(graph.input(node, slot))
        if shape is None and graph.input(node, slot) is not None:
            raise RefusedRewrite(f"a scale of {node.op} {node.name} is not constant")
        if shape is not None and int(np.prod(shape)) != 1:
            axis = int(attribute(ax, node, "axis")) % layout.ndim
            ax.cut(node, slot, ax.channels(data, axis, shape[0]))
    ax.put(node.outputs[0], layout)
