"""Nodes that compute the same thing from the same tensors become one."""

from __future__ import annotations

import struct
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

from graphopt.passkit import (
    COMMUTATIVE_OPS,
    RANDOM_OPS,
    AttributeRef,
    Constant,
    GraphView,
    Node,
    Numerics,
    Pass,
    PassContext,
    RefusedRewrite,
    Rewriter,
)

# Operators of these domains are functions of their inputs, but for RANDOM_OPS and training modes. Nothing
# is known of custom operators.
PURE_DOMAINS = frozenset({"", "ai.onnx.ml"})
# Tensor attributes up to this size are compared by content, larger ones by identity.
SMALL_BYTES = 4096
_FLOATS = frozenset({1, 10, 11, 16})  # float32, float16, float64, bfloat16


def is_pure(node: Node, graph: GraphView) -> bool:
    """Whether two such nodes with equal inputs and attributes always give bitwise equal outputs."""
    domain = node.domain or ""
    if domain not in PURE_DOMAINS or not graph.is_op(node, node.op, domain=domain):
        return False
    if node.op in RANDOM_OPS or any(True for _ in node.bodies()):
        return False
    return node.op != "Dropout" or not may_train(node, graph)


def may_train(node: Node, graph: GraphView) -> bool:
    """Whether a Dropout may drop anything."""
    if graph.opset < 7:
        return not graph.attr(node, "is_test")
    mode = graph.input(node, 2)
    return mode is not None and graph.scalar(mode) is not False


def _attribute_key(value: Any) -> Hashable:
    """A key that is equal for attributes of equal value only; floats count bit by bit."""
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, Constant):
        if value.nbytes > SMALL_BYTES:
            return id(value)
        array = value.values
        if array.dtype.hasobject:
            return (str, array.shape, tuple(array.reshape(-1).tolist()))
        return (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
    if isinstance(value, list | tuple):
        return (type(value[0]) if value else None, tuple(_attribute_key(v) for v in value))
    if isinstance(value, AttributeRef):
        return ("ref", value.name)
    if isinstance(value, int | str | bytes):
        return (type(value), value)
    return id(value)


def _commutes(node: Node, graph: GraphView) -> bool:
    """Whether the operands may be swapped bit for bit: not floats, whose NaNs remember the order."""
    if node.op not in COMMUTATIVE_OPS or len(node.inputs) != 2:
        return False
    dtype = graph.dtype(node.inputs[0])
    return dtype is not None and (dtype not in _FLOATS or node.op == "Equal")


def value_number(node: Node, graph: GraphView) -> Hashable:
    """Equal for nodes that compute the same: operator, attributes, inputs with their places, outputs.

    An omitted input keeps its place, so Clip(x, '', c) is not Clip(x, c, '').
    """
    inputs = [id(t) if t.name else 0 for t in node.inputs]
    while inputs and not inputs[-1]:
        inputs.pop()
    if _commutes(node, graph):
        inputs.sort()
    attrs = tuple((name, _attribute_key(node.attrs[name])) for name in sorted(node.attrs))
    outputs = tuple(bool(t.name) for t in node.outputs)
    return (node.domain or "", node.op, node.overload, attrs, tuple(inputs), outputs)


@dataclass(frozen=True)
class Cse(Pass):
    """Common subexpressions: nodes that compute the same thing from the same tensors become one.

    The first in topological order stays. When both are outputs of the body, the second becomes an
    Identity of the first, so that each output keeps its name; a Constant stays what it is.

    Left alone: random operators and training modes, operators that hold bodies, custom operators and
    calls of local functions. Operands are taken to commute only where that is exact to the last bit.
    """

    name: ClassVar[str] = "cse"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Number the values of the body in one sweep."""
        first: dict[Hashable, Node] = {}
        for node in graph.nodes():
            if not graph.is_live(node) or not is_pure(node, graph):
                continue
            key = value_number(node, graph)
            known = first.get(key)
            if known is None or not graph.is_live(known):
                # None so far, or it went when its last reader was merged with another.
                first[key] = node
            elif not graph.keeps(node):
                self._merge(node, known, graph)

    def _merge(self, node: Node, known: Node, graph: Rewriter) -> None:
        # A value of which both names are returned survives under both.
        both = [
            (old, new)
            for old, new in zip(node.outputs, known.outputs, strict=True)
            if old.name and graph.is_output(old) and (graph.is_output(new) or graph.keeps(new))
        ]
        plain = node.op in ("Identity", "Constant")  # an Identity in its place would gain nothing
        if both and (plain or len(node.outputs) > 1 or not graph.has_op("Identity")):
            if not plain:
                graph.refuse(node, f"{both[0][0].name} and {both[0][1].name} are both outputs")
            return
        with graph.site(node, f"computes the same as {known.name or known.outputs[0].name}"):
            if both:
                old, new = both[0]
                for use in graph.uses(old):
                    graph.set_input(use.node, use.slot, new)
                graph.replace(old, "Identity", [new])
                return
            for old, new in zip(list(node.outputs), list(known.outputs), strict=True):
                if old.name and graph.is_read(old):
                    graph.bypass(old, new)
            if graph.is_live(node) and any(t.name and graph.is_read(t) for t in node.outputs):
                raise RefusedRewrite("an output of it could not be redirected")
