"""Checks of the inputs and outputs that callers rely on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from graphopt.gating.context import Context
from graphopt.gating.policy import PortLimits
from graphopt.interface import type_text
from graphopt.report.gated import Check
from graphopt.report.text import plural
from graphopt.validation.interface import Interface, interface_changes

_ANYTHING = "?"


def check_interface(ctx: Context) -> Iterator[Check]:
    """`[interface]`."""
    limits = ctx.policy.interface
    assert limits is not None
    found = Interface.of(ctx.model.skeleton())
    if limits.inputs is not None:
        yield from _ports(ctx, "inputs", limits.inputs, found.inputs)
    if limits.outputs is not None:
        yield from _ports(ctx, "outputs", limits.outputs, found.outputs)
    if limits.same_as_reference:
        asked = ctx.ask(("interface", "same_as_reference"), "inputs and outputs", "the reference's")
        assert ctx.reference is not None
        changes = interface_changes(Interface.of(ctx.reference.skeleton()), found)
        value = plural(len(changes), "change")
        yield asked.judged(not changes, value if changes else "the same", len(changes), "; ".join(changes))


def _ports(
    ctx: Context, kind: str, wanted: Sequence[PortLimits], found: Sequence[onnx.ValueInfoProto]
) -> Iterator[Check]:
    """Names and order of all, then type and dims of each."""
    expected, names = [port.name for port in wanted], [value.name for value in found]
    asked = ctx.ask(("interface", kind), f"{kind}, in order", ", ".join(expected) or "none")
    yield asked.judged(names == expected, ", ".join(names) or "none", detail=_difference(expected, names))
    declared = {value.name: value for value in found}
    for port in wanted:
        limit = _limit(port)
        if not limit:
            continue
        asked = ctx.ask(("interface", kind), f"{kind[:-1]} {port.name}", limit, at=port.name)
        value = declared.get(port.name)
        if value is None:
            yield asked.judged(False, "not there")
        else:
            yield asked.judged(_fits(port, value), type_text(value), detail=_misfit(port, value))


def _difference(expected: Sequence[str], names: Sequence[str]) -> str:
    lost = [n for n in expected if n not in names]
    new = [n for n in names if n not in expected]
    words = [f"missing: {', '.join(lost)}"] if lost else []
    words += [f"not expected: {', '.join(new)}"] if new else []
    return "; ".join(words) or ("" if list(expected) == list(names) else "the order differs")


def _limit(port: PortLimits) -> str:
    dims = "" if port.dims is None else f"[{','.join(map(str, port.dims))}]"
    if port.dtype is None:
        return f"dims {dims}" if dims else ""
    return port.dtype + dims


def _dims(value: onnx.ValueInfoProto) -> list[str] | None:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not tensor.HasField("shape"):
        return None
    return [
        str(d.dim_value) if d.HasField("dim_value") else d.dim_param or _ANYTHING for d in tensor.shape.dim
    ]


def _fits(port: PortLimits, value: onnx.ValueInfoProto) -> bool:
    return not _misfit(port, value)


def _misfit(port: PortLimits, value: onnx.ValueInfoProto) -> str:
    """What of a port is not as the policy spells it; "" if nothing."""
    if port.dtype is not None and type_text(value, dims=False) != port.dtype:
        return f"its type is {type_text(value, dims=False)}"
    if port.dims is None:
        return ""
    dims = _dims(value)
    if dims is None:
        return "it declares no dims"
    if len(dims) != len(port.dims):
        return f"it has {len(dims)} dims"
    wrong = [
        f"dim {i} is {found}"
        for i, (wanted, found) in enumerate(zip(port.dims, dims, strict=True))
        if wanted != _ANYTHING and str(wanted) != found
    ]
    return ", ".join(wrong)
