"""A model as what is compared tensor by tensor: the values of every body, where they stand, who reads them.

Works on a copy in which no two tensors of different bodies share a name, since values are observed by name.
Bodies of local functions are looked into where the model is small enough to be inlined; in larger ones a call
is one node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import onnx.inliner

from graphopt import ir
from graphopt.graph.dataflow import reads
from graphopt.graph.diff import made_by
from graphopt.graph.facts import Facts
from graphopt.graph.shapes import infer
from graphopt.graph.text import attribute_text, op_text
from graphopt.io.session_source import SessionSource
from graphopt.io.weights import FileValues
from graphopt.ir import Constant, Node, Tensor
from graphopt.model import Model

_INLINED: Final = 512 << 20
# Of larger weights, so many blocks of so many bytes stand for the whole.
_BLOCKS: Final = 16
_BLOCK: Final = 4096
_SAMPLED: Final = _BLOCKS * (2 << 20)


@dataclass(frozen=True, eq=False)
class Place:
    """Where a tensor of a model comes from.

    Attributes:
        node: what computes it; for an input of a Loop's or Scan's body, the node that holds the body.
        slot: which of the node's outputs it is; which of the body's inputs.
        body: path of the body, "" for the main graph.
        depth: nodes on the longest path to it from an input.
        order: position in the order of execution.
        entry: it is an input of a body.
    """

    node: Node
    slot: int
    body: str
    depth: int
    order: int
    entry: bool = False


class Net:
    """The values of a model.

    Args:
        model: is not changed.

    Attributes:
        model: a copy whose tensors have unique names.
        values: everything that is computed, in order of execution; constants are left out.
        places: of each of these.
        inputs: what is fed, by name.
        outputs: the model's outputs, by name.
        readers: nodes that read a tensor, directly or in their bodies.
        label: the name that a tensor has in the file.
        bodies: of each body that a control-flow node holds: the node, and the attribute.
    """

    def __init__(self, model: Model) -> None:
        self.model = _copied(model)
        self.label: dict[Tensor, str] = {}
        self._unique_names()
        self.inputs: dict[str, Tensor] = {t.name: t for t in self.model.graph.inputs}
        self.outputs: dict[str, Tensor] = {t.name: t for t in self.model.graph.outputs}
        self.values: list[Tensor] = []
        self.places: dict[Tensor, Place] = {}
        self.readers: dict[Tensor, list[Node]] = {}
        self.nodes: list[Node] = []
        self.body_of: dict[Node, str] = {}
        self.bodies: dict[str, tuple[Node, ir.Body]] = {}
        self._constants: set[Tensor] = set()
        self._keys: dict[Node, str] = {}
        self._fingerprints: dict[Constant, str] = {}
        self._walk(self.model.graph, "", 0)

    @cached_property
    def facts(self) -> Facts:
        """What is known about shapes and types."""
        return infer(self.model)

    @cached_property
    def source(self) -> SessionSource:
        """What sessions are opened from; its names are the unique ones."""
        return self.model.session_source()

    def _unique_names(self) -> None:
        seen: set[str] = set()
        bodies = [b for b in self.model.bodies() if not isinstance(b, ir.Function)]
        for body in reversed(bodies):  # the main graph first: its names stay
            own = (*body.inputs, *body.initializers, *(t for n in body.nodes for t in n.outputs))
            for tensor in own:
                if not tensor.name or tensor in self.label:
                    continue
                self.label[tensor] = tensor.name
                if tensor.name in seen:
                    name, n = f"{tensor.name}@", 2
                    while f"{name}{n}" in seen:
                        n += 1
                    ir.put(tensor, "name", f"{name}{n}")
                seen.add(tensor.name)

    def _walk(self, body: ir.Body, path: str, depth: int) -> int:
        """Register what a body computes; returns the depth of the deepest of it."""
        deepest = depth
        for node in body.nodes:
            self.nodes.append(node)
            self.body_of[node] = path
            read = list(reads(node))
            for tensor in read:
                self.readers.setdefault(tensor, []).append(node)
            if node.op == "Constant" and not node.domain:
                self._constants.update(node.outputs)
                continue
            before = max((self.places[t].depth for t in read if t in self.places), default=depth)
            inside = before
            for name, inner in named_bodies(node):
                where = f"{path}/{node.name or self.label.get(node.outputs[0], '?')}/{name}".lstrip("/")
                self.bodies[where] = (node, inner)
                if node.op in ("Loop", "Scan"):
                    for slot, tensor in enumerate(inner.inputs):
                        self._add(tensor, Place(node, slot, where, before, len(self.values), True))
                inside = max(inside, self._walk(inner, where, before))
            for slot, tensor in enumerate(node.outputs):
                if tensor.name:
                    self._add(tensor, Place(node, slot, path, inside + 1, len(self.values)))
            deepest = max(deepest, inside + 1)
        return deepest

    def _add(self, tensor: Tensor, place: Place) -> None:
        self.values.append(tensor)
        self.places[tensor] = place

    # -- questions ---------------------------------------------------------------------------------

    def is_constant(self, tensor: Tensor) -> bool:
        """Its value is in the file."""
        return isinstance(tensor, Constant) or tensor in self._constants

    def is_value(self, tensor: Tensor) -> bool:
        """It is computed from what is fed, or fed."""
        return tensor in self.places or tensor in self._fed

    @cached_property
    def _fed(self) -> set[Tensor]:
        return set(self.model.graph.inputs)

    def constant(self, tensor: Tensor) -> Constant | None:
        """What holds the value of a constant."""
        if isinstance(tensor, Constant):
            return tensor
        for node in tensor.inputs:
            value = node.attrs.get("value")
            if isinstance(value, Constant):
                return value
        return None

    def fingerprint(self, constant: Constant) -> str:
        """Equal for equal constants; of large ones only samples are read."""
        if constant not in self._fingerprints:
            # A sample may make a large page of the file resident.
            self.model.lend(min(constant.nbytes, _SAMPLED))
            self._fingerprints[constant] = fingerprint(constant)
        return self._fingerprints[constant]

    def producer(self, tensor: Tensor) -> Node | None:
        """The node that computes a tensor; None for what is fed, and for inputs of bodies."""
        place = self.places.get(tensor)
        return None if place is None or place.entry else place.node

    def name(self, tensor: Tensor) -> str:
        """The name in the file."""
        return self.label.get(tensor, tensor.name)

    def dynamic(self, node: Node) -> list[Tensor]:
        """What a node reads that is no constant, slot by slot, and what its bodies capture."""
        return [t for t in reads(node) if not self.is_constant(t)]

    def sources(self, tensor: Tensor) -> list[Tensor]:
        """What a value is computed from, directly: constants are left out."""
        place = self.places.get(tensor)
        if place is None:
            return []
        if place.entry:
            return _fed_into(self, place)
        node = place.node
        inner = [t for _, body in named_bodies(node) for t in body.outputs]
        if node.op == "If" and inner:
            # An If hands on what one of its bodies computes.
            branches = [b.outputs[place.slot] for _, b in named_bodies(node) if place.slot < len(b.outputs)]
            return [t for t in (*node.inputs[:1], *branches) if t.name and not self.is_constant(t)]
        if node.op == "Loop":
            body = next((b for _, b in named_bodies(node)), None)
            if body is not None and place.slot + 1 < len(body.outputs):
                at = place.slot + 1  # the first is the condition
                found = [body.outputs[at], *self.dynamic(node)]
                return [t for t in dict.fromkeys(found) if not self.is_constant(t)]
        if node.op == "Scan":
            body = next((b for _, b in named_bodies(node)), None)
            if body is not None and place.slot < len(body.outputs):
                found = [body.outputs[place.slot], *self.dynamic(node)]
                return [t for t in dict.fromkeys(found) if not self.is_constant(t)]
        return self.dynamic(node)

    def ancestors(self, tensors: list[Tensor]) -> set[Tensor]:
        """Everything computed that `tensors` depend on, themselves included."""
        found: set[Tensor] = set()
        stack = [t for t in tensors if t in self.places]
        while stack:
            tensor = stack.pop()
            if tensor in found:
                continue
            found.add(tensor)
            stack.extend(t for t in self.sources(tensor) if t in self.places)
        return found

    def made_by(self, node: Node) -> str:
        """The pass that made a node, "" for nodes of the input model."""
        return made_by(node)

    def attributes(self, node: Node) -> str:
        """The attributes as text, equal for equal ones; bodies are left out."""
        keys = self._keys
        if node not in keys:
            parts = []
            for name in sorted(node.attrs):
                value = node.attrs[name]
                text = fingerprint(value) if isinstance(value, Constant) else attribute_text(value)
                if text is not None:
                    parts.append(f"{name}={text}")
            keys[node] = f"{op_text(node)}({','.join(parts)})"
        return keys[node]


def named_bodies(node: Node) -> Iterator[tuple[str, ir.Graph]]:
    """The bodies that a node holds, with the names of their attributes."""
    for name, value in node.attrs.items():
        if isinstance(value, ir.Graph):
            yield name, value
        elif isinstance(value, list):
            for i, graph in enumerate(value):
                if isinstance(graph, ir.Graph):
                    yield f"{name}[{i}]", graph


def _fed_into(net: Net, place: Place) -> list[Tensor]:
    """What an input of a Loop's or Scan's body gets its values from: outside, and the iteration before."""
    node, slot = place.node, place.slot
    carried = node.op == "Scan" or slot >= 2  # before these are a Loop's iteration and condition
    found = [node.inputs[slot]] if carried and slot < len(node.inputs) else []
    before = carried_from(net, place)
    found += [before] if before is not None else []
    return [t for t in found if t.name and not net.is_constant(t)]


def carried_from(net: Net, place: Place) -> Tensor | None:
    """The output of the body that an input of the body has in the next iteration; None for others."""
    body = net.bodies[place.body][1]
    if place.node.op == "Loop":
        slot, states = place.slot - 1, len(body.inputs) - 2  # the first output is the condition
        return body.outputs[slot] if 1 <= slot <= states and slot < len(body.outputs) else None
    scanned = place.node.attrs.get("num_scan_inputs", 0)
    states = len(body.inputs) - int(scanned)
    return body.outputs[place.slot] if place.slot < min(states, len(body.outputs)) else None


def _copied(model: Model) -> Model:
    if not model.graph.functions or model.nbytes > _INLINED:
        return model.copy()
    try:
        return Model.load(onnx.inliner.inline_local_functions(model.to_proto()))
    except Exception:  # what cannot be inlined is looked at from outside
        return model.copy()


def fingerprint(constant: Constant) -> str:
    """Equal for equal constants; of large ones only samples are read."""
    values = constant._values
    head = f"{np.dtype(constant.dtype) if constant.dtype is not None else '?'}{list(values.shape)}"
    digest = hashlib.blake2b(head.encode(), digest_size=12)
    if isinstance(values, FileValues):
        region = values.region
        size = region.length
        if size <= _BLOCKS * _BLOCK * 2:
            digest.update(region.view())
        else:
            step = (size - _BLOCK) // (_BLOCKS - 1)
            for i in range(_BLOCKS):
                digest.update(region.source.view(region.offset + i * step, _BLOCK))
        return digest.hexdigest()
    array = np.asarray(constant.values)
    if array.dtype.hasobject:
        digest.update(repr(array.reshape(-1).tolist()[:4096]).encode())
    else:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if data.size <= _BLOCKS * _BLOCK * 2:
            digest.update(data.tobytes())
        else:
            step = (data.size - _BLOCK) // (_BLOCKS - 1)
            for i in range(_BLOCKS):
                digest.update(data[i * step : i * step + _BLOCK].tobytes())
    return digest.hexdigest()
