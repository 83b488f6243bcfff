"""merge-slices: two Slices in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

import numpy as np

from graphopt.passkit import GraphView, Node, NodePass, Numerics, PassContext, RefusedRewrite, Rewriter
from graphopt_passes.cleanup.operands import absorbable, label, normalized, operand

# What the Slice operator's documentation recommends for "to the end", and what it means here.
_TO_THE_END: Final = 2**31 - 1
_END: Final = 2**63 - 1


class Range(NamedTuple):
    """start:end:step of one axis."""

    start: int
    end: int
    step: int = 1


@dataclass(frozen=True)
class MergeSlices(NodePass):
    """Slice(Slice(x, r), s) = Slice(x, r and s), on different axes or composed on the same one.

    On the same axis x[a:b:k][c:d:l] = x[a + k*c : min(b, a + k*d) : k*l] for bounds >= 0 and positive steps;
    bounds from the end are composed where the length of the axis is known or the other Slice leaves that
    end alone. Refuses bounds that are not constant, and an inner Slice with readers of another kind.
    """

    name: ClassVar[str] = "merge-slices"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    ops: ClassVar[tuple[str, ...]] = ("Slice",)

    def visit(self, node: Node, graph: Rewriter, ctx: PassContext) -> None:
        """Make one Slice of both."""
        inner = absorbable(graph, graph.input(node, 0), "Slice", siblings=True)
        source = None if inner is None else graph.input(inner, 0)
        if inner is None or source is None:
            return
        if graph.keeps(node):
            raise RefusedRewrite(f"{node.name} is kept")
        shape = graph.shape(source)
        rank = None if shape is None else len(shape)
        merged = _ranges(graph, inner, rank)
        for axis, outer in _ranges(graph, node, rank).items():
            if axis not in merged:
                merged[axis] = outer
                continue
            dim = None if shape is None else shape[axis]
            both = compose(merged[axis], outer, dim if isinstance(dim, int) else None)
            if both is None:
                raise RefusedRewrite(
                    f"its range on axis {axis} cannot be composed with that of {label(inner)}"
                )
            merged[axis] = both
        with graph.site(node, "Slice of a Slice"):
            _set_ranges(graph, node, merged)
            graph.set_input(node, 0, source)


def compose(first: Range, second: Range, dim: int | None) -> Range | None:
    """The range that takes what `second` takes of what `first` takes, if it can be written down.

    Args:
        first: applied first.
        second: applied to the result.
        dim: length of the axis, None if unknown.
    """
    if first.step < 1 or second.step < 1:
        return None
    if dim is not None:
        taken = range(dim)[first.start : first.end : first.step][second.start : second.end : second.step]
        return Range(taken.start, taken.stop, taken.step) if taken else Range(0, 0)
    if first.start < 0 or second.start < 0:
        return None
    start = first.start + first.step * second.start
    step = first.step * second.step
    if second.end < 0:
        # Counts from the end of what `first` left, which is the end of the axis if that cut nothing there.
        end = second.end if first.end == _END and first.step == 1 else None
    elif second.end == _END:
        end = first.end
    elif first.end >= 0:
        end = min(first.end, first.start + first.step * second.end)
    else:
        end = None
    if end is None or step > _TO_THE_END:
        return None
    return Range(min(start, _END), end, step)


def _ranges(graph: GraphView, node: Node, rank: int | None) -> dict[int, Range]:
    """What a Slice takes, by axis counted from the front."""
    starts, ends = operand(graph, node, "starts", 1, 10), operand(graph, node, "ends", 2, 10)
    if starts is None or ends is None:
        raise RefusedRewrite(f"{label(node)} has no bounds")
    axes = operand(graph, node, "axes", 3, 10)
    axes = normalized(list(range(len(starts))) if axes is None else axes, rank, node)
    steps = operand(graph, node, "steps", 4, 10) if graph.opset >= 10 else None
    steps = [1] * len(axes) if steps is None else steps
    ends = [_END if end >= _TO_THE_END else end for end in ends]
    return {a: Range(s, e, k) for a, s, e, k in zip(axes, starts, ends, steps, strict=True)}


def _set_ranges(graph: Rewriter, node: Node, ranges: dict[int, Range]) -> None:
    axes = sorted(ranges)
    columns = {
        "starts": [ranges[a].start for a in axes],
        "ends": [ranges[a].end for a in axes],
        "axes": axes,
        "steps": [ranges[a].step for a in axes],
    }
    if all(step == 1 for step in columns["steps"]):
        del columns["steps"]
    if graph.opset < 10:
        for name, values in columns.items():
            graph.set_attr(node, name, values)
        return
    hint = node.outputs[0].name
    constants = [graph.new_constant(f"{hint}/{k}", np.array(v, np.int64)) for k, v in columns.items()]
    graph.set_inputs(node, [node.inputs[0], *constants])
