"""Reading normalizations that exporters spell out: `d / sqrt(mean(d^2) + epsilon)` and what follows it.

`d` is the input itself (RMSNormalization) or the input less its mean (LayerNormalization).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from graphopt.passkit import Array, Dim, GraphView, Node, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.fusion._region import Region, plain_attr

_HALVES = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
# ReduceMean takes its axes as an input from here on.
_AXES_INPUT = 18


@dataclass(frozen=True)
class Scaled:
    """`numerator / sqrt(mean(squared^2) + epsilon)`, the mean over the last `count` axes."""

    numerator: Tensor
    squared: Tensor
    count: int
    epsilon: float


@dataclass(frozen=True)
class Parameter:
    """A scale or shift along the normalized axes.

    Attributes:
        tensor: what is multiplied or added.
        values: the values of a constant in the shape of the normalized axes; None where `tensor` serves
            as it is.
    """

    tensor: Tensor
    values: Array | None = None


@dataclass(frozen=True)
class Tail:
    """What follows a normalization, as far as the fused operator can absorb it.

    Attributes:
        x: what is normalized; before a Cast to float, if the result is cast back.
        last: the last node absorbed.
        scale, shift: the parameters, None where there are none.
    """

    x: Tensor
    last: Node
    scale: Parameter | None = None
    shift: Parameter | None = None


def read_scaled(region: Region, root: Node) -> Scaled | None:
    """Read the division that ends at `root`, a Div or Mul.

    Raises:
        RefusedRewrite: it looks like a normalization and is not one that the operators compute.
    """
    region.nodes[root] = None
    for numerator, variance in _inverse_roots(region, root):
        attempt = region.fork()
        radicand = _variance(attempt, variance)
        if radicand is None:
            continue
        mean, epsilon = radicand
        squared = _square(attempt, mean.inputs[0])
        if squared is None:
            continue
        if not 0.0 <= epsilon < math.inf:
            raise RefusedRewrite(f"epsilon is {epsilon}")
        count = trailing_axes(region.graph, mean)
        region.join(attempt)
        return Scaled(numerator, squared, count, epsilon)
    return None


def _inverse_roots(region: Region, root: Node) -> list[tuple[Tensor, Tensor]]:
    """Ways to read `root` as `a / sqrt(b)`: pairs of a and b. The nodes join the region."""
    left, right = root.inputs
    if root.op == "Div":
        radicand = _root(region, right, 0.5)
        return [] if radicand is None else [(left, radicand)]
    found = []
    for one, other in ((left, right), (right, left)):
        radicand = _root(region, other, -0.5)
        if radicand is None:
            node = region.fork().find(other, "Reciprocal", "Div")
            if node is None or (node.op == "Div" and region.fork().scalar(node.inputs[0]) != 1.0):
                continue
            if node.op == "Div":
                region.scalar(node.inputs[0])
            radicand = _root(region, node.inputs[-1], 0.5)
            region.nodes[node] = None
        if radicand is not None:
            found.append((one, radicand))
    return found


def _root(region: Region, tensor: Tensor, power: float) -> Tensor | None:
    """`b` if `tensor` is `b ** power`."""
    ops = ("Sqrt", "Pow") if power == 0.5 else ("Pow",)
    node = region.fork().find(tensor, *ops)
    if node is None or (node.op == "Pow" and region.fork().scalar(node.inputs[1]) != power):
        return None
    if node.op == "Pow":
        region.scalar(node.inputs[1])
    region.nodes[node] = None
    return node.inputs[0]


def _variance(region: Region, tensor: Tensor) -> tuple[Node, float] | None:
    """The ReduceMean node and epsilon if `tensor` is `ReduceMean(...) + epsilon`."""
    add = region.find(tensor, "Add")
    if add is None:
        return None
    for one, other in (add.inputs, add.inputs[::-1]):
        mean = region.find(one, "ReduceMean")
        if mean is None:
            continue
        epsilon = region.scalar(other)
        if epsilon is None:
            raise RefusedRewrite(f"epsilon ({other.name}) is not a constant scalar")
        return mean, epsilon
    return None


def _square(region: Region, tensor: Tensor) -> Tensor | None:
    """`d` if `tensor` is `d * d`."""
    node = region.find(tensor, "Pow", "Mul")
    if node is None:
        return None
    if node.op == "Mul":
        return node.inputs[0] if node.inputs[0] is node.inputs[1] else None
    exponent = region.scalar(node.inputs[1])
    if exponent != 2.0:
        raise RefusedRewrite(f"the exponent is {exponent}, not 2")
    return node.inputs[0]


def trailing_axes(graph: GraphView, mean: Node) -> int:
    """How many trailing axes a ReduceMean averages over, keeping them as 1.

    Raises:
        RefusedRewrite: it drops them, or they are not the last ones, or not known.
    """
    if plain_attr(graph, mean, "keepdims") != 1:
        raise RefusedRewrite("ReduceMean drops the axes that it reduces")
    rank = graph.rank(mean.inputs[0])
    axes: Sequence[int] | None
    if graph.opset < _AXES_INPUT:
        value = mean.attrs.get("axes")
        axes = list(value) if isinstance(value, list | tuple) else None
        absent = value is None
    else:
        tensor = graph.input(mean, 1)
        axes, absent = graph.ints(tensor), tensor is None
        if (absent or axes == []) and plain_attr(graph, mean, "noop_with_empty_axes") != 0:
            raise RefusedRewrite("ReduceMean reduces nothing")
        absent = absent or axes == []
    if absent:
        axes = None if rank is None else range(rank)
    if axes is None:
        raise RefusedRewrite("the axes of ReduceMean are not known")
    if rank is not None:
        axes = [a - rank if a >= 0 else a for a in axes]
    count = len(axes)
    if not count or sorted(axes) != list(range(-count, 0)):
        raise RefusedRewrite("ReduceMean does not run over the last axes, or over axes that are not known")
    return count


def read_tail(graph: GraphView, region: Region, root: Node, x: Tensor, count: int, *, shifts: bool) -> Tail:
    """What of the nodes after `root` belongs to the normalization; they join the region.

    Args:
        graph: the body.
        region: the normalization so far.
        root: its last node.
        x: what is normalized.
        count: over how many trailing axes.
        shifts: whether a shift may follow the scale.
    """
    tail = _cast_back(graph, region, Tail(x, root))
    shape = graph.shape(x)
    if shape is None or len(shape) < count:
        return tail
    dims = shape[len(shape) - count :]
    for op in ("Mul", "Add") if shifts else ("Mul",):
        out = tail.last.outputs[0]
        node = _next(graph, out, op)
        if node is None:
            continue
        (other,) = (t for t in node.inputs if t is not out)
        found = parameter(graph, other, dims, len(shape))
        if found is not None:
            region.nodes[node] = None
            tail = replace(tail, last=node)
            tail = replace(tail, scale=found) if op == "Mul" else replace(tail, shift=found)
    return tail


def _next(graph: GraphView, tensor: Tensor, op: str) -> Node | None:
    """The one reader of `tensor` if it is an `op` of this body that nobody keeps."""
    node = graph.sole_consumer(tensor)
    if node is None or not graph.is_op(node, op) or not graph.is_live(node):
        return None
    if graph.keeps(tensor) or graph.keeps(node):
        return None
    return node


def _cast_back(graph: GraphView, region: Region, tail: Tail) -> Tail:
    """Start before the Cast to float if the result is cast back to the type of half precision."""
    up = graph.producer_op(tail.x, "Cast")
    down = _next(graph, tail.last.outputs[0], "Cast")
    if up is None or down is None or graph.dtype(tail.x) != onnx.TensorProto.FLOAT:
        return tail
    half = graph.dtype(up.inputs[0])
    if half not in _HALVES or graph.dtype(down.outputs[0]) != half:
        return tail
    region.nodes[down] = None
    return Tail(up.inputs[0], down)


def parameter(graph: GraphView, tensor: Tensor, dims: Sequence[Dim], rank: int) -> Parameter | None:
    """`tensor` as a scale or shift of the axes `dims`, the last of `rank`; None if it is none."""
    shape = graph.shape(tensor)
    if shape is None:
        return None
    if tuple(shape) == tuple(dims):
        return Parameter(tensor)
    constant = graph.constant(tensor)
    if constant is None or len(shape) > rank:
        return None
    size = [d for d in dims if isinstance(d, int)]
    if len(size) != len(dims) or math.prod(constant.shape[: -len(size)]) != 1:
        return None
    values = constant.values.reshape(constant.shape[-len(size) :])
    if any(have not in (1, want) for have, want in zip(values.shape[::-1], size[::-1], strict=False)):
        return None
    return Parameter(tensor, np.ascontiguousarray(np.broadcast_to(values, size)))


def scale_and_shift(
    graph: Rewriter, ctx: PassContext, tail: Tail, count: int, op: str
) -> tuple[Tensor, Tensor | None]:
    """The operator's parameters as tensors of the normalized shape; a scale of ones where there is none.

    Raises:
        RefusedRewrite: no ones can be made because the shape is not known, or they would be large; the
            normalized axes are empty, which runtimes refuse.
    """
    hint = tail.last.outputs[0].name
    if 0 in (graph.shape(tail.x) or ())[-count:]:
        raise RefusedRewrite(f"{op} needs something to normalize, and {tail.x.name} is empty")
    if tail.scale is not None:
        scale = _tensor(graph, ctx, tail.scale, f"{hint}_scale")
    else:
        shape = _static_dims(graph, tail.x, count)
        dtype = graph.dtype(tail.x)
        if shape is None or dtype is None:
            raise RefusedRewrite(f"{op} needs a scale, and the shape of {tail.x.name} is not known")
        ones = np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(dtype))
        scale = _tensor(graph, ctx, Parameter(tail.x, ones), f"{hint}_scale")
    shift = None if tail.shift is None else _tensor(graph, ctx, tail.shift, f"{hint}_bias")
    return scale, shift


def _static_dims(graph: GraphView, x: Tensor, count: int) -> tuple[int, ...] | None:
    shape = graph.shape(x)
    if shape is None or len(shape) < count:
        return None
    dims = [d for d in shape[len(shape) - count :] if isinstance(d, int)]
    return tuple(dims) if len(dims) == count else None


def _tensor(graph: Rewriter, ctx: PassContext, found: Parameter, hint: str) -> Tensor:
    if found.values is None:
        return found.tensor
    if found.values.nbytes > ctx.limits.growth_bytes:
        raise RefusedRewrite(f"its parameters would add {found.values.nbytes} bytes to the model")
    return graph.new_constant(hint, found.values)
