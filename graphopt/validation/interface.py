"""What callers of a model rely on: names, order, types and dims of its inputs and outputs."""

from __future__ import annotations

import onnx

from graphopt.runtime.structure import Structure


def _type_text(value: onnx.ValueInfoProto, dims: bool) -> str:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return " ".join(str(value.type).split()) if kind else "?"
    tensor = value.type.tensor_type
    dtype: str = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not dims or not tensor.HasField("shape"):
        return dtype
    sizes = (str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim)
    return f"{dtype}[{','.join(sizes)}]"


def interface_changes(reference: Structure, candidate: Structure, *, dims: bool = True) -> list[str]:
    """How the candidate's inputs and outputs differ; empty when they do not.

    Args:
        reference: of the original.
        candidate: of the result.
        dims: also compare dims and the names of symbolic dims.
    """
    changes: list[str] = []
    kinds = (
        ("input", reference.inputs, candidate.inputs),
        ("output", reference.outputs, candidate.outputs),
        (
            "overridable initializer",
            [v for v, _ in reference.overridable.values()],
            [v for v, _ in candidate.overridable.values()],
        ),
    )
    for kind, before, after in kinds:
        names, now = [v.name for v in before], [v.name for v in after]
        if names != now:
            lost = [n for n in names if n not in now]
            new = [n for n in now if n not in names]
            if lost:
                changes.append(f"{kind} removed: {', '.join(lost)}")
            if new:
                changes.append(f"{kind} added: {', '.join(new)}")
            if not lost and not new:
                changes.append(f"{kind}s reordered: {', '.join(names)} -> {', '.join(now)}")
            continue
        for a, b in zip(before, after, strict=True):
            was, becomes = _type_text(a, dims), _type_text(b, dims)
            if was != becomes:
                changes.append(f"{kind} {a.name!r} changed from {was} to {becomes}")
    return changes
