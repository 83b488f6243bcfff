"""A model as text that people read: one line per node, in order, nested bodies indented under theirs.

opset 17, IR 8
graph main_graph(image: float[batch,1,8,8]) -> (logits: float[batch,10])
  conv1.weight = initializer float[16,1,3,3], 576 B
  /conv1/Conv_output_0 = Conv(image, conv1.weight) {kernel_shape=[3,3]}  # /conv1/Conv
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.io.dtypes import onnx_dtype
from graphopt.ir import AttributeRef, Body, Constant, Function, Graph, Node, Tensor

if TYPE_CHECKING:
    from graphopt.model import Model

_MAX_ITEMS = 16
_MAX_TEXT = 80


def model_text(model: Model) -> str:
    """The whole model: its versions, its local functions, its main graph."""
    lines = [f"{opsets_text(model.opset_imports)}, IR {model.ir_version}"]
    for function in model.graph.functions:
        lines += body_lines(function)
    lines += body_lines(model.graph)
    return "\n".join(lines)


def body_lines(body: Body, indent: str = "") -> Iterator[str]:
    """One body: its signature, initializers and nodes, and the bodies in them (protobuf bounds the depth)."""
    yield f"{indent}{signature(body)}"
    yield from _contents(body, f"{indent}  ")


def _contents(body: Body, indent: str) -> Iterator[str]:
    for constant in body.initializers:
        yield f"{indent}{name_of(constant)} = initializer {type_text(constant)}, {constant.nbytes:,} B"
    for node in body.nodes:
        yield f"{indent}{node_text(node)}"
        for key, value in node.attrs.items():
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, Graph):
                    yield f"{indent}  {key}: {signature(inner)}"
                    yield from _contents(inner, f"{indent}    ")


def signature(body: Body) -> str:
    """A body's kind, name, inputs and outputs."""
    if isinstance(body, Function):
        ins, outs = (", ".join(map(name_of, ts)) for ts in (body.inputs, body.outputs))
        return f"function {body.domain}::{body.name}({ins}) -> ({outs})"
    ins = ", ".join(value_text(t) + (" = default" if t in body.defaults else "") for t in body.inputs)
    return f"graph {body.name}({ins}) -> ({', '.join(map(value_text, body.outputs))})"


def node_text(node: Node, *, with_name: bool = True) -> str:
    """One node: outputs, op, inputs, attributes, and its own name as a comment."""
    outputs = ", ".join(map(name_of, node.outputs))
    inputs = ", ".join(map(name_of, node.inputs))
    attrs = " ".join(
        f"{key}={text}" for key, value in node.attrs.items() if (text := attribute_text(value)) is not None
    )
    text = f"{outputs} = {op_text(node)}({inputs})" + (f" {{{attrs}}}" if attrs else "")
    notes = [note for note in (node.name if with_name else "", _made_by(node)) if note]
    return text + (f"  # {', '.join(notes)}" if notes else "")


def _made_by(node: Node) -> str:
    return f"made by {node.made_by}" if node.made_by else ""


def op_text(node: Node) -> str:
    """The op's type, with its domain where that is not the standard one."""
    return f"{node.domain}::{node.op}" if node.domain else str(node.op)


def name_of(tensor: Tensor) -> str:
    """A tensor's name; "_" for an input or output that is left out."""
    return tensor.name or "_"


def value_text(tensor: Tensor) -> str:
    """`name: type[dims]`."""
    declared = type_text(tensor)
    return f"{name_of(tensor)}: {declared}" if declared else name_of(tensor)


def type_text(tensor: Tensor) -> str:
    """`float[batch,3]`, `float` where the rank is unknown, "" where nothing is."""
    if not isinstance(tensor, Constant) and tensor.info is not None:
        return proto_type_text(tensor.info.type)
    if tensor.dtype is None:
        return ""
    dims = dims_text(tensor)
    return dtype_text(tensor.dtype) + ("" if dims is None else f"[{','.join(dims)}]")


def dims_text(tensor: Tensor) -> tuple[str, ...] | None:
    """Declared dims, "?" for those that are not; None where the rank is unknown."""
    return None if tensor.shape is None else tuple("?" if d is None else str(d) for d in tensor.shape)


def dtype_text(dtype: Any) -> str:
    """An element type (numpy's or ONNX's) as ONNX spells it, in lower case."""
    return str(onnx.TensorProto.DataType.Name(onnx_dtype(dtype))).lower()


def proto_type_text(proto: onnx.TypeProto) -> str:
    """A TypeProto: tensors, sparse tensors, sequences, optionals and maps of them."""
    kind = proto.WhichOneof("value")
    if kind is None:
        return ""
    inner = getattr(proto, kind)
    if kind in ("tensor_type", "sparse_tensor_type"):
        if inner.elem_type == onnx.TensorProto.UNDEFINED:
            return ""
        text = dtype_text(inner.elem_type) + _proto_dims(inner)
        return f"sparse {text}" if kind == "sparse_tensor_type" else text
    if kind in ("sequence_type", "optional_type"):
        return f"{kind.removesuffix('_type')}({proto_type_text(inner.elem_type)})"
    if kind == "map_type":
        return f"map({dtype_text(inner.key_type)}, {proto_type_text(inner.value_type)})"
    return str(kind).removesuffix("_type")


def _proto_dims(proto: Any) -> str:
    if not proto.HasField("shape"):
        return ""
    dims = (d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in proto.shape.dim)
    return f"[{','.join(dims)}]"


def attribute_text(value: Any) -> str | None:
    """An attribute's value, shortened; None for bodies, which are shown on their own."""
    if isinstance(value, Graph) or (isinstance(value, list) and value and isinstance(value[0], Graph)):
        return None
    if isinstance(value, AttributeRef):
        return f"@{value.name}"
    if isinstance(value, Constant):
        return _tensor_text(value)
    if isinstance(value, np.ndarray | LazyValues):
        return _tensor_text(Constant("", value))
    if isinstance(value, list | tuple):
        items = [attribute_text(item) or "" for item in value[:_MAX_ITEMS]]
        return f"[{','.join(items)}{',...' if len(value) > _MAX_ITEMS else ''}]"
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, str | bytes):
        text = repr(value)
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
    text = str(value)
    return text if len(text) <= _MAX_TEXT else f"<{type(value).__name__}>"


def _tensor_text(tensor: Constant) -> str:
    """A constant: its type, and its values where they are few."""
    declared = dtype_text(tensor.dtype) + f"[{','.join(map(str, tensor.shape))}]"
    if int(np.prod(tensor.shape)) > _MAX_ITEMS:
        return declared
    return f"{declared}({','.join(_element_text(v) for v in np.asarray(tensor.values).reshape(-1))})"


def _element_text(value: Any) -> str:
    return f"{float(value):.9g}" if isinstance(value, np.floating) else str(value)


def opsets_text(opsets: Mapping[str, int]) -> str:
    """`opset 17, com.microsoft 1`."""
    return ", ".join(
        f"opset {version}" if not domain else f"{domain} {version}" for domain, version in opsets.items()
    )
