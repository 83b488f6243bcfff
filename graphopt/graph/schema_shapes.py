"""ONNX's own shape inference, as one of two opinions.

It knows operators that the rules here do not and sees through calls of local functions. It believes
what models declare, so the declarations are taken away first: of all that a model says about shapes, only
the inputs of the main graph are facts, because a runtime enforces them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import onnx
import onnx.shape_inference

Dims: TypeAlias = tuple[int | str | None, ...]
# dtype and dims; a str is a dim_param of a graph input, None an unknown dim.
Hint: TypeAlias = tuple[int | None, Dims | None]


def schema_hints(
    skeleton: Callable[[], onnx.ModelProto],
) -> Callable[[tuple[str, ...]], dict[str, Hint]]:
    """Run ONNX's inference over the proto that `skeleton` makes (which is modified).

    Returns:
        What it inferred about the tensors of a body, by tensor name. The body is named by the path to it:
        for each node on the way, its first named output and the attribute that holds the body. Every body
        can be asked for once. Nothing at all where ONNX's inference fails.
    """
    proto = skeleton()
    shared = {i.name for i in proto.graph.input}
    names = {d.dim_param for i in proto.graph.input for d in i.type.tensor_type.shape.dim if d.dim_param}
    # An input's default can be overridden: it is no constant, but inference would take it for one.
    _keep(proto.graph.initializer, [t for t in proto.graph.initializer if t.name not in shared])
    _undeclare(proto.graph, is_main=True)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # malformed models, and operators' inference functions, raise whatever they like
        return lambda path: {}
    local = {(f.domain, f.name) for f in proto.functions if f.domain in ("", "ai.onnx")}

    def of_body(path: tuple[str, ...]) -> dict[str, Hint]:
        graph: onnx.GraphProto | None = inferred.graph
        for step in path:
            graph = None if graph is None else _step(graph, step)
        if graph is None:
            return {}
        hints = {v.name: _hint(v, names) for v in (*graph.value_info, *graph.output)}
        for node in graph.node if local else ():
            if (node.domain, node.op_type) in local:  # a function was taken for the operator of that name
                for name in node.output:
                    hints.pop(name, None)
        return hints

    return of_body


def body_step(first_output: str, attribute: str, index: int = 0) -> str:
    """One step of a path to a body."""
    return f"{attribute}\n{index}\n{first_output}"


def _step(graph: onnx.GraphProto, step: str) -> onnx.GraphProto | None:
    attribute, index, output = step.split("\n", 2)
    for node in graph.node:
        if output in node.output:
            for a in node.attribute:
                if a.name == attribute:
                    bodies = [a.g] if a.HasField("g") else list(a.graphs)
                    return bodies[int(index)] if int(index) < len(bodies) else None
    return None


def _keep(field: object, kept: Iterable[onnx.TensorProto]) -> None:
    kept = list(kept)
    if len(kept) != len(field):  # type: ignore[arg-type]
        copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        del field[:]  # type: ignore[attr-defined]
        field.extend(copies)  # type: ignore[attr-defined]


def _undeclare(main: onnx.GraphProto, *, is_main: bool) -> None:
    """Remove declared shapes from a graph and its bodies, except those of the main graph's inputs."""
    stack = [(main, is_main)]
    while stack:
        graph, keep_inputs = stack.pop()
        del graph.value_info[:]
        for info in (*graph.output, *(() if keep_inputs else graph.input)):
            kind = info.type.WhichOneof("value")
            if kind in ("tensor_type", "sparse_tensor_type"):
                getattr(info.type, kind).ClearField("shape")
            elif kind is not None:
                info.ClearField("type")
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    stack.append((attribute.g, False))
                elif attribute.type == onnx.AttributeProto.GRAPHS:
                    stack.extend((g, False) for g in attribute.graphs)


def _hint(info: onnx.ValueInfoProto, names: set[str]) -> Hint:
    if info.type.WhichOneof("value") != "tensor_type":
        return None, None
    tensor = info.type.tensor_type
    dtype = tensor.elem_type or None
    if not tensor.HasField("shape"):
        return dtype, None
    dims: list[int | str | None] = []
    for dim in tensor.shape.dim:
        kind = dim.WhichOneof("value")
        if kind == "dim_value":
            dims.append(dim.dim_value if dim.dim_value >= 0 else None)
        elif kind == "dim_param" and dim.dim_param in names:
            dims.append(dim.dim_param)
        else:
            dims.append(None)
    return dtype, tuple(dims)
