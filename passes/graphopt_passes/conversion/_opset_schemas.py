"""What changed between two versions of an operator, read from ONNX's own schemas.

A newer version that only takes more types, more optional inputs, or an attribute whose default means what
went without saying before, needs nothing done. That is checked mechanically, apart from two things that no
schema says: what the default of a new attribute means, and whether the meaning changed behind an unchanged
signature. Both were read up to `REVIEWED`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import onnx
import onnx.defs

#: The newest opset whose operators were compared with the versions before them, text and all.
REVIEWED: Final = 28

_Schema = onnx.defs.OpSchema
_OPTIONAL: Final = onnx.defs.OpSchema.FormalParameterOption.Optional
_VARIADIC: Final = onnx.defs.OpSchema.FormalParameterOption.Variadic

# Attributes that came later and whose default is how the operator was before.
_NEUTRAL: Final[dict[str, frozenset[str]]] = {
    op: frozenset(names.split())
    for op, names in {
        "ArgMax": "select_last_index",
        "ArgMin": "select_last_index",
        "Attention": "left_window_size right_window_size",
        "AveragePool": "ceil_mode count_include_pad dilations",
        "BatchNormalization": "training_mode",
        "Cast": "saturate round_mode",
        "CastLike": "saturate round_mode",
        "Constant": "sparse_value value_float value_floats value_int value_ints value_string value_strings",
        "DepthToSpace": "mode",
        "DequantizeLinear": "axis block_size output_dtype",
        "GRU": "layout",
        "GatherND": "batch_dims",
        "LSTM": "layout",
        "LpPool": "ceil_mode dilations",
        "MaxPool": "storage_order ceil_mode dilations",
        "QuantizeLinear": "axis saturate block_size output_dtype precision",
        "RNN": "layout",
        "Range": "stash_type",
        "Reshape": "allowzero",
        "Resize": "antialias axes keep_aspect_ratio_policy",
        "ScatterElements": "reduction",
        "ScatterND": "reduction",
        "Shape": "start end",
        "SpaceToDepth": "mode",
        "TopK": "largest sorted",
    }.items()
}
# Outputs whose type used to be tied to an input, and is so still by default.
_STILL_TIED: Final = frozenset({("DequantizeLinear", 0)})
# The signature is the same; the meaning is not.
_REDEFINED: Final = {("OneHot", 11): "negative indices count from the end since opset 11"}


@dataclass(frozen=True)
class Difference:
    """What a newer version of an operator changes.

    Attributes:
        reason: why nodes cannot stay as they are; "" if they can.
        lost: for each input slot the type strings that the newer version no longer takes.
    """

    reason: str
    lost: dict[int, frozenset[str]]


@cache
def _history() -> dict[str, dict[int, _Schema]]:
    found: dict[str, dict[int, _Schema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in ("", "ai.onnx"):
            found.setdefault(schema.name, {})[schema.since_version] = schema
    return found


def schema_at(op: str, opset: int) -> _Schema | None:
    """The schema of the standard operator `op` in force at `opset`."""
    versions = [v for v in _history().get(op, ()) if v <= opset]
    return _history()[op][max(versions)] if versions else None


def versions_between(op: str, old: int, new: int) -> list[int]:
    """The versions of `op` that came after opset `old`, up to `new`, in order."""
    return sorted(v for v in _history().get(op, ()) if old < v <= new)


def default(schema: _Schema, name: str) -> Any:
    """The default of an attribute, None when it has none."""
    found = schema.attributes.get(name)
    if found is None or found.default_value.type == onnx.AttributeProto.UNDEFINED:
        return None
    value = onnx.helper.get_attribute_value(found.default_value)
    return value.decode() if isinstance(value, bytes) else value


@cache
def difference(op: str, version: int) -> Difference:
    """What `version` of `op` changes against the version before it."""
    history = _history()[op]
    old, new = history[max(v for v in history if v < version)], history[version]
    lost = {
        slot: missing
        for slot in range(min(len(old.inputs), len(new.inputs)))
        if (missing := _types(old, old.inputs[slot].type_str) - _types(new, new.inputs[slot].type_str))
    }
    return Difference(_reason(op, old, new), lost)


def _reason(op: str, old: _Schema, new: _Schema) -> str:
    version = new.since_version
    if (op, version) in _REDEFINED:
        return _REDEFINED[op, version]
    if new.deprecated:
        return f"{op} is gone from opset {version} on"
    for name, attribute in old.attributes.items():
        if name not in new.attributes:
            return f"opset {version} has no attribute {name}"
        if new.attributes[name].type != attribute.type or default(old, name) != default(new, name):
            return f"opset {version} changed the attribute {name}"
    for name, attribute in new.attributes.items():
        was = old.attributes.get(name)
        if attribute.required and (was is None or not was.required):
            return f"opset {version} requires the attribute {name}"
        if was is None and name not in _NEUTRAL.get(op, ()):
            return f"the attribute {name} of opset {version} is not known to change nothing by default"
    return _formals_reason(old, new, version) or _ties_reason(op, old, new, version)


def _formals_reason(old: _Schema, new: _Schema, version: int) -> str:
    for kind, before, after in (("input", old.inputs, new.inputs), ("output", old.outputs, new.outputs)):
        if len(after) < len(before):
            return f"opset {version} has fewer {kind}s"
        for slot, formal in enumerate(after):
            if slot >= len(before):
                if formal.option == _OPTIONAL:
                    continue
                return f"opset {version} has another {kind} {formal.name}"
            was = before[slot]
            if formal.option != was.option and (formal.option != _OPTIONAL or was.option == _VARIADIC):
                return f"opset {version} changed the {kind} {formal.name}"
    return ""


def _ties_reason(op: str, old: _Schema, new: _Schema, version: int) -> str:
    """Whether an output has another type, or gets it from elsewhere, than before."""
    for slot, formal in enumerate(old.outputs):
        if (op, slot) in _STILL_TIED:
            continue
        before, after = _tie(old, slot), _tie(new, slot)
        same_types = _types(old, formal.type_str) == _types(new, new.outputs[slot].type_str)
        if before != after and not (before is None and same_types):
            return f"opset {version} changed the type of output {formal.name}"
        if before is None and not same_types and not formal.type_str.startswith(("T", "V", "I", "S", "O")):
            return f"opset {version} changed the type of output {formal.name}"
    return ""


def _tie(schema: _Schema, slot: int) -> int | None:
    """The first input that has the type variable of output `slot`."""
    wanted = schema.outputs[slot].type_str
    return next((i for i, formal in enumerate(schema.inputs) if formal.type_str == wanted), None)


def _types(schema: _Schema, type_str: str) -> frozenset[str]:
    for constraint in schema.type_constraints:
        if constraint.type_param_str == type_str:
            return frozenset(constraint.allowed_type_strs)
    return frozenset({type_str})


def misfit(schema: _Schema, attrs: dict[str, Any], n_inputs: int, n_outputs: int) -> str:
    """Why a node with these attributes and so many inputs and outputs is none of `schema`; "" if it is."""
    if not schema.min_input <= n_inputs <= schema.max_input:
        return f"it has {n_inputs} inputs"
    if not schema.min_output <= n_outputs <= schema.max_output:
        return f"it has {n_outputs} outputs"
    for name in attrs:
        if name not in schema.attributes:
            return f"it has an attribute {name}"
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in attrs:
            return f"it lacks the attribute {name}"
    return ""
