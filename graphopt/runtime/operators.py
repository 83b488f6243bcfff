"""Which operators ONNX and onnxruntime define."""

from __future__ import annotations

import functools
from typing import Any

import onnx.defs

from graphopt.runtime.session import onnxruntime

# Of onnxruntimes that do not list their operators: the domains that they have had for long.
_DOMAINS = frozenset(
    {"com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc"}
)


def is_known(domain: str, op: str, opset: int) -> bool:
    """Whether an operator is ONNX's, at the version `opset` of its standard domain, or onnxruntime's.

    Args:
        domain: "" or "ai.onnx" for the standard one.
        op: the operator.
        opset: the version of the standard domain; of others the newest counts.
    """
    if domain in ("", "ai.onnx"):
        return bool(onnx.defs.has(op, "")) and _since(op) <= opset
    if onnx.defs.has(op, domain):
        return True
    listed = _of_onnxruntime()
    return (domain, op) in listed if listed else domain in _DOMAINS


def _since(op: str) -> int:
    """The opset that introduced a standard operator."""
    return min(int(s.since_version) for s in _standard()[op])


@functools.cache
def _standard() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            found.setdefault(schema.name, []).append(schema)
    return found


@functools.cache
def _of_onnxruntime() -> frozenset[tuple[str, str]]:
    """(domain, operator) of what this onnxruntime defines; empty where it does not say."""
    onnxruntime()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    schemas = getattr(state, "get_all_operator_schema", None)
    return frozenset((s.domain, s.name) for s in schemas()) if schemas is not None else frozenset()
