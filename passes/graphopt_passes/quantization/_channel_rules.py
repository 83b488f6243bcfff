"""Operators through which a positive scale per channel passes: f(x / s) = f(x) / s."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from graphopt.passkit import Array, Dim, Node, RefusedRewrite, Tensor
from graphopt_passes.fusion._operands import FLOATS, attribute
from graphopt_passes.quantization._channel_ports import (
    aligned,
    batch_norm,
    conv,
    gemm,
    instance_norm,
    is_written,
    layer_norm,
    only_slot,
    scale_by_constant,
)
from graphopt_passes.quantization._channels import Explorer, Operand, Port

# Bounds of Clip from here on are as good as none.
_UNBOUNDED = 1e30


def same(ex: Explorer, node: Node, tensor: Tensor, level: Sequence[int] = ()) -> None:
    """Element for element, once the layout is constant along the axes `level`."""
    writes = is_written(ex, node, tensor)
    if not writes:
        only_slot(ex, node, tensor)
    if any(t.name for t in node.outputs[1:]):
        raise RefusedRewrite(f"{node.op} has a second output")
    layout = ex.level(ex.layouts[tensor], level)
    if ex.is_first(node):
        ex.put(node.inputs[0] if writes else node.outputs[0], layout)


def cast(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """Cast between float types."""
    if not all(ex.graph.dtype(t) in FLOATS for t in (node.inputs[0], node.outputs[0])):
        raise RefusedRewrite("Cast does not keep a float type")
    same(ex, node, tensor)


def dropout(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """Dropout that does nothing."""
    training = ex.graph.input(node, 2)
    if training is not None and ex.graph.scalar(training) is not False:
        raise RefusedRewrite("Dropout is in training mode")
    same(ex, node, tensor)


def clip(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """Clip at 0 and nowhere else: any other bound would have to scale with each channel."""
    graph = ex.graph
    for slot, name in ((1, "min"), (2, "max")):
        if graph.opset >= 11:
            bound = graph.input(node, slot)
            value = None if bound is None else graph.scalar(bound)
            if bound is not None and value is None:
                raise RefusedRewrite(f"the {name} of Clip is not one constant number")
        else:
            value = attribute(graph, node, name)
        if value is None or value == 0 or value >= _UNBOUNDED or value <= -_UNBOUNDED:
            continue
        raise RefusedRewrite(f"Clip bounds all channels at {value:g}")
    same(ex, node, tensor)


def pool(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """Pooling: each channel's plane by itself."""
    same(ex, node, tensor, [a for a in range(ex.layouts[tensor].ndim) if a != 1])


def in_place(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """Slice, Pad with zeros, Resize: axes that may change are levelled."""
    graph = ex.graph
    if node.op == "Pad":
        value = graph.input(node, 2) if graph.opset >= 11 else None
        number = attribute(graph, node, "value") if graph.opset < 11 else 0.0
        if value is not None:
            number = graph.scalar(value)
        if attribute(graph, node, "mode") in (None, "constant") and number != 0:
            raise RefusedRewrite("Pad does not pad with zeros")
    if attribute(graph, node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        raise RefusedRewrite("Resize fills in a constant")
    before, after = ex.shape(node.inputs[0]), ex.shape(node.outputs[0])
    backwards = node.op == "Slice" and graph.input(node, 4) is not None
    changed = [a for a, (b, c) in enumerate(zip(before, after, strict=True)) if backwards or b != c]
    if node.op == "Resize":
        changed = sorted({*changed, *range(2, len(before))})
    same(ex, node, tensor, changed)


def reduce(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """Means, sums, norms and extremes over other axes than the channels'."""
    writes = is_written(ex, node, tensor)
    if not writes:
        only_slot(ex, node, tensor)
    graph = ex.graph
    rank = len(ex.shape(node.inputs[0]))
    given = attribute(graph, node, "axes")
    source = graph.input(node, 1)
    if source is not None:
        given = graph.ints(source)
        if given is None:
            raise RefusedRewrite(f"the axes of {node.op} are not constant")
    if not given and attribute(graph, node, "noop_with_empty_axes"):
        raise RefusedRewrite(f"{node.op} reduces nothing")
    axes = sorted(int(a) % rank for a in given) if given else list(range(rank))
    keep = bool(attribute(graph, node, "keepdims"))
    if not ex.is_first(node):
        return
    layout = ex.layouts[tensor]
    if writes:
        layout = layout if keep else np.expand_dims(layout, tuple(axes))
        ex.put(node.inputs[0], ex.level(layout, axes))
    else:
        layout = ex.level(layout, axes)
        ex.put(node.outputs[0], layout if keep else layout.squeeze(tuple(axes)))


def transpose(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """The layout is transposed likewise."""
    if not ex.is_first(node):
        return
    layout = ex.layouts[tensor]
    order = attribute(ex.graph, node, "perm") or range(layout.ndim)[::-1]
    if is_written(ex, node, tensor):
        ex.put(node.inputs[0], layout.transpose(np.argsort(list(order))))
    else:
        ex.put(node.outputs[0], layout.transpose(list(order)))


def reshape(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the layout is reshaped likewise."""
    writes = is_written(ex, node, tensor)
    if not writes:
        only_slot(ex, node, tensor)
    if not ex.is_first(node):
        return
    source, target = (node.outputs[0], node.inputs[0]) if writes else (node.inputs[0], node.outputs[0])
    ex.put(target, _reshaped(ex, ex.layouts[tensor], ex.shape(source), ex.shape(target)))


def _reshaped(ex: Explorer, layout: Array, before: Sequence[Dim], after: Sequence[Dim]) -> Array:
    """`layout` of a tensor of shape `before` for the same elements in the shape `after`.

    Where the sizes of leading axes are not known to match, the layout is made constant along them.
    """
    blocks, i, j = matching_axes(before, after)
    layout = ex.level(layout, range(i))
    full, target = [1] * i, [1] * j
    for left, right in blocks:
        sizes = [d if isinstance(d, int) else 1 for d in before[left.start : left.stop]]
        if any(layout.shape[a] > 1 for a in left):
            full += sizes
            target += [d if isinstance(d, int) else 1 for d in after[right.start : right.stop]]
        else:
            full += [1] * len(left)
            target += [1] * len(right)
    return np.broadcast_to(layout, full).reshape(target)


def matching_axes(before: Sequence[Dim], after: Sequence[Dim]) -> tuple[list[tuple[range, range]], int, int]:
    """The smallest groups of axes that hold the same elements before and after a Reshape.

    Returns:
        Pairs of axes before and after, in order; how many leading axes of either are left unmatched.
    """
    blocks: list[tuple[range, range]] = []
    i, j = len(before), len(after)
    while i or j:
        left, right = i, j
        if i and j and before[i - 1] == after[j - 1]:
            left, right = i - 1, j - 1
        elif i and before[i - 1] == 1:
            left = i - 1
        elif j and after[j - 1] == 1:
            right = j - 1
        else:
            a: Dim = 0
            b: Dim = 0
            while a != b or not a:
                take = a <= b if isinstance(a, int) and isinstance(b, int) else False
                if take and left:
                    left -= 1
                    a = before[left] * (a or 1)
                elif not take and right:
                    right -= 1
                    b = after[right] * (b or 1)
                else:
                    return blocks[::-1], i, j
                if not (isinstance(a, int) and isinstance(b, int)) or (a and b and 0 in (a, b)):
                    return blocks[::-1], i, j
        blocks.append((range(left, i), range(right, j)))
        i, j = left, right
    return blocks[::-1], 0, 0


def elementwise(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """Add, Sub, Sum, Mean, Max, Min: all operands have the scale; constants are divided by it."""
    writes = is_written(ex, node, tensor)
    if not ex.is_first(node):
        return
    graph, out = ex.graph, node.outputs[0]
    if graph.opset < 7:
        raise RefusedRewrite(f"{node.op} broadcasts by attribute before opset 7")
    rank = len(ex.shape(out))
    layout = ex.layouts[tensor]
    layout = layout.reshape((1,) * (rank - layout.ndim) + layout.shape)
    operands = []
    for slot, other in enumerate(node.inputs):
        constant = graph.constant(other)
        if constant is not None:
            channels = aligned(layout, len(constant.shape))
            operands.append(Operand(slot, -1, channels, is_weight=False))
        elif other is not tensor:
            ex.put(other, ex.restrict(layout, other))
    if not writes:
        ex.put(out, layout)
    if operands:
        ex.ports.append(Port(node, out, tuple(operands), True))


def product(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """Mul and Div: by one number; by a constant per channel, where scales end; by another tensor."""
    graph = ex.graph
    if graph.opset < 7:
        raise RefusedRewrite(f"{node.op} broadcasts by attribute before opset 7")
    constants = [slot for slot, t in enumerate(node.inputs) if graph.is_constant(t)]
    if len(constants) == 2:
        raise RefusedRewrite(f"{node.op} of constants")
    if constants and graph.scalar(node.inputs[constants[0]]) is None:
        scale_by_constant(ex, node, tensor, constants[0])
        return
    if constants == [0] and node.op == "Div":
        raise RefusedRewrite(f"{tensor.name} is a divisor")
    writes = is_written(ex, node, tensor)
    if not ex.is_first(node):
        return
    if constants:
        carrier = 1 - constants[0]
    elif writes:
        carrier = ex.choose(2) if node.op == "Mul" else 0
    else:
        carrier = next(slot for slot, t in enumerate(node.inputs) if t is tensor)
        if node.op == "Div" and carrier == 1:
            raise RefusedRewrite(f"{tensor.name} is a divisor")
    if not constants:
        ex.outsiders.append((node, node.inputs[1 - carrier]))
    layout, out = ex.layouts[tensor], node.outputs[0]
    rank = len(ex.shape(out))
    layout = layout.reshape((1,) * (rank - layout.ndim) + layout.shape)
    ex.put(node.inputs[carrier], ex.restrict(layout, node.inputs[carrier]))
    ex.put(out, layout)


def matmul(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """MatMul with a constant; of two tensors, a scale that does not vary along the summed axis passes."""
    if gemm(ex, node, tensor):
        return
    writes = is_written(ex, node, tensor)
    if not ex.is_first(node):
        return
    left, right = node.inputs
    if len(ex.shape(left)) < 2 or len(ex.shape(right)) < 2:
        raise RefusedRewrite("MatMul multiplies by a vector")
    # The right operand first: attention weights on the left are probabilities, which nothing can scale.
    carrier = 1 - ex.choose(2) if writes else [left, right].index(tensor)
    ex.outsiders.append((node, node.inputs[1 - carrier]))
    out, x = node.outputs[0], node.inputs[carrier]
    layout = ex.layouts[tensor]
    summed = layout.ndim - 2 if carrier else layout.ndim - 1
    layout = ex.level(layout, [summed])
    if writes:
        ex.put(x, ex.restrict(layout, x))
    else:
        rank = len(ex.shape(out))
        ex.put(out, layout.reshape((1,) * (rank - layout.ndim) + layout.shape))


def concat(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """The layouts of the pieces, one behind another."""
    pieces = list(node.inputs)
    _join_pieces(ex, node, tensor, node.outputs[0], pieces)


def split(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """Concat read backwards."""
    if any(t is tensor for t in node.inputs[1:]):
        raise RefusedRewrite(f"{tensor.name} is a parameter of Split")
    _join_pieces(ex, node, tensor, node.inputs[0], [t for t in node.outputs if t.name])


def _join_pieces(ex: Explorer, node: Node, tensor: Tensor, whole: Tensor, pieces: list[Tensor]) -> None:
    if not ex.is_first(node):
        return
    graph = ex.graph
    rank = len(ex.shape(whole))
    axis = int(attribute(graph, node, "axis")) % rank
    layout = ex.layouts[tensor]
    sizes = [ex.shape(p)[axis] for p in pieces]
    known = [s for s in sizes if isinstance(s, int)]
    if layout.shape[axis] == 1 or len(known) < len(sizes):
        layout = ex.level(layout, [axis])
        parts = [layout] * len(pieces)
        total = layout
    elif tensor is whole:
        if sum(known) != layout.shape[axis]:
            raise RefusedRewrite(f"{node.op} has pieces whose sizes do not add up")
        parts = np.split(layout, np.cumsum(known)[:-1], axis)
        total = layout
    else:
        # The other pieces need not be scaled for this one to be: they have regions of their own.
        shape = list(layout.shape)
        parts = []
        for piece, size in zip(pieces, known, strict=True):
            shape[axis] = size
            parts.append(layout if piece is tensor else ex.beside(piece, shape))
        ex.put(whole, np.concatenate(parts, axis))
        return
    operands = []
    for slot, (piece, part) in enumerate(zip(pieces, parts, strict=True)):
        if graph.is_constant(piece):
            operands.append(Operand(slot, -1, part, is_weight=False))
        else:
            ex.put(piece, part)
    ex.put(whole, total)
    if operands:
        ex.ports.append(Port(node, whole, tuple(operands), True))


def gather(ex: Explorer, node: Node, tensor: Tensor) -> None:
    """Picking positions on an axis along which the scale does not vary; or rows of a constant table."""
    writes = is_written(ex, node, tensor)
    if not writes:
        only_slot(ex, node, tensor)
    data, indices = node.inputs[:2]
    rank, extra = len(ex.shape(data)), len(ex.shape(indices))
    axis = int(attribute(ex.graph, node, "axis")) % rank
    if not ex.is_first(node):
        return
    layout = ex.layouts[tensor]
    if writes:
        layout = ex.level(layout, range(axis, axis + extra))
        layout = layout.reshape((*layout.shape[:axis], 1, *layout.shape[axis + extra :]))
        if ex.graph.is_constant(data):
            ex.ports.append(Port(node, tensor, (Operand(0, -1, layout),), True))
        else:
            ex.put(data, layout)
    else:
        layout = ex.level(layout, [axis])
        ex.put(
            node.outputs[0], layout.reshape((*layout.shape[:axis], *(1,) * extra, *layout.shape[axis + 1 :]))
        )


RULES: dict[str, Callable[[Explorer, Node, Tensor], None]] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Identity", "Abs", "Neg"), same),
    **dict.fromkeys(
        ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "LpPool"), pool
    ),
    **dict.fromkeys(("Slice", "Pad", "Resize"), in_place),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"), reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshape),
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean", "Max", "Min"), elementwise),
    **dict.fromkeys(("Mul", "Div"), product),
    **dict.fromkeys(("Conv", "ConvTranspose"), conv),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layer_norm),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), instance_norm),
    "BatchNormalization": batch_norm,
    "Cast": cast,
    "Clip": clip,
    "Concat": concat,
    "Dropout": dropout,
    "Gather": gather,
    "Gemm": matmul,
    "MatMul": matmul,
    "Split": split,
    "Transpose": transpose,
}
