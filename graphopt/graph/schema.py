"""What the ONNX operator schemas say: default attribute values, and which operators exist."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx
import onnx.defs

# Results of these depend on more than their inputs. Dropout is here only in training mode.
RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)

COMMUTATIVE_OPS = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum", "Mean"})


@cache
def schema(op: str, domain: str, opset: int) -> onnx.defs.OpSchema | None:
    """The schema of `op` that is in force at `opset` of `domain`; None when ONNX has none."""
    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None


@cache
def defaults(op: str, domain: str, opset: int) -> dict[str, Any]:
    """Default values of the attributes of `op`, by name, where the schema has one."""
    found = schema(op, domain, opset)
    if found is None:
        return {}
    values = {}
    for name, attribute in found.attributes.items():
        if attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
            value = onnx.helper.get_attribute_value(attribute.default_value)
            values[name] = value.decode() if isinstance(value, bytes) else value
    return values


def has_op(op: str, domain: str, opset: int) -> bool:
    """Whether `op` exists at `opset` of `domain` and is not deprecated there."""
    found = schema(op, domain, opset)
    return found is not None and not found.deprecated
