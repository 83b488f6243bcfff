"""What remains to be left out once no node can be: inputs that nobody reads, descriptions, functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx

from graphopt import ir
from graphopt.graph.index import Index
from graphopt.model import Model

if TYPE_CHECKING:
    from graphopt.reducing.specimen import Specimen

# Functions are inlined by onnx, which takes the model as one message.
_MOST_BYTES = 1 << 30


def simplifications(specimen: Specimen) -> Iterator[tuple[str, Model]]:
    """Simpler forms of the model at hand, each made from what is at hand by then."""
    if specimen.model.graph.functions and specimen.model.nbytes < _MOST_BYTES:
        proto = onnx.inliner.inline_local_functions(specimen.model.to_proto())
        yield "functions are inlined", Model.load(proto)
    yield "without descriptions", _bare(specimen.model)
    unread = _unread(specimen.model)
    if unread:
        yield "without unused inputs", _without(specimen.model, unread)
        for name in unread:
            if any(t.name == name for t in specimen.model.graph.inputs):
                yield f"without the unused input {name}", _without(specimen.model, [name])


def _unread(model: Model) -> list[str]:
    index = Index(model.graph)
    return [t.name for t in model.graph.inputs if not index.is_read(t)]


def _without(model: Model, names: list[str]) -> Model:
    twin = model.copy()
    graph = twin.graph
    graph.inputs = [t for t in graph.inputs if t.name not in names]
    graph.defaults = {v: c for v, c in graph.defaults.items() if v.name not in names}
    return twin


def _bare(model: Model) -> Model:
    """Without metadata, doc strings, and declarations of tensors that are neither inputs nor outputs."""
    twin = model.copy()
    origin = onnx.ModelProto()
    origin.CopyFrom(twin.origin)
    for field in ("metadata_props", "doc_string", "training_info"):
        origin.ClearField(field)
    twin.origin = origin
    for body in twin.bodies():
        ports = {*body.inputs, *body.outputs}
        for node in body.nodes:
            for tensor in node.outputs:
                if tensor not in ports:
                    tensor.info = None
        if isinstance(body, ir.Graph) and body.origin is not None:
            bare = onnx.GraphProto()
            bare.CopyFrom(body.origin)
            for field in ("value_info", "doc_string", "metadata_props", "quantization_annotation"):
                bare.ClearField(field)
            body.origin = bare
    return twin
