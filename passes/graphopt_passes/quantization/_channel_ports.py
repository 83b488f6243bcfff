"""Operators in which a scale per channel begins and ends: they have constants that can take it up."""

from __future__ import annotations

import numpy as np

from graphopt.passkit import Array, Node, RefusedRewrite, Tensor
from graphopt_passes.fusion._affine import per_input_channel, per_output_channel
from graphopt_passes.fusion._conv import read_conv
from graphopt_passes.fusion._gemm import Gemm, read_gemm
from graphopt_passes.fusion._operands import attribute, read_batch_norm
from graphopt_passes.quantization._channels import Explorer, Operand, Port


def is_written(ex: Explorer, node: Node, tensor: Tensor) -> bool:
    """Whether `node` computes `tensor`, as its first output.

    Raises:
        RefusedRewrite: it computes it as another output, of which nothing is known here.
    """
    if tensor is node.outputs[0]:
        return True
    if ex.graph.producer(tensor) is node:
        raise RefusedRewrite(f"{tensor.name} is a secondary output of {node.op}")
    return False


def only_slot(ex: Explorer, node: Node, tensor: Tensor, slot: int = 0) -> None:
    """Decline when `node` reads `tensor` anywhere but at `slot`."""
    if any(t is tensor for i, t in enumerate(node.inputs) if i != slot):
        raise RefusedRewrite(f"{tensor.name} is a parameter of {node.op}")


def aligned(channels: Array, rank: int) -> Array:
    """A layout without the leading axes of size 1 that a tensor of `rank` does not have."""
    while channels.ndim > rank and channels.shape[0] == 1:
        channels = channels[0]
    return channels


def conv(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """Conv and ConvTranspose: the scale of an input channel goes into the weight, as does an output's."""
    writes = is_written(ex, node, tensor)
    if not ex.is_first(node, "out" if writes else "in"):
        return
    if not writes:
        only_slot(ex, node, tensor)
    found = read_conv(ex.graph, node)
    channels = ex.along(ex.layouts[tensor], 1)
    wanted = found.channels_out if writes else found.channels_in
    channels = _sized(channels, wanted, node)
    if writes:
        weight = per_output_channel(channels, found.shape, found.groups, found.transposed)
        operands = [Operand(1, -1, weight)]
        if found.bias is not None:
            operands.append(Operand(2, -1, channels, is_weight=False))
    else:
        weight = per_input_channel(channels, found.shape, found.groups, found.transposed)
        operands = [Operand(1, 1, weight)]
    ex.ports.append(Port(node, tensor, tuple(operands), writes, 1, channels))


def _sized(channels: Array, size: int, node: Node) -> Array:
    """One label per channel, also where the layout says that all have the same."""
    if channels.shape == (1,):
        return np.broadcast_to(channels, (size,))
    if channels.shape != (size,):
        raise RefusedRewrite(f"{node.op} has {size} channels where {len(channels)} were expected")
    return channels


def gemm(ex: Explorer, node: Node, tensor: Tensor) -> bool:
    """Gemm and MatMul with one constant operand.

    Returns:
        Whether it is one: False for a MatMul of two computed tensors.
    """
    graph = ex.graph
    found = read_gemm(graph, node)
    constant = [graph.is_constant(found.a), graph.is_constant(found.b)]
    if constant == [False, False] and found.is_matmul:
        return False
    if constant[0] == constant[1]:
        raise RefusedRewrite(f"no operand of {node.op} is constant")
    slot = constant.index(True)
    weight = found.b if slot else found.a
    rank = len(graph.constant(weight).shape)  # type: ignore[union-attr]
    if rank < 2 or len(ex.shape(found.a if slot else found.b)) < 2:
        raise RefusedRewrite(f"{node.op} multiplies by a vector")
    writes = is_written(ex, node, tensor)
    if not ex.is_first(node, "out" if writes else "in"):
        return True
    port = _written(ex, found, slot, rank) if writes else _read(ex, found, slot, rank, tensor)
    ex.ports.append(port)
    return True


def _read(ex: Explorer, found: Gemm, slot: int, rank: int, tensor: Tensor) -> Port:
    """The data's axis that is summed over, and the weight's."""
    only_slot(ex, found.node, tensor, 1 - slot)
    layout = ex.layouts[tensor]
    axis = found.depth_axis(1 - slot, layout.ndim)
    along = found.depth_axis(slot, rank)
    size = ex.graph.constant(found.b if slot else found.a).shape[along]  # type: ignore[union-attr]
    channels = _sized(ex.along(layout, axis), int(size), found.node)
    weight = channels if along == rank - 1 else channels[:, None]
    return Port(found.node, tensor, (Operand(slot, 1, weight),), False, axis, channels)


def _written(ex: Explorer, found: Gemm, slot: int, rank: int) -> Port:
    """The weight's columns (or its rows, if it is the left operand) are the output's channels."""
    graph, out = ex.graph, found.node.outputs[0]
    layout = ex.layouts[out]
    axis = layout.ndim - 1 if slot else layout.ndim - 2
    summed = found.depth_axis(slot, rank)
    along = 2 * rank - 3 - summed  # of the last two axes the other one
    size = graph.constant(found.b if slot else found.a).shape[along]  # type: ignore[union-attr]
    channels = _sized(ex.along(layout, axis), int(size), found.node)
    weight = channels if along == rank - 1 else channels[:, None]
    operands = [Operand(slot, -1, weight)]
    if found.c is not None and found.beta:
        bias = graph.constant(found.c)
        if bias is None:
            raise RefusedRewrite(f"the bias {found.c.name} of Gemm is not constant")
        operands.append(Operand(2, -1, channels if slot else channels[:, None], is_weight=False))
    return Port(found.node, out, tuple(operands), True, axis, channels)


def layer_norm(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """LayerNormalization and RMSNormalization write through their scale and bias; nothing passes them."""
    if not is_written(ex, node, tensor):
        raise RefusedRewrite(f"{node.op} normalizes over the channels of {tensor.name}")
    if not ex.is_first(node):
        return
    layout = ex.layouts[tensor]
    axis = int(attribute(ex.graph, node, "axis")) % layout.ndim
    layout = ex.level(layout, range(axis))
    _affine_port(ex, node, tensor, aligned(layout, layout.ndim - axis), (1, 2))


def instance_norm(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """InstanceNormalization and GroupNormalization write through a scale and bias per channel."""
    if not is_written(ex, node, tensor):
        raise RefusedRewrite(f"{node.op} normalizes away the scale of {tensor.name}")
    if not ex.is_first(node):
        return
    if node.op == "GroupNormalization" and ex.graph.opset < 21:
        raise RefusedRewrite("GroupNormalization has a scale per group before opset 21")
    _affine_port(ex, node, tensor, ex.along(ex.layouts[tensor], 1), (1, 2))


def batch_norm(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """BatchNormalization is an affine map per channel: it reads one scale and writes another."""
    writes = is_written(ex, node, tensor)
    if not ex.is_first(node, "out" if writes else "in"):
        return
    read_batch_norm(ex.graph, node)
    channels = ex.along(ex.layouts[tensor], 1)
    if writes:
        _affine_port(ex, node, tensor, channels, (1, 2))
        return
    only_slot(ex, node, tensor)
    # gamma (s x - mean) = gamma s (x - mean / s)
    operands = (Operand(1, 1, channels), Operand(3, -1, channels, is_weight=False))
    ex.ports.append(Port(node, tensor, operands, False))


def _affine_port(ex: Explorer, node: Node, tensor: Tensor, channels: Array, slots: tuple[int, int]) -> None:
    operands = []
    for slot in slots:
        parameter = ex.graph.input(node, slot)
        if parameter is None:
            if slot == slots[0]:
                raise RefusedRewrite(f"{node.op} has no scale")
            continue
        if not ex.graph.is_constant(parameter):
            raise RefusedRewrite(f"{parameter.name} of {node.op} is not constant")
        operands.append(Operand(slot, -1, channels, is_weight=slot == slots[0]))
    ex.ports.append(Port(node, tensor, tuple(operands), True))


def scale_by_constant(ex: Explorer, node: Node, tensor: Tensor, slot: int) -> None:
    """Mul or Div by a constant that is not one number, at `slot`: like a depthwise convolution of one tap."""
    if node.op == "Div" and slot == 0:
        raise RefusedRewrite(f"{tensor.name} is a divisor")
    writes = is_written(ex, node, tensor)
    if not ex.is_first(node, "out" if writes else "in"):
        return
    constant = ex.graph.constant(node.inputs[slot])
    assert constant is not None
    power = -1 if writes else 1
    channels = aligned(ex.layouts[tensor], len(constant.shape))
    operand = Operand(slot, power if node.op == "Mul" else -power, channels)
    ex.ports.append(Port(node, tensor, (operand,), writes))
