"""Inputs and outputs by name, and what passes say when there are none of it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import numpy as np
import onnx

from graphopt.passkit import Graph, GraphView, Tensor, UserError, Variable

T = TypeVar("T", bound=Tensor)

FLOATS: Final = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)
#: Element types that users may name.
TYPES: Final = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "float64": onnx.TensorProto.DOUBLE,
    "uint8": onnx.TensorProto.UINT8,
    "int8": onnx.TensorProto.INT8,
    "uint16": onnx.TensorProto.UINT16,
    "int32": onnx.TensorProto.INT32,
    "int64": onnx.TensorProto.INT64,
}


def inputs_of(graph: Graph) -> list[Variable]:
    """The inputs that must be fed."""
    return [t for t in graph.inputs if t not in graph.defaults]


def main_of(bodies: Sequence[GraphView]) -> Graph:
    """The main graph, of views of all bodies."""
    main = bodies[-1].body
    assert isinstance(main, Graph)
    return main


def find(tensors: Sequence[T], name: str, kind: str) -> T:
    """The input or output called `name`; where `name` is "" the only one.

    Raises:
        UserError: there is none.
    """
    if not name and len(tensors) == 1:
        return tensors[0]
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    names = [t.name for t in tensors]
    listed = f"the {kind}s: {', '.join(names) or 'none'}"
    if not name:
        raise UserError(f"the model has {len(names)} {kind}s, and none was named", fix=f"{listed}")
    close = difflib.get_close_matches(name, names, n=1)
    raise UserError(
        f"no {kind} is called {name!r}", fix=f"did you mean {close[0]!r}? {listed}" if close else listed
    )


def dims_of(info: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension] | None:
    """The declared dims; None when the rank is not declared, or it is no tensor."""
    if info.type.WhichOneof("value") != "tensor_type" or not info.type.tensor_type.HasField("shape"):
        return None
    return list(info.type.tensor_type.shape.dim)


def elem_type_of(info: onnx.ValueInfoProto) -> int:
    """The declared element type, 0 for what is no tensor."""
    return int(info.type.tensor_type.elem_type) if info.type.WhichOneof("value") == "tensor_type" else 0


def info_of(tensor: Tensor) -> onnx.ValueInfoProto:
    """What a loaded model declares about an input or output."""
    return tensor.info if tensor.info is not None else onnx.ValueInfoProto(name=tensor.name)


def type_name(elem_type: int) -> str:
    """The name of an element type, as messages spell it."""
    return str(onnx.TensorProto.DataType.Name(elem_type)).lower()


def np_dtype(elem_type: int) -> np.dtype[Any]:
    """The numpy dtype."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
