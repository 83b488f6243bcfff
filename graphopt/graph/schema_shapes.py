"""ONNX's own shape inference, as one of two opinions.

It knows operators that the rules here do not and sees through calls of local functions. It believes
what models declare, so the declarations are taken away first: of all that a model says about shapes, only
the inputs of the main graph are facts, because a runtime enforces them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TypeAlias

import onnx
import onnx.shape_inference

Dims: TypeAlias = tuple[int | str | None, ...]
# dtype and dims; a str is a dim_param of a graph input, None an unknown dim.
Hint: TypeAlias = tuple[int | None, Dims | None]


class SchemaHints:
    """What ONNX's inference says about a model, by body and tensor name.

    Args:
        proto: the model without its weights; it is modified. None: there is nothing to say.
    """

    def __init__(self, proto: onnx.ModelProto | None) -> None:
        self._bodies: dict[tuple[str, ...], _Bodies] = {}
        self._main: onnx.GraphProto | None = None
        if proto is None:
            return
        shared = {i.name for i in proto.graph.input}
        self._names = {
            d.dim_param for i in proto.graph.input for d in i.type.tensor_type.shape.dim if d.dim_param
        }
        self._shadowed = {(f.domain, f.name) for f in proto.functions if f.domain in ("", "ai.onnx")}
        # An input's default can be overridden: it is no constant, but inference would take it for one.
        _keep(proto.graph.initializer, [t for t in proto.graph.initializer if t.name not in shared])
        _undeclare(proto)
        with contextlib.suppress(Exception):  # operators' inference functions raise whatever they like
            self._main = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph

    def of_body(self, path: tuple[str, ...]) -> dict[str, Hint]:
        """A new dict of what is known in one body: the main one for (), see `body_step`."""
        graph = self._graph(path)
        if graph is None:
            return {}
        names = self._names
        hints = {v.name: _hint(v, names) for v in graph.value_info}
        hints.update({v.name: _hint(v, names) for v in graph.output})
        for node in graph.node if self._shadowed else ():
            if (node.domain, node.op_type) in self._shadowed:  # it was taken for the standard operator
                for name in node.output:
                    hints.pop(name, None)
        return hints

    def _graph(self, path: tuple[str, ...]) -> onnx.GraphProto | None:
        if not path:
            return self._main
        outer = path[:-1]
        if outer not in self._bodies:
            graph = self._graph(outer)
            self._bodies[outer] = {} if graph is None else _bodies_of(graph)
        return self._bodies[outer].get(path[-1])


def body_step(first_output: str, attribute: str, index: int = 0) -> str:
    """One step of the path to a body: the node that holds it, and where."""
    return f"{attribute}\n{index}\n{first_output}"


_Bodies: TypeAlias = dict[str, onnx.GraphProto]


def _bodies_of(graph: onnx.GraphProto) -> _Bodies:
    found: _Bodies = {}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                first = next((name for name in node.output if name), "")
                bodies = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
                for i, body in enumerate(bodies):
                    found[body_step(first, attribute.name, i)] = body
    return found


def _keep(field: object, kept: Iterable[onnx.TensorProto]) -> None:
    kept = list(kept)
    if len(kept) != len(field):  # type: ignore[arg-type]
        copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        del field[:]  # type: ignore[attr-defined]
        field.extend(copies)  # type: ignore[attr-defined]


def _undeclare(proto: onnx.ModelProto) -> None:
    """Remove every declared shape except those of the main graph's inputs."""
    for function in proto.functions:
        del function.value_info[:]
    stack: list[tuple[onnx.GraphProto | onnx.FunctionProto, bool]] = [(f, False) for f in proto.functions]
    stack.append((proto.graph, True))
    while stack:
        body, is_main = stack.pop()
        if isinstance(body, onnx.GraphProto):
            del body.value_info[:]
            for info in (*body.output, *(() if is_main else body.input)):
                kind = info.type.WhichOneof("value")
                if kind in ("tensor_type", "sparse_tensor_type"):
                    getattr(info.type, kind).ClearField("shape")
                elif kind is not None:
                    info.ClearField("type")
        for node in body.node:
            for attribute in node.attribute:
                kind = attribute.type
                if kind == onnx.AttributeProto.GRAPH:
                    stack.append((attribute.g, False))
                elif kind == onnx.AttributeProto.GRAPHS:
                    stack.extend((g, False) for g in attribute.graphs)


def _hint(info: onnx.ValueInfoProto, names: set[str]) -> Hint:
    tensor = info.type.tensor_type
    dtype = tensor.elem_type
    if not dtype and info.type.WhichOneof("value") != "tensor_type":
        return None, None
    shape = tensor.shape
    dims = tuple([dim.dim_value or _other_dim(dim, names) for dim in shape.dim])
    if not dims and not tensor.HasField("shape"):
        return dtype or None, None
    return dtype or None, dims


def _other_dim(dim: onnx.TensorShapeProto.Dimension, names: set[str]) -> str | None:
    # A 0 is not believed: it is also what inference functions read where a dim is symbolic (Attention's do).
    return dim.dim_param if dim.dim_param in names else None
