"""Which nodes of a body go to half precision, and for what reason the others stay.

Not by a list of operators: by what their constants and, where there is data, their values look like.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import onnx

from graphopt.passkit import GraphView, Node, PassContext, RefusedRewrite, Tensor, UserError
from graphopt.quantkit import Watch
from graphopt_passes.quantization._half_types import (
    BOUNDED,
    HEAVY,
    HalfSlots,
    half_slots,
    has_kernel,
    reaches_softmax_only,
)
from graphopt_passes.quantization._precision import FLOAT, HalfFormat, Rounding, rounding_of

_FLOATS: Final = frozenset(
    int(t)
    for t in (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.DOUBLE,
    )
)
_COUNTS: Final = frozenset(
    int(t)
    for t in (
        onnx.TensorProto.INT32,
        onnx.TensorProto.INT64,
        onnx.TensorProto.UINT32,
        onnx.TensorProto.UINT64,
    )
)
# Constants of as many elements are learned rather than written down.
_LEARNED: Final = 1 << 10
# Max broadcasts since this opset.
_MAX_BROADCASTS: Final = 8
# Squares of their inputs are summed before a root or a logarithm makes them small again.
_SQUARES: Final = frozenset({"LpNormalization", "ReduceL2"})


@dataclass
class HalfPlan:
    """What to do with the nodes of one body.

    Attributes:
        nodes: those that go to half precision, in topological order, with their slots.
        clamped: of those, the slots whose very negative values are raised to what fits: all that is
            computed from them is exp(score) / sum, in which they are zeros.
        kept: why other candidates stay, in topological order.
    """

    nodes: dict[Node, HalfSlots] = field(default_factory=dict)
    clamped: dict[Node, tuple[int, ...]] = field(default_factory=dict)
    kept: dict[Node, str] = field(default_factory=dict)


def match_names(graph: GraphView, globs: Iterable[str]) -> set[Node]:
    """The nodes whose name, operator or outputs match one of `globs`."""
    return {
        node
        for node in graph.nodes()
        for name in (node.name, node.op, *(t.name for t in node.outputs))
        for glob in globs
        if name and fnmatch.fnmatchcase(name, glob)
    }


def plan_body(
    graph: GraphView, ctx: PassContext, form: HalfFormat, keep: Iterable[str], headroom: float
) -> HalfPlan:
    """Decide for every node of a body, as far as looking at values tells.

    Args:
        graph: the body.
        ctx: for the data, if there is any.
        form: the format.
        keep: globs over names of nodes and outputs, and operator types, to leave in float32.
        headroom: how many times larger than seen values may become at run time.
    """
    plan = HalfPlan()
    slots = {n: found for n in graph.nodes() if (found := half_slots(graph, n, form)) is not None}
    chosen = match_names(graph, keep)
    known = _Known(graph, form)
    if ctx.has_data:
        known.observe(ctx, slots)
    exact = _exact_numbers(graph)
    wide = set() if ctx.has_data else _wide_tensors(graph, known)
    for node, found in slots.items():
        reason = ""
        if not any(graph.is_read(node.outputs[s]) for s in found.outputs):
            continue
        clamped = _clamped(graph, node, found, known, wide)
        if graph.keeps(node) or any(graph.keeps(t) for t in node.outputs):
            reason = "it is kept"
        elif node in chosen:
            reason = "asked for"
        elif not has_kernel(graph, node, form, ctx.target):
            reason = f"{ctx.target.name} has no kernel of {node.op} for {form.name}"
        elif any(node.outputs[s] in exact for s in found.outputs):
            reason = f"it counts: {form.name} has no integers beyond {2 ** (11 if form.largest < 1e5 else 8)}"
        else:
            reason = _trouble(graph, node, found, known, wide, clamped, headroom, plan)
        if reason:
            plan.kept[node] = reason
        else:
            plan.nodes[node] = found
            if clamped:
                plan.clamped[node] = clamped
    _drop_idle(graph, plan)
    return plan


class _Known:
    """Statistics of the tensors of a body: of constants by looking, of others by observing."""

    def __init__(self, graph: GraphView, form: HalfFormat) -> None:
        self.graph, self.form = graph, form
        self._found: dict[Tensor, Rounding] = {}

    def observe(self, ctx: PassContext, slots: dict[Node, HalfSlots]) -> None:
        wanted: dict[Tensor, None] = {}
        for node, found in slots.items():
            wanted.update(dict.fromkeys(node.inputs[s] for s in found.inputs))
            wanted.update(dict.fromkeys(node.outputs[s] for s in found.outputs))
        tensors = [t for t in wanted if not self.graph.is_constant(t)]
        watches = [Watch(Rounding(self.form), student=(t,)) for t in tensors]
        try:
            self._found.update(zip(tensors, ctx.observe(self.graph, watches), strict=True))
        except (RefusedRewrite, UserError) as error:
            raise RefusedRewrite(f"its values cannot be observed: {error}") from error

    def of(self, tensor: Tensor) -> Rounding | None:
        found = self._found.get(tensor)
        if found is None:
            values = self.graph.array(tensor)
            if values is not None and self.graph.dtype(tensor) == FLOAT:
                found = self._found[tensor] = rounding_of(values, self.form)
        return found


def _trouble(
    graph: GraphView,
    node: Node,
    slots: HalfSlots,
    known: _Known,
    wide: set[Tensor],
    clamped: tuple[int, ...],
    headroom: float,
    plan: HalfPlan,
) -> str:
    epsilon = graph.attr(node, "epsilon")
    in_float32 = graph.attr(node, "stash_type") == FLOAT  # where epsilon is added
    if isinstance(epsilon, float) and 0 < epsilon < known.form.smallest and not in_float32:
        return f"epsilon {epsilon:g} is zero in {known.form.name}"
    below = graph.producer(node.inputs[0]) if graph.is_op(node, "Softmax") else None
    for slot in slots.inputs:
        tensor = node.inputs[slot]
        if tensor in wide:
            return f"{tensor.name} may be beyond {known.form.name}, and there is no data to tell"
        found = known.of(tensor)
        if found is None:
            continue
        fine = slot in clamped or (below is not None and below in plan.clamped)
        # Constants do not grow.
        reason = found.trouble(1.0 if graph.is_constant(tensor) else headroom, low_is_fine=fine)
        if (
            not reason
            and node.op in _SQUARES
            and max(found.high, -found.low) ** 2 * headroom > found.format.largest
        ):
            reason = f"squares of up to {max(found.high, -found.low):.3g} overflow {found.format.name}"
        if reason:
            return f"{tensor.name}: {reason}"
    for slot in slots.outputs:
        tensor = node.outputs[slot]
        found = known.of(tensor)
        reason = found.trouble(headroom, low_is_fine=bool(clamped)) if found is not None else ""
        if reason:
            return f"{tensor.name}: {reason}"
    return ""


def _clamped(
    graph: GraphView, node: Node, slots: HalfSlots, known: _Known, wide: set[Tensor]
) -> tuple[int, ...]:
    """Slots of an Add or Where into a Softmax that fill masked places with very negative numbers."""
    if not graph.is_op(node, "Add", "Where") or graph.opset < _MAX_BROADCASTS:
        return ()
    if reaches_softmax_only(graph, node.outputs[0]) is None:
        return ()
    return tuple(
        s
        for s in slots.inputs
        if (found := known.of(node.inputs[s])) is not None and found.too_low and node.inputs[s] not in wide
    )


def _exact_numbers(graph: GraphView) -> set[Tensor]:
    """Floats that are computed from 32- or 64-bit integers and constants alone: positions, counts, masks.

    Up to where a learned weight multiplies them: from there on they are features. (Rotary embeddings
    multiply positions by some dozens of frequencies.)
    """
    found: set[Tensor] = set()
    for node in graph.nodes():
        if not graph.is_op(node, node.op) or any(True for _ in node.bodies()):
            continue
        floats = [t for t in node.inputs if t.name and graph.dtype(t) in _FLOATS]
        if graph.is_op(node, "Cast"):
            derived = graph.dtype(node.inputs[0]) in _COUNTS
        elif graph.is_op(node, "Range"):
            derived = True
        else:
            constants = [c for t in floats if (c := graph.constant(t)) is not None]
            derived = any(t in found for t in floats) and all(
                t in found or graph.is_constant(t) for t in floats
            )
            derived &= node.op not in HEAVY or all(c.nbytes < 4 * _LEARNED for c in constants)
        if derived:
            found.update(t for t in node.outputs if t.name)
    return found


def _wide_tensors(graph: GraphView, known: _Known) -> set[Tensor]:
    """Without data: what is computed from constants that overflow, up to where it is bounded again."""
    found: set[Tensor] = set()
    for node in graph.nodes():
        if node.op in BOUNDED or any(True for _ in node.bodies()):
            continue
        for tensor in node.inputs:
            statistic = known.of(tensor) if tensor.name and graph.is_constant(tensor) else None
            if tensor in found or (statistic is not None and statistic.overflows):
                clampable = graph.is_op(node, "Add", "Where") and graph.is_constant(tensor)
                if clampable and reaches_softmax_only(graph, node.outputs[0]) is not None:
                    continue
                found.update(t for t in node.outputs if t.name and graph.dtype(t) == FLOAT)
    return found


def _drop_idle(graph: GraphView, plan: HalfPlan) -> None:
    """Leave out regions in which nothing gains from half precision: their casts would only cost."""
    leader: dict[Node, Node] = {node: node for node in plan.nodes}

    def find(node: Node) -> Node:
        while leader[node] is not node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    for node, slots in plan.nodes.items():
        for slot in slots.inputs:
            before: Any = graph.producer(node.inputs[slot])
            if before in leader:
                leader[find(node)] = find(before)
    busy = {find(node) for node in plan.nodes if is_busy(graph, node)}
    idle = [node for node in plan.nodes if find(node) not in busy]
    for node in idle:
        del plan.nodes[node]
        plan.clamped.pop(node, None)


def is_busy(graph: GraphView, node: Node) -> bool:
    """Whether half precision pays at `node`: it multiplies matrices, or reads from a large table."""
    if node.op in HEAVY:
        return True
    table = graph.constant(node.inputs[0]) if node.op == "Gather" else None
    return table is not None and table.nbytes >= 1 << 12
