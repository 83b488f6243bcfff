"""Which inputs and outputs of a node may change from float32 to a half-precision type together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import onnx
import onnx.defs

from graphopt.passkit import RANDOM_OPS, GraphView, Node, Target, Tensor
from graphopt_passes.quantization._precision import FLOAT, HalfFormat

# The type of their result is an attribute, comes from elsewhere, or is what the operator is about.
_SOURCES: Final = RANDOM_OPS | frozenset(
    "Cast CastLike Constant ConstantOfShape DequantizeLinear DynamicQuantizeLinear EyeLike If Loop "
    "QuantizeLinear Range Scan".split()
)
# Inputs or results are coordinates or frequencies, of which half precision has too few.
_COORDINATES: Final = frozenset("DFT GridSample MaxRoiPool NonMaxSuppression RoiAlign STFT".split())
#: What half precision is there for: the other operators only go along with these.
HEAVY: Final = frozenset("Attention Conv ConvTranspose DeformConv Einsum GRU Gemm LSTM MatMul RNN".split())
#: Results that stay small whatever goes in.
BOUNDED: Final = frozenset(
    "Clip Cos Erf Hardmax HardSigmoid LayerNormalization LogSoftmax LpNormalization Sigmoid Sign Sin Softmax "
    "Softsign Tanh".split()
)
_CPU: Final = "CPUExecutionProvider"
# onnxruntime expands these into operators on float32, whatever their type.
_NEVER: Final = frozenset({"LinearAttention", "MeanVarianceNormalization"})
# onnxruntime's CPU kernels for bfloat16 (1.32). For float16 it falls back on float32; for this it does not.
_BFLOAT16_ON_CPU: Final = frozenset(
    "Compress Concat Flatten Gather GatherElements GatherND Identity Reshape ReverseSequence Slice Split "
    "Squeeze Transpose Unsqueeze".split()
)


@dataclass(frozen=True)
class HalfSlots:
    """Input and output slots of a node that are float32 and become half precision together."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@cache
def _formals(
    op: str, opset: int
) -> tuple[tuple[str, ...], bool, tuple[str, ...], bool, dict[str, frozenset[str]]]:
    schema = onnx.defs.get_schema(op, opset, "")
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    types = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    return (
        tuple(f.type_str for f in schema.inputs),
        bool(schema.inputs) and schema.inputs[-1].option == variadic,
        tuple(f.type_str for f in schema.outputs),
        bool(schema.outputs) and schema.outputs[-1].option == variadic,
        types,
    )


def has_kernel(graph: GraphView, node: Node, form: HalfFormat, target: Target) -> bool:
    """Whether the target executes `node` in half precision, be it by way of float32."""
    if node.op in _NEVER:
        return False
    if target.providers[0] != _CPU:
        return True
    if form.name == "bfloat16":
        return node.op in _BFLOAT16_ON_CPU and not _accumulates(graph, node)
    return not _accumulates(graph, node)


def _accumulates(graph: GraphView, node: Node) -> bool:
    return node.op in ("ScatterElements", "ScatterND") and graph.attr(node, "reduction") not in (None, "none")


def half_slots(graph: GraphView, node: Node, form: HalfFormat) -> HalfSlots | None:
    """The float32 slots of `node` that may become `form`; None where there are none, or not both kinds.

    A slot may if its type variable admits the format and every tensor bound to it is known to be float32.
    """
    if not graph.is_op(node, node.op) or node.op in _SOURCES or node.op in _COORDINATES:
        return None
    if not graph.has_op(node.op):
        return None
    ins, more_in, outs, more_out, types = _formals(node.op, graph.opset)
    wanted = f"tensor({form.name})"
    chosen: dict[str, list[int]] = {}
    barred: set[str] = set()
    for slot, tensor in enumerate(node.inputs):
        variable = _variable(ins, more_in, slot)
        if not tensor.name or variable is None:
            continue
        if graph.dtype(tensor) == FLOAT and wanted in types.get(variable, ()):
            chosen.setdefault(variable, []).append(slot)
        else:
            barred.add(variable)
    free = {v: slots for v, slots in chosen.items() if v not in barred}
    outputs = [
        slot
        for slot, tensor in enumerate(node.outputs)
        if tensor.name and graph.dtype(tensor) == FLOAT and _variable(outs, more_out, slot) in free
    ]
    inputs = sorted(slot for slots in free.values() for slot in slots)
    return HalfSlots(tuple(inputs), tuple(outputs)) if inputs and outputs else None


def _variable(formals: tuple[str, ...], variadic: bool, slot: int) -> str | None:
    if slot < len(formals):
        return formals[slot]
    return formals[-1] if variadic else None


def reaches_softmax_only(graph: GraphView, tensor: Tensor) -> Node | None:
    """The Softmax that is the only reader of `tensor`."""
    reader = graph.sole_consumer(tensor)
    return reader if graph.is_op(reader, "Softmax") else None
