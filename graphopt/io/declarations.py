"""What a written model declares: types, opset imports, names, annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import onnx

from graphopt import ir
from graphopt.io.dtypes import onnx_dtype

#: Inputs whose values shape inference reads. Data inputs (slot 0) are among them only for Reshape-like
#: arithmetic on shapes, whose tensors are small anyway.
_SHAPE_SLOTS: Final[dict[str, frozenset[int]]] = {
    "ConstantOfShape": frozenset({0}),
    "Range": frozenset({0, 1, 2}),
    **dict.fromkeys(
        ("Reshape", "Expand", "Tile", "Unsqueeze", "Squeeze", "Split", "TopK", "OneHot", "CenterCropPad"),
        frozenset({1}),
    ),
    **dict.fromkeys(("Slice", "Pad", "Resize", "Upsample"), frozenset({1, 2, 3, 4})),
}


def value_info(tensor: ir.Tensor) -> onnx.ValueInfoProto:
    """What the model declares about a tensor: its `info` under its present name, or built anew."""
    info = tensor.info
    if info is None:
        info = onnx.ValueInfoProto(name=tensor.name)
        if tensor.dtype is not None:
            kind = getattr(tensor, "type", None) or "tensor_type"
            target = info.type
            if kind == "optional_type" or kind == "sequence_type":
                target = getattr(info.type, kind).elem_type
                kind = "tensor_type"
            declared = getattr(target, kind)
            declared.elem_type = onnx_dtype(tensor.dtype)
            if tensor.shape is not None:
                declared.shape.SetInParent()
                for dim in tensor.shape:
                    if isinstance(dim, str):
                        declared.shape.dim.add(dim_param=dim)
                    elif dim is None or int(dim) < 0:
                        declared.shape.dim.add()
                    else:
                        declared.shape.dim.add(dim_value=int(dim))
    elif info.name != tensor.name:
        renamed = onnx.ValueInfoProto()
        renamed.CopyFrom(info)
        renamed.name = tensor.name
        info = renamed
    return info


def read_for_shapes(constant: ir.Constant) -> bool:
    """Some reader needs the values to infer shapes, so they must be at hand in the message."""
    for node in constant.outputs:
        slots = _SHAPE_SLOTS.get(node.op)
        if slots and any(t is constant and i in slots for i, t in enumerate(node.inputs)):
            return True
    return False


def set_imports(entries: Any, imports: Mapping[str, int]) -> None:
    """Bring opset imports to `imports`, keeping the spelling and order of those that stay."""
    left = dict(imports)
    kept = []
    for entry in entries:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        version = left.pop(domain, None)
        if version is not None:
            new = onnx.OperatorSetIdProto()
            new.CopyFrom(entry)
            if new.version != version:
                new.version = version
            kept.append(new)
    kept += [onnx.OperatorSetIdProto(domain=d, version=v) for d, v in left.items()]
    del entries[:]
    entries.extend(kept)


def set_names(field: Any, names: list[str]) -> None:
    """Bring a repeated string field to `names`, leaving it alone where it says so already."""
    if list(field) != names:
        del field[:]
        field.extend(names)


def drop_stale_annotations(graph: ir.Graph, out: onnx.GraphProto) -> None:
    """Drop quantization annotations of tensors, or by parameters, that are gone."""
    live = {t.name for t in graph.inputs} | {t.name for t in graph.initializers}
    live |= {t.name for node in graph.nodes for t in (*node.inputs, *node.outputs)}
    kept = [
        a
        for a in out.quantization_annotation
        if a.tensor_name in live and all(entry.value in live for entry in a.quant_parameter_tensor_names)
    ]
    del out.quantization_annotation[:]
    out.quantization_annotation.extend(kept)
