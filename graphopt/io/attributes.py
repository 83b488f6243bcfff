"""Node attributes: protobuf to Python and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, cast

import numpy as np
import onnx
import onnx.defs
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.util import misc

from graphopt import ir
from graphopt.io.weights import string_tensor, to_raw

_A = onnx.AttributeProto
# Plain module constants: looking them up on the message class costs more than the comparison.
_FLOAT, _INT, _STRING, _TENSOR, _GRAPH = _A.FLOAT, _A.INT, _A.STRING, _A.TENSOR, _A.GRAPH
_FLOATS, _INTS, _STRINGS, _GRAPHS = _A.FLOATS, _A.INTS, _A.STRINGS, _A.GRAPHS

#: Field that holds the value -> attribute type, for messages of early IR versions, which lack it.
_TYPE_OF_FIELD: Final = {
    "f": _FLOAT,
    "i": _INT,
    "s": _STRING,
    "t": _TENSOR,
    "g": _GRAPH,
    "floats": _FLOATS,
    "ints": _INTS,
    "strings": _STRINGS,
    "tensors": _A.TENSORS,
    "graphs": _GRAPHS,
}

Kind: TypeAlias = onnx.AttributeProto.AttributeType
ReadTensor: TypeAlias = Callable[[onnx.TensorProto], ir.Constant]
ReadGraph: TypeAlias = Callable[[onnx.GraphProto], ir.Graph]
Keep: TypeAlias = Callable[[onnx.AttributeProto], None]
WriteTensor: TypeAlias = Callable[[ir.Constant], onnx.TensorProto]
WriteGraph: TypeAlias = Callable[[Any], onnx.GraphProto]


def text(data: bytes) -> str | bytes:
    """A string attribute: `str`, or the bytes themselves where they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def decode(attribute: onnx.AttributeProto, tensor: ReadTensor, graph: ReadGraph, keep: Keep) -> Any:
    """The Python value of an attribute.

    Args:
        attribute: the message.
        tensor: makes the constant of a tensor attribute.
        graph: makes the body of a graph attribute.
        keep: called with an attribute that is kept as the message itself.

    Returns:
        float, int, str (bytes where not UTF-8), lists of these, ir.Constant for a tensor, ir.Graph or a
        list of them for graphs, ir.AttributeRef for a reference to an attribute of the enclosing
        function, and the AttributeProto itself for everything else.
    """
    kind = attribute.type
    if attribute.ref_attr_name:
        return ir.AttributeRef(attribute.ref_attr_name, misc.convert_from_onnx_attr_type(kind))
    if kind == _INT:
        return attribute.i
    if kind == _INTS:
        return list(attribute.ints)
    if kind == _TENSOR:
        return tensor(attribute.t)
    if kind == _FLOAT:
        return attribute.f
    if kind == _STRING:
        return text(attribute.s)
    if kind == _FLOATS:
        return list(attribute.floats)
    if kind == _STRINGS:
        return [text(s) for s in attribute.strings]
    if kind == _GRAPH:
        return graph(attribute.g)
    if kind == _GRAPHS:
        return [graph(g) for g in attribute.graphs]
    if kind == 0:
        for field, _ in attribute.ListFields():
            if field.name in _TYPE_OF_FIELD:
                typed = _A()
                typed.CopyFrom(attribute)
                typed.type = _TYPE_OF_FIELD[field.name]
                return decode(typed, tensor, graph, keep)
    keep(attribute)
    return attribute


def encode(
    name: str,
    value: Any,
    tensor: WriteTensor,
    graph: WriteGraph,
    like: onnx.AttributeProto | None = None,
    kind: Kind | None = None,
) -> onnx.AttributeProto:
    """The AttributeProto of a Python value.

    Args:
        name: the attribute's name.
        value: what `decode` gives, or numpy scalars, sequences and arrays (an array is a tensor).
        tensor: makes the TensorProto of a constant.
        graph: makes the GraphProto of a body.
        like: the attribute as it was read; it settles ambiguous types and keeps its doc string.
        kind: the attribute type when the value alone does not tell (an empty list, an int for a float).

    Raises:
        TypeError: no attribute type holds such a value.
    """
    out = _A(name=name)
    if like is not None:
        if like.doc_string:
            out.doc_string = like.doc_string
        kind = kind or like.type
    if isinstance(value, onnx.AttributeProto):
        out.CopyFrom(value)
        out.name = name
    elif isinstance(value, gs.Node.AttributeRef):
        out.ref_attr_name = value.name
        out.type = misc.convert_to_onnx_attr_type(value.type)
    elif isinstance(value, gs.Graph):
        out.type = _GRAPH
        out.g.CopyFrom(graph(value))
    elif isinstance(value, gs.Constant):
        out.type = _TENSOR
        out.t.CopyFrom(tensor(value))
    elif isinstance(value, onnx.TensorProto):
        out.type = _TENSOR
        out.t.CopyFrom(value)
    elif isinstance(value, onnx.GraphProto):
        out.type = _GRAPH
        out.g.CopyFrom(value)
    elif isinstance(value, np.ndarray):
        out.type = _TENSOR
        out.t.CopyFrom(tensor_of(value))
    elif isinstance(value, str | bytes):
        out.type = _STRING
        out.s = value.encode() if isinstance(value, str) else value
    elif isinstance(value, bool | int | np.integer | np.bool_) and kind != _FLOAT:
        out.type = _INT
        out.i = int(value)
    elif isinstance(value, bool | int | float | np.floating | np.integer):
        out.type = _FLOAT
        out.f = float(value)
    elif isinstance(value, Sequence):
        _encode_list(out, list(value), graph, kind)
    else:
        raise TypeError(f"attribute {name!r}: no attribute type holds a {type(value).__name__}")
    return out


def _encode_list(out: onnx.AttributeProto, items: list[Any], graph: WriteGraph, kind: Kind | None) -> None:
    if not items:
        out.type = kind if kind in (_FLOATS, _INTS, _STRINGS, _A.TENSORS, _GRAPHS) else _INTS
    elif all(isinstance(item, gs.Graph) for item in items):
        out.type = _GRAPHS
        out.graphs.extend(graph(item) for item in items)
    elif all(isinstance(item, str | bytes) for item in items):
        out.type = _STRINGS
        out.strings.extend(s.encode() if isinstance(s, str) else s for s in items)
    elif all(isinstance(item, bool | int | np.integer) for item in items) and kind != _FLOATS:
        out.type = _INTS
        out.ints.extend(int(item) for item in items)
    elif all(isinstance(item, int | float | np.floating | np.integer) for item in items):
        out.type = _FLOATS
        out.floats.extend(float(item) for item in items)
    else:
        raise TypeError(f"attribute {out.name!r}: no attribute type holds a list of mixed values")


def schema_kind(op: str, domain: str, version: int | None, name: str) -> Kind | None:
    """The attribute type that an operator's schema declares, None when there is no such schema."""
    if version is None:
        return None
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None
    declared = schema.attributes.get(name)
    if declared is None:
        return None
    return cast(Kind, int(declared.type.value))  # type: ignore[attr-defined]  # the stub lacks it


def tensor_of(array: np.ndarray[Any, Any]) -> onnx.TensorProto:
    """A TensorProto that holds an array's values."""
    if array.dtype.hasobject or array.dtype.kind in "US":
        return string_tensor(array)
    data_type, raw = to_raw(array)
    return onnx.TensorProto(dims=array.shape, data_type=data_type, raw_data=bytes(raw))
