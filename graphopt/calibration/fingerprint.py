"""What identifies a model: its structure and weights, in a file; what a session opens, in a cache."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from graphopt.io.session_source import SessionSource
from graphopt.io.weights import to_raw
from graphopt.model import Model


@dataclass(frozen=True)
class Fingerprint:
    """Equal for models that compute the same values under the same tensor names.

    Names of the file, of the graph and of nodes, documentation, metadata and declared shapes of intermediate
    tensors do not count; neither does the order of nodes.

    Attributes:
        nodes: number of nodes, bodies and functions included.
        ops: how many of each operator type.
        opsets: version of each operator set.
        structure: hash of all nodes, with the tensors that they read and write, and of the interface.
        weights: hash of all initializers, every byte of them.
    """

    nodes: int
    ops: Mapping[str, int]
    opsets: Mapping[str, int]
    structure: str
    weights: str

    @classmethod
    def of(cls, model: Model) -> Fingerprint:
        """The fingerprint of a model; reads its weights, and keeps none of them."""
        proto = model.skeleton()
        ops: Counter[str] = Counter()
        digests = [_node(node, ops) for node in proto.graph.node]
        for function in proto.functions:
            inner = sorted(_node(node, ops) for node in function.node)
            head = f"{function.domain}\0{function.name}\0{list(function.input)}\0{list(function.output)}"
            digests.append(_hash(head.encode(), *(d.encode() for d in inner)))
        interface = [
            f"{kind}\0{value.name}\0{_type(value)}".encode()
            for kind, values in (("in", proto.graph.input), ("out", proto.graph.output))
            for value in values
        ]
        structure = _hash(*interface, *(d.encode() for d in sorted(digests)))
        opsets = {domain or "ai.onnx": version for domain, version in sorted(model.opset_imports.items())}
        return cls(sum(ops.values()), dict(sorted(ops.items())), opsets, structure, _weights(model))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fingerprint:
        """The inverse of `vars`.

        Raises:
            KeyError, TypeError, ValueError: this is no fingerprint.
        """
        ops, opsets = ({str(k): int(v) for k, v in data[field].items()} for field in ("ops", "opsets"))
        return cls(int(data["nodes"]), ops, opsets, str(data["structure"]), str(data["weights"]))

    def differences(self, other: Fingerprint) -> list[str]:
        """In words, how `other` differs from this; empty when it does not."""
        found = []
        if other.opsets != self.opsets:
            found.append(f"operator sets {_counts(self.opsets)} became {_counts(other.opsets)}")
        if other.nodes != self.nodes:
            found.append(f"{self.nodes} nodes became {other.nodes}")
        changed = {op: (self.ops.get(op, 0), other.ops.get(op, 0)) for op in {**self.ops, **other.ops}}
        changed = {op: (a, b) for op, (a, b) in sorted(changed.items()) if a != b}
        if changed:
            shown = [f"{op} {a} -> {b}" for op, (a, b) in list(changed.items())[:6]]
            found.append(", ".join(shown) + (", ..." if len(changed) > 6 else ""))
        if not found and other.structure != self.structure:
            found.append("nodes of the same types are connected, named or set up differently")
        if other.weights != self.weights:
            found.append("the weights differ")
        return found


def _counts(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _node(node: onnx.NodeProto, ops: Counter[str]) -> str:
    """A hash of a node and of the bodies in it."""
    domain = node.domain if node.domain != "ai.onnx" else ""
    ops[f"{domain}::{node.op_type}" if domain else node.op_type] += 1
    parts = [f"{domain}\0{node.op_type}\0{list(node.input)}\0{list(node.output)}".encode()]
    for attribute in sorted(node.attribute, key=lambda a: a.name):
        if attribute.type == onnx.AttributeProto.GRAPH:
            parts += [attribute.name.encode(), _body(attribute.g, ops).encode()]
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            parts += [attribute.name.encode(), *(_body(g, ops).encode() for g in attribute.graphs)]
        else:
            copy = onnx.AttributeProto()
            copy.CopyFrom(attribute)
            copy.ClearField("doc_string")
            if copy.HasField("t"):
                copy.t.ClearField("name")
            parts.append(copy.SerializeToString(deterministic=True))
    return _hash(*parts)


def _body(graph: onnx.GraphProto, ops: Counter[str]) -> str:
    ends = f"{[v.name for v in graph.input]}\0{[v.name for v in graph.output]}"
    return _hash(ends.encode(), *(d.encode() for d in sorted(_node(node, ops) for node in graph.node)))


def _type(value: onnx.ValueInfoProto) -> str:
    if value.type.WhichOneof("value") != "tensor_type":
        return str(value.type.WhichOneof("value"))
    dims = [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
    return f"{value.type.tensor_type.elem_type}{dims}"


def _weights(model: Model) -> str:
    digests = []
    for body in model.bodies():
        for constant in (*body.initializers, *body.defaults.values()):
            digests.append(_weight(model, constant.name, constant))
        for node in body.nodes:
            for name, value in node.attrs.items():
                if isinstance(value, gs.Constant):
                    digests.append(_weight(model, f"{node.outputs[0].name}\0{name}", value))
    model.release()
    return _hash(*(d.encode() for d in sorted(digests)))


def _weight(model: Model, name: str, constant: gs.Constant) -> str:
    model.lend(constant.nbytes)
    values: Any = constant._values
    array = values if hasattr(values, "reshape") else values.load()
    head = f"{name}\0{array.dtype}\0{array.shape}".encode()
    if array.dtype.hasobject:
        return _hash(head, *(str(s).encode() for s in array.reshape(-1).tolist()))
    digest = hashlib.sha256(head)
    digest.update(to_raw(array)[1])
    return digest.hexdigest()


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def session_hash(source: SessionSource) -> str:
    """A hash of everything that a session depends on, for caches within one process.

    Weights in files of the user count by path, size and time of change; those that a pass made, by content.
    """
    if source.folder is None:
        return hashlib.sha256(source.proto).hexdigest()
    proto = onnx.ModelProto.FromString(source.proto)
    spilled = None if source.spill is None else source.spill.path
    files: set[Path] = set()
    for tensor in _tensors(proto.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                files.add(source.folder / entry.value)
                if source.folder / entry.value == spilled:
                    entry.value = ""  # the temporary file has another name every time
    digest = hashlib.sha256(proto.SerializeToString(deterministic=True))
    for path in sorted(files):
        if path == spilled:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            status = path.stat()
            digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All initializers and constants of a graph and of the bodies in it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _tensors(body)
