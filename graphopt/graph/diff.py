"""What differs between two models: interface, versions, metadata, initializers, nodes.

Values keep their names through a rewrite far more often than nodes do, so nodes are paired by the values
that they compute: a node that computes `y` in both models is the same node, changed perhaps; one whose
values the other model does not have was removed or added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphopt.graph.text import (
    attribute_text,
    name_of,
    node_text,
    op_text,
    opsets_text,
    type_text,
    value_text,
)
from graphopt.ir import Body, Constant, Graph, Node

if TYPE_CHECKING:
    from graphopt.model import Model

SCHEMA = "graphopt.diff/1"

Kind = Literal["removed", "added", "changed"]


@dataclass(frozen=True)
class NodeChange:
    """One node that only one of the models has, or that differs.

    Attributes:
        kind: what became of it.
        body: "main", "function domain::name", or the path of the node and attribute that hold the body.
        op: op type, of the second model for changed nodes.
        name: node name.
        text: the node, as `node_text` writes it.
        changes: for a changed node, what differs, one phrase each.
        made_by: the pass that made it, as the second model says.
    """

    kind: Kind
    body: str
    op: str
    name: str
    text: str
    changes: tuple[str, ...] = ()
    made_by: str = ""


@dataclass(frozen=True)
class ValueChange:
    """An initializer that only one of the models has, or that differs."""

    kind: Kind
    body: str
    name: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class ModelDiff:
    """All differences between two models; empty when they are the same.

    Attributes:
        interface: inputs and outputs, one phrase per difference.
        properties: opsets, IR version, producer, metadata, functions: one phrase per difference.
        initializers: initializers of all bodies.
        nodes: nodes of all bodies.
        ops: op type -> how many before and after, where that differs.
    """

    interface: tuple[str, ...]
    properties: tuple[str, ...]
    initializers: tuple[ValueChange, ...]
    nodes: tuple[NodeChange, ...]
    ops: Mapping[str, tuple[int, int]]

    def __bool__(self) -> bool:
        return bool(self.interface or self.properties or self.initializers or self.nodes)


def diff_models(a: Model, b: Model) -> ModelDiff:
    """What changed from `a` to `b`. Initializers of one name are compared by value, one at a time."""
    bodies_a, bodies_b = labelled_bodies(a), labelled_bodies(b)
    values: list[ValueChange] = []
    nodes: list[NodeChange] = []
    properties = list(_properties(a, b))
    for label in dict.fromkeys([*bodies_a, *bodies_b]):
        body_a, body_b = bodies_a.get(label), bodies_b.get(label)
        if body_a is None or body_b is None:
            change = "removed" if body_b is None else "added"
            properties.append(f"{label}: {change}")
        values += _initializers(label, body_a, body_b)
        nodes += _nodes(label, body_a, body_b)
    counts_a, counts_b = _ops(bodies_a), _ops(bodies_b)
    ops = {
        op: (counts_a.get(op, 0), counts_b.get(op, 0))
        for op in sorted({*counts_a, *counts_b})
        if counts_a.get(op, 0) != counts_b.get(op, 0)
    }
    return ModelDiff(tuple(_interface(a.graph, b.graph)), tuple(properties), tuple(values), tuple(nodes), ops)


def labelled_bodies(model: Model) -> dict[str, Body]:
    """Every body by a label that survives rewriting: by its place, not by its position."""
    found: dict[str, Body] = {"main": model.graph}
    stack: list[tuple[str, Body]] = [("main", model.graph)]
    for function in model.graph.functions:
        label = f"function {function.domain}::{function.name}" + (
            f":{function.overload}" if function.overload else ""
        )
        found[label] = function
        stack.append((label, function))
    while stack:
        label, body = stack.pop()
        prefix = "" if label == "main" else f"{label}/"
        for node in body.nodes:
            for key, value in node.attrs.items():
                inner = value if isinstance(value, list) else [value]
                for i, graph in enumerate(inner):
                    if isinstance(graph, Graph):
                        place = f"{prefix}{node.name or _key(node)}/{key}" + (f"[{i}]" if i else "")
                        found[place] = graph
                        stack.append((place, graph))
    return found


def _key(node: Node) -> str:
    """The first value that the node computes."""
    return next((t.name for t in node.outputs if t.name), "")


def _interface(a: Graph, b: Graph) -> Iterator[str]:
    for what, ours, theirs in (("input", a.inputs, b.inputs), ("output", a.outputs, b.outputs)):
        before = {t.name: t for t in ours}
        after = {t.name: t for t in theirs}
        for name in dict.fromkeys([*before, *after]):
            if name not in after:
                yield f"{what} removed: {value_text(before[name])}"
            elif name not in before:
                yield f"{what} added: {value_text(after[name])}"
            elif type_text(before[name]) != type_text(after[name]):
                yield f"{what} {name}: {type_text(before[name])} -> {type_text(after[name])}"
        common = [name for name in before if name in after]
        if common != [name for name in after if name in before]:
            yield f"{what}s: their order changed"


def _properties(a: Model, b: Model) -> Iterator[str]:
    if dict(a.opset_imports) != dict(b.opset_imports):
        yield f"opsets: {opsets_text(a.opset_imports)} -> {opsets_text(b.opset_imports)}"
    if a.ir_version != b.ir_version:
        yield f"IR version: {a.ir_version} -> {b.ir_version}"
    before, after = _metadata(a), _metadata(b)
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            yield f"{key}: {before.get(key, '(none)')!r} -> {after.get(key, '(none)')!r}"


def _metadata(model: Model) -> dict[str, str]:
    """What a model says about itself."""
    proto = model.origin
    fields = ("producer_name", "producer_version", "domain", "model_version", "doc_string")
    found = {key: str(getattr(proto, key)) for key in fields if proto.HasField(key)}
    return found | {f"metadata {entry.key!r}": entry.value for entry in proto.metadata_props}


def _initializers(label: str, a: Body | None, b: Body | None) -> Iterator[ValueChange]:
    before = {t.name: t for t in _constants(a)}
    after = {t.name: t for t in _constants(b)}
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if new is None and old is not None:
            yield ValueChange("removed", label, name, type_text(old))
        elif old is None and new is not None:
            yield ValueChange("added", label, name, "", type_text(new))
        elif old is not None and new is not None and (moved := _value_change(old, new)):
            yield ValueChange("changed", label, name, *moved)


def _constants(body: Body | None) -> list[Constant]:
    return [] if body is None else [*body.initializers, *body.defaults.values()]


def _value_change(old: Constant, new: Constant) -> tuple[str, str] | None:
    """The two values in words when they differ; read one pair at a time."""
    if type_text(old) != type_text(new):
        return type_text(old), type_text(new)
    x, y = np.asarray(old.values), np.asarray(new.values)
    if x.tobytes() == y.tobytes() if x.dtype != object else bool(np.array_equal(x, y)):
        return None
    if x.dtype == object:
        return type_text(old), "other text"
    delta = np.abs(x.astype(np.float64) - y.astype(np.float64))
    return type_text(old), f"other values, by at most {np.max(delta, initial=0):.3g}"


def _nodes(label: str, a: Body | None, b: Body | None) -> Iterator[NodeChange]:
    for node, new, changes in pair_nodes(a, b):
        if node is not None and new is None:
            yield NodeChange("removed", label, op_text(node), node.name, node_text(node))
        elif node is not None and new is not None and changes:
            yield NodeChange("changed", label, op_text(new), new.name, node_text(new), changes, made_by(new))
        elif node is None and new is not None:
            yield NodeChange("added", label, op_text(new), new.name, node_text(new), (), made_by(new))


def pair_nodes(a: Body | None, b: Body | None) -> Iterator[tuple[Node | None, Node | None, tuple[str, ...]]]:
    """The nodes of two bodies side by side, and what differs between the two of a pair.

    First those of `a` in their order, then those that only `b` has.
    """
    before = {_key(node): node for node in ([] if a is None else a.nodes)}
    after = {_key(node): node for node in ([] if b is None else b.nodes)}
    for key, node in before.items():
        new = after.get(key)
        yield node, new, () if new is None else tuple(_node_changes(node, new))
    for key, node in after.items():
        if key not in before:
            yield None, node, ()


def made_by(node: Node) -> str:
    """The pass that made the node, in this process or (as the file says) in an earlier one."""
    if node.made_by:
        return node.made_by
    doc = node.doc_string
    return node.metadata.get("graphopt.pass", "") or (
        doc.removeprefix("graphopt: ") if doc.startswith("graphopt: ") else ""
    )


def _node_changes(a: Node, b: Node) -> Iterator[str]:
    if op_text(a) != op_text(b):
        yield f"{op_text(a)} -> {op_text(b)}"
    for what, old, new in (("input", a.inputs, b.inputs), ("output", a.outputs, b.outputs)):
        names_a, names_b = [name_of(t) for t in old], [name_of(t) for t in new]
        if len(names_a) == len(names_b):
            for i, (x, y) in enumerate(zip(names_a, names_b, strict=True)):
                if x != y:
                    yield f"{what} {i}: {x} -> {y}"
        elif names_a != names_b:
            yield f"{what}s: {', '.join(names_a)} -> {', '.join(names_b)}"
    for key in dict.fromkeys([*a.attrs, *b.attrs]):
        before, after = _attribute(a, key), _attribute(b, key)
        if before != after:
            yield f"{key}: {before} -> {after}"
        elif _payload(a.attrs[key]) != _payload(b.attrs[key]):
            yield f"{key}: {before} with other values"


def _attribute(node: Node, key: str) -> str:
    """An attribute in words; bodies are compared on their own."""
    return (attribute_text(node.attrs[key]) or "body") if key in node.attrs else "(none)"


def _payload(value: Any) -> bytes:
    """The values of a tensor attribute, which its text may abbreviate."""
    return np.asarray(value.values).tobytes() if isinstance(value, Constant) else b""


def _ops(bodies: Mapping[str, Body]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for body in bodies.values():
        for node in body.nodes:
            counts[op_text(node)] = counts.get(op_text(node), 0) + 1
    return counts
