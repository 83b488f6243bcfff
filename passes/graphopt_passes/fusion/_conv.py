"""Folding `y * scale + shift` into a Conv or ConvTranspose, on either side of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.passkit import Array, GraphView, Node, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.fusion._affine import (
    conv_of_shift,
    is_identity,
    per_input_channel,
    per_output_channel,
    rounded,
    scaled,
    wide,
)
from graphopt_passes.fusion._operands import FLOATS, attribute, check_growth


@dataclass(frozen=True)
class Conv:
    """A Conv or ConvTranspose with constant weight and constant or absent bias.

    Attributes:
        x: the input.
        shape: shape of the weight.
        channels_in, channels_out: channels of input and output.
    """

    node: Node
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    shape: tuple[int, ...]
    groups: int
    channels_in: int
    channels_out: int

    @property
    def rank(self) -> int:
        """Rank of input, weight and output."""
        return len(self.shape)

    @property
    def transposed(self) -> bool:
        """It is a ConvTranspose."""
        return self.node.op == "ConvTranspose"


def read_conv(graph: GraphView, node: Node) -> Conv:
    """Read a Conv or ConvTranspose.

    Raises:
        RefusedRewrite: weight or bias is not constant, or not of a float type.
    """
    x, weight, bias = (graph.input(node, slot) for slot in range(3))
    shape = graph.static_shape(weight) if graph.is_constant(weight) else None
    if x is None or weight is None or shape is None:
        raise RefusedRewrite(f"the weight {weight.name if weight else ''} of {node.op} is not constant")
    if bias is not None and not graph.is_constant(bias):
        raise RefusedRewrite(f"the bias {bias.name} of {node.op} is not constant")
    if graph.dtype(weight) not in FLOATS:
        raise RefusedRewrite(f"the weight {weight.name} of {node.op} is not of a float type")
    groups = int(attribute(graph, node, "group"))
    if len(shape) < 3 or groups < 1 or shape[0] % groups or 0 in shape:
        raise RefusedRewrite(f"the weight {weight.name} of {node.op} does not fit its groups")
    channels = shape[0], shape[1] * groups
    channels_out, channels_in = channels[::-1] if node.op == "ConvTranspose" else channels
    if bias is not None and graph.static_shape(bias) != (channels_out,):
        raise RefusedRewrite(f"the bias {bias.name} of {node.op} is not one number per channel")
    return Conv(node, x, weight, bias, shape, groups, channels_in, channels_out)


def pads_nothing(graph: GraphView, conv: Conv) -> bool:
    """Whether every tap of the convolution reads a real element of its input."""
    mode = attribute(graph, conv.node, "auto_pad")
    if mode == "VALID":
        return True
    return mode in (None, "NOTSET") and not any(attribute(graph, conv.node, "pads") or ())


def fold_after(graph: Rewriter, ctx: PassContext, root: Node, conv: Conv, scale: Array, shift: Array) -> None:
    """The output of `root`, which is `conv(x) * scale + shift`, comes from a Conv with other weights.

    Args:
        graph: the body.
        ctx: for the limits.
        root: the operator that is folded; it reads the convolution.
        conv: the convolution.
        scale: float64, `()` or one per output channel.
        shift: likewise.

    Raises:
        RefusedRewrite: the folded weights do not fit their dtype, or the model would grow.
    """
    scales = not is_identity(scale)
    biased = bool(shift.any()) or (conv.bias is not None and scales)
    _check_growth(graph, ctx, root, conv, scales, biased)
    weight = bias = None
    if scales:
        factor = per_output_channel(scale, conv.shape, conv.groups, conv.transposed)
        weight = scaled(_weight(graph, conv), factor)
    if biased:
        old = graph.array(conv.bias)
        bias = shift if old is None else wide(old) * scale + shift
    _write(graph, root, conv, conv.x, weight, bias)


def fold_before(
    graph: Rewriter, ctx: PassContext, root: Node, conv: Conv, x: Tensor, scale: Array, shift: Array
) -> None:
    """The output of `conv`, which reads `x * scale + shift` from `root`, comes from a Conv of `x`.

    Args:
        graph: the body.
        ctx: for the limits.
        root: the operator that is folded; the convolution reads it.
        conv: the convolution.
        x: what `root` reads.
        scale: float64, `()` or one per input channel.
        shift: likewise.

    Raises:
        RefusedRewrite: there is a shift and the convolution pads (with zeros, which the shift would turn
            into something else); the folded weights do not fit their dtype, or the model would grow.
    """
    shifts, scales = bool(shift.any()), not is_identity(scale)
    if shifts and conv.transposed:
        raise RefusedRewrite(f"{root.op} shifts, which ConvTranspose does not do evenly at its borders")
    if shifts and not pads_nothing(graph, conv):
        raise RefusedRewrite(f"Conv pads with zeros, which {root.op} does not shift")
    _check_growth(graph, ctx, root, conv, scales, shifts)
    weight = bias = None
    if shifts:
        bias = conv_of_shift(_weight(graph, conv), shift, conv.groups)
        old = graph.array(conv.bias)
        bias = bias if old is None else wide(old) + bias
    if scales:
        factor = per_input_channel(scale, conv.shape, conv.groups, conv.transposed)
        weight = scaled(_weight(graph, conv), factor)
    _write(graph, conv.node, conv, x, weight, bias, root.op)


def _weight(graph: GraphView, conv: Conv) -> Array:
    values = graph.array(conv.weight)
    assert values is not None  # read_conv saw that it is constant
    return values


def _check_growth(
    graph: GraphView, ctx: PassContext, root: Node, conv: Conv, weight: bool, bias: bool
) -> None:
    constant = graph.constant(conv.weight)
    assert constant is not None
    sizes: list[tuple[Tensor | None, int]] = []
    if weight:
        sizes.append((conv.weight, constant.nbytes))
    if bias:
        sizes.append((conv.bias, conv.channels_out * constant.dtype.itemsize))
    check_growth(graph, ctx, conv.node, sizes, root)


def _write(
    graph: Rewriter,
    root: Node,
    conv: Conv,
    x: Tensor,
    weight: Array | None,
    bias: Array | None,
    folded: str = "",
) -> None:
    """A Conv with these weights (None: the old ones) computes the output of `root`."""
    new_bias = None
    if bias is not None:
        dtype = _weight(graph, conv).dtype if weight is None else weight.dtype
        new_bias = rounded(np.broadcast_to(bias, (conv.channels_out,)), dtype, "bias")
    with graph.site(root, f"{folded or root.op} folded into {conv.node.op}"):
        inputs: list[Tensor | None] = [x, conv.weight, conv.bias]
        if weight is not None:
            inputs[1] = graph.new_constant(conv.weight.name, weight)
        if new_bias is not None:
            hint = f"{conv.weight.name}_bias" if conv.bias is None else conv.bias.name
            inputs[2] = graph.new_constant(hint, new_bias)
        graph.replace(root.outputs[0], conv.node.op, inputs, attrs=dict(conv.node.attrs))
