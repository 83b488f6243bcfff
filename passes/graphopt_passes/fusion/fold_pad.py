"""Fold Pad into the padding of the convolution or pooling behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx

from graphopt.passkit import GraphView, Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.fusion._operands import NUMPY_BROADCASTING, absorbed, attribute

_PADS_BY_INPUT = 11
_PADS_BY_AXES = 18


@dataclass(frozen=True)
class Padding:
    """A constant Pad of the spatial axes.

    Attributes:
        before, after: elements added on each spatial axis.
        value: what they are.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float


@dataclass(frozen=True)
class FoldPad(NodePass):
    """Conv(Pad(x, p), w, pads=q) = Conv(x, w, pads=p+q), where both pad with the same value.

    What an operator pads with is its own affair: Conv with zeros, ConvInteger with its zero point,
    AveragePool with zeros if it counts them (count_include_pad), MaxPool with the least number there
    is. So a Pad of zeros never goes into a MaxPool, and goes into an AveragePool that does not count its
    padding only if that has none: it then counts it.

    Refuses when: Pad's output has another reader or is a graph output; its pads or value are not constant,
    negative, or on the batch or channel axis; its mode is not constant; its value differs from the
    operator's; the operator pads automatically (SAME), a pool rounds up (ceil_mode), is dilated, returns
    indices, or would have padding as large as its window.
    """

    name: ClassVar[str] = "fold-pad"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    ops: ClassVar[tuple[str, ...]] = ("Conv", "ConvInteger", "AveragePool", "MaxPool")

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Fold the Pad that `node` reads."""
        pad = absorbed(graph, node, graph.input(node, 0), "Pad")
        if pad is None:
            return
        padding = read_pad(graph, pad, _rank(graph, node, pad))
        before, after = own_pads(graph, node, len(padding.before))
        extra: dict[str, Any] = {}
        if node.op in ("Conv", "ConvInteger"):
            self._check_conv(graph, node, padding)
        elif node.op == "AveragePool":
            self._check_pool(graph, node, padding, before, after)
            extra = self._count_padding(graph, node, padding, before, after)
        else:
            self._check_pool(graph, node, padding, before, after)
            self._check_max(graph, node, padding)
        pads = [p + q for p, q in zip(before + after, padding.before + padding.after, strict=True)]
        attrs = {k: v for k, v in node.attrs.items() if k != "auto_pad"} | {"pads": pads} | extra
        with graph.site(node, f"Pad folded into {node.op}"):
            graph.replace(node.outputs[0], node.op, [pad.inputs[0], *node.inputs[1:]], attrs=attrs)

    @staticmethod
    def _check_conv(graph: GraphView, node: Node, padding: Padding) -> None:
        own: float = 0.0
        if node.op == "ConvInteger":
            point = graph.input(node, 2)
            found = 0 if point is None else graph.scalar(point)
            if found is None:
                raise RefusedRewrite("the zero point of ConvInteger is not a constant number")
            own = found
        if padding.value != own:
            raise RefusedRewrite(f"Pad pads with {padding.value:g} and {node.op} with {own:g}")

    @staticmethod
    def _check_pool(
        graph: GraphView, node: Node, padding: Padding, before: Sequence[int], after: Sequence[int]
    ) -> None:
        if attribute(graph, node, "ceil_mode"):
            raise RefusedRewrite(f"{node.op} rounds its output size up (ceil_mode)")
        if any(d != 1 for d in attribute(graph, node, "dilations") or ()):
            raise RefusedRewrite(f"{node.op} is dilated")
        kernel = attribute(graph, node, "kernel_shape")
        sizes = [*before, *after], [*padding.before, *padding.after]
        if any(p + q >= k for p, q, k in zip(*sizes, [*kernel, *kernel], strict=True)):
            raise RefusedRewrite(f"the padding would be as large as the window of {node.op}")

    @staticmethod
    def _count_padding(
        graph: GraphView, node: Node, padding: Padding, before: Sequence[int], after: Sequence[int]
    ) -> dict[str, Any]:
        """Attributes with which AveragePool counts what Pad added, as it did when that was data."""
        if padding.value != 0.0:
            raise RefusedRewrite(f"Pad pads with {padding.value:g} and AveragePool with 0")
        if attribute(graph, node, "count_include_pad"):
            return {}
        if any(before) or any(after):
            raise RefusedRewrite("AveragePool counts the padding of Pad and not its own")
        if graph.opset < NUMPY_BROADCASTING:
            raise RefusedRewrite("AveragePool cannot count its padding before opset 7")
        return {"count_include_pad": 1}

    @staticmethod
    def _check_max(graph: GraphView, node: Node, padding: Padding) -> None:
        if graph.output(node, 1) is not None:
            raise RefusedRewrite("MaxPool returns indices, which count the padding")
        dtype = graph.dtype(node.inputs[0])
        least = -math.inf if dtype is None else _least(dtype)
        if padding.value != least:
            raise RefusedRewrite(f"Pad pads with {padding.value:g} and MaxPool with {least:g}")


def _least(dtype: int) -> float:
    """What MaxPool pads with."""
    np_dtype = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    return float(np.iinfo(np_dtype).min) if np_dtype.kind in "iu" else -math.inf


def _rank(graph: GraphView, node: Node, pad: Node) -> int:
    """Rank of the operator's input: from its weight, its window, or what is known.

    Raises:
        RefusedRewrite: nothing tells.
    """
    if node.op in ("AveragePool", "MaxPool"):
        return len(attribute(graph, node, "kernel_shape") or ()) + 2
    rank = graph.rank(node.inputs[1])
    rank = graph.rank(pad.inputs[0]) if rank is None else rank
    if rank is None:
        raise RefusedRewrite(f"the rank of {pad.inputs[0].name} is not known")
    return rank


def own_pads(graph: GraphView, node: Node, spatial: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The explicit padding of a Conv or pool: before and after each spatial axis.

    Raises:
        RefusedRewrite: it depends on the input's size (auto_pad SAME), or is malformed.
    """
    mode = attribute(graph, node, "auto_pad")
    if mode not in (None, "NOTSET", "VALID"):
        raise RefusedRewrite(f"{node.op} pads automatically ({mode})")
    pads = [] if mode == "VALID" else list(attribute(graph, node, "pads") or ())
    pads = [int(p) for p in pads] or [0] * (2 * spatial)
    if len(pads) != 2 * spatial:
        raise RefusedRewrite(f"{node.op} has {len(pads)} pads for {spatial} axes")
    return tuple(pads[:spatial]), tuple(pads[spatial:])


def read_pad(graph: GraphView, pad: Node, rank: int) -> Padding:
    """Read a Pad of any opset in front of an operator on `rank` dims, the first two of which are not spatial.

    Raises:
        RefusedRewrite: it does something else than to add a constant around the spatial axes.
    """
    mode = attribute(graph, pad, "mode")
    if mode not in (None, "constant"):
        raise RefusedRewrite(f"Pad has mode {mode}")
    pads, value = _pads_and_value(graph, pad)
    axes = list(range(rank))
    named = graph.input(pad, 3) if graph.opset >= _PADS_BY_AXES else None
    if named is not None:
        listed = graph.ints(named)
        if listed is None:
            raise RefusedRewrite(f"the axes {named.name} of Pad are not constant")
        axes = [a + rank if a < 0 else a for a in listed]
    if len(pads) != 2 * len(axes) or len(set(axes)) != len(axes) or any(not 0 <= a < rank for a in axes):
        raise RefusedRewrite(f"Pad has {len(pads)} pads for {len(axes)} axes")
    before, after = [0] * rank, [0] * rank
    for axis, low, high in zip(axes, pads, pads[len(axes) :], strict=False):
        before[axis], after[axis] = low, high
    if min(before + after) < 0:
        raise RefusedRewrite("Pad crops (negative pads)")
    if any(before[:2]) or any(after[:2]):
        raise RefusedRewrite("Pad pads the batch or channel axis")
    return Padding(tuple(before[2:]), tuple(after[2:]), value)


def _pads_and_value(graph: GraphView, pad: Node) -> tuple[list[int], float]:
    if graph.opset < _PADS_BY_INPUT:
        pads = attribute(graph, pad, "pads")
        if pads is None:
            raise RefusedRewrite("Pad has the form of opset 1")
        return [int(p) for p in pads], float(attribute(graph, pad, "value") or 0.0)
    tensor, constant = graph.input(pad, 1), graph.input(pad, 2)
    listed = graph.ints(tensor)
    if listed is None:
        raise RefusedRewrite(f"the pads {tensor.name if tensor else ''} of Pad are not constant")
    if constant is None:
        return listed, 0.0
    value = graph.scalar(constant)
    if not isinstance(value, int | float):
        raise RefusedRewrite(f"the value {constant.name} of Pad is not constant")
    return listed, value
