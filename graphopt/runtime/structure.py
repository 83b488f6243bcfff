"""What synthesizing inputs needs to know about a model: who reads an input, through what, and shapes.

Works on a ModelProto whose weights may be stripped of their data; never runs anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
from onnx import numpy_helper

from graphopt.runtime.sizes import Sizes, axis_symbol
from graphopt.runtime.values import Array

# Ops that hand elements of these inputs on unchanged (None: of every input).
_TRANSPARENT: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Identity", "Cast", "CastLike", "Unsqueeze", "Squeeze", "Reshape", "Transpose"), (0,)),
    **dict.fromkeys(("Flatten", "Expand", "Tile", "Slice", "Gather", "GatherElements", "GatherND"), (0,)),
    **dict.fromkeys(("Split", "Dropout", "ReverseSequence", "DepthToSpace", "SpaceToDepth"), (0,)),
    **dict.fromkeys(("OptionalGetElement", "Optional", "Pad", "Clip", "Relu", "Abs"), (0,)),
    **dict.fromkeys(("Concat", "SequenceConstruct", "Max", "Min"), None),
    "Where": (1, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "SequenceAt": (0,),
    "ConcatFromSequence": (0,),
    "Loop": None,
    "Scan": None,
    "If": (),
}

# Ops through which a value keeps its number of elements and their order, so that what reads it there
# could as well read the input itself.
_SAME_ELEMENTS = {
    "Identity",
    "Cast",
    "CastLike",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
    "Flatten",
    "Loop",
    "Scan",
}

_MAX_MEETS = 64
_MAX_STEPS = 4096
_SMALL = 4096


@dataclass(frozen=True)
class Meet:
    """A place where an input's elements are put to use.

    Attributes:
        node: who reads them.
        slot: as which input.
        offset: constant that was added on the way.
        same_elements: all of the input's elements arrive there, in order.
    """

    node: onnx.NodeProto
    slot: int
    offset: int
    same_elements: bool


def is_stripped(tensor: onnx.TensorProto) -> bool:
    """The tensor's data is elsewhere, or was left out."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return True
    fields = (tensor.raw_data, tensor.float_data, tensor.int32_data, tensor.int64_data)
    more = (tensor.double_data, tensor.uint64_data, tensor.string_data)
    return not any(len(f) for f in (*fields, *more)) and 0 not in tensor.dims


def lean(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the data of large initializers, functions inlined."""
    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    graph = copy.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.float64) <= _SMALL:
            graph.initializer.append(tensor)
        else:
            graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    if copy.functions:
        try:
            return onnx.inliner.inline_local_functions(copy)
        except Exception:  # a model that cannot be inlined is walked without its functions
            return copy
    return copy


class Structure:
    """A model's graph, indexed for walks from its inputs.

    Attributes:
        model: the lean copy.
        inputs: graph inputs that are not overridable initializers.
        overridable: graph inputs that are (IR >= 4), with their default (stripped when large).
        outputs: the graph's outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = lean(model)
        graph = self.model.graph
        stored = {t.name: t for t in graph.initializer} | {
            t.values.name: t.values for t in graph.sparse_initializer
        }
        self.inputs = [v for v in graph.input if v.name not in stored]
        overridable = [v for v in graph.input if v.name in stored] if model.ir_version >= 4 else []
        self.overridable = {v.name: (v, stored[v.name]) for v in overridable}
        self.outputs = list(graph.output)
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        self.producers: dict[str, onnx.NodeProto] = {}
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._arrays: dict[str, Array] = {}
        self._index(graph)

    def _index(self, graph: onnx.GraphProto) -> None:
        pending = [graph]
        while pending:
            body = pending.pop()
            for tensor in body.initializer:
                self._tensors.setdefault(tensor.name, tensor)
            for node in body.node:
                for slot, name in enumerate(node.input):
                    if name:
                        self.readers.setdefault(name, []).append((node, slot))
                for name in node.output:
                    self.producers.setdefault(name, node)
                for attribute in node.attribute:
                    if attribute.type == onnx.AttributeProto.GRAPH:
                        pending.append(attribute.g)
                    elif attribute.type == onnx.AttributeProto.GRAPHS:
                        pending.extend(attribute.graphs)

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """All nodes, also those in bodies."""
        pending = [self.model.graph]
        while pending:
            for node in pending.pop().node:
                yield node
                for attribute in node.attribute:
                    if attribute.type == onnx.AttributeProto.GRAPH:
                        pending.append(attribute.g)
                    elif attribute.type == onnx.AttributeProto.GRAPHS:
                        pending.extend(attribute.graphs)

    def constant(self, name: str) -> Array | None:
        """The value of a small initializer or Constant node; None for anything else."""
        if name in self._arrays:
            return self._arrays[name]
        tensor = self._tensors.get(name)
        array: Array | None = None
        if name in self.overridable:
            return None
        if tensor is not None:
            array = None if is_stripped(tensor) else numpy_helper.to_array(tensor)
        elif (node := self.producers.get(name)) is not None and node.op_type == "Constant":
            array = _constant_value(node)
        if array is not None:
            self._arrays[name] = array
        return array

    def sizes_in_constants(self) -> list[int]:
        """Sizes that Reshape and Expand are told as constants, most frequent first: at most six."""
        counts: dict[int, int] = {}
        for node in self.nodes():
            if node.op_type in ("Reshape", "Expand") and len(node.input) > 1:
                shape = self.constant(node.input[1])
                for size in {int(d) for d in shape.reshape(-1)} if shape is not None else ():
                    if 1 < size <= 1024:
                        counts[size] = counts.get(size, 0) + 1
        return sorted(counts, key=lambda size: (-counts[size], size))[:6]

    def stored_dims(self, name: str) -> tuple[int, ...] | None:
        """The dims of an initializer or Constant, loaded or not."""
        if name in self._tensors:
            return tuple(self._tensors[name].dims)
        array = self.constant(name)
        return array.shape if array is not None else None

    def meets(self, name: str) -> list[Meet]:
        """Where the elements of input `name` are used, through ops that hand them on unchanged."""
        found: list[Meet] = []
        pending, seen = [(name, 0, True)], {name}
        for _ in range(_MAX_STEPS):
            if not pending or len(found) >= _MAX_MEETS:
                break
            current, offset, same = pending.pop(0)
            for node, slot in self.readers.get(current, ()):
                found.append(Meet(node, slot, offset, same))
                for target, added in self._onwards(node, slot):
                    if target not in seen:
                        seen.add(target)
                        pending.append((target, offset + added, same and node.op_type in _SAME_ELEMENTS))
        return found

    def _onwards(self, node: onnx.NodeProto, slot: int) -> Iterator[tuple[str, int]]:
        op = node.op_type
        if op in ("Loop", "Scan"):
            body = next((a.g for a in node.attribute if a.name == "body"), None)
            # Loop takes (trip count, condition, carried...), its body (iteration, condition, carried...).
            if body is not None and slot < len(body.input) and (op == "Scan" or slot >= 2):
                yield body.input[slot].name, 0
            return
        if op in ("Add", "Sub") and slot < 2 and (op == "Add" or slot == 0):
            other = self.constant(node.input[1 - slot])
            if other is not None and other.size == 1 and other.dtype.kind in "iu":
                yield node.output[0], int(other.reshape(-1)[0]) * (1 if op == "Add" else -1)
            return
        slots = _TRANSPARENT.get(op, ())
        if slots is None or slot in slots:
            for output in node.output[:1] if op != "Split" else node.output:
                if output:
                    yield output, 0


def _constant_value(node: onnx.NodeProto) -> Array | None:
    for a in node.attribute:
        if a.name == "value":
            return None if is_stripped(a.t) else numpy_helper.to_array(a.t)
        if a.name in ("value_int", "value_ints"):
            return np.array(onnx.helper.get_attribute_value(a), np.int64)
        if a.name in ("value_float", "value_floats"):
            return np.array(onnx.helper.get_attribute_value(a), np.float32)
    return None


class Shapes:
    """Shapes of tensors under given sizes of the symbolic dims; inferred when first asked."""

    def __init__(
        self, structure: Structure, sizes: Sizes, input_shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.structure, self.sizes = structure, sizes
        self._known: dict[str, tuple[int, ...]] = dict(input_shapes)
        self._inferred = False

    def of(self, name: str) -> tuple[int | None, ...] | None:
        """The shape of any tensor; None when the rank is unknown, None per unknown dim."""
        stored = self.structure.stored_dims(name)
        if stored is not None:
            return stored
        if name in self._known:
            return self._known[name]
        if not self._inferred:
            self._infer()
        return self._partial.get(name)

    def _infer(self) -> None:
        self._inferred = True
        self._partial: dict[str, tuple[int | None, ...]] = {}
        model = onnx.ModelProto()
        model.CopyFrom(self.structure.model)
        for value in (*model.graph.input, *model.graph.output):
            self._substitute(value)
        with contextlib.suppress(Exception):  # what it cannot infer stays unknown
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        for value in (*model.graph.value_info, *model.graph.output):
            shape = declared_dims(value)
            if shape is not None:
                self._partial[value.name] = shape

    def _substitute(self, value: onnx.ValueInfoProto) -> None:
        if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.HasField("shape"):
            return
        known = self._known.get(value.name)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            size = known[axis] if known and axis < len(known) else None
            symbol = axis_symbol(value, axis)
            if size is None and isinstance(symbol, str):
                size = self.sizes.get(symbol)
            if size is not None:
                dim.dim_value = size


def declared_dims(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    """The dims in a ValueInfoProto: an int or None each; None without a shape."""
    if value.type.WhichOneof("value") != "tensor_type" or not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(
        int(d.dim_value) if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
    )


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value, or `default`."""
    for a in node.attribute:
        if a.name == name:
            return onnx.helper.get_attribute_value(a)
    return default
