"""Which nodes of a quantized model run as integer kernels on a target, and why the others do not.

A prediction from the graph alone, for any model in QDQ form (QuantizeLinear and DequantizeLinear around float
operators), whoever wrote it. For `ort-cpu` it replays what onnxruntime does while loading;
`graphopt.runtime.kernels` reads off what it really did.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from graphopt.graph.view import GraphView
from graphopt.ir import Node
from graphopt.quantization import kernels_tensorrt
from graphopt.quantization.grid import quant_type
from graphopt.quantization.kernels_conditions import Verdict
from graphopt.quantization.kernels_dynamic import fused_product
from graphopt.quantization.kernels_rewrites import settle
from graphopt.quantization.kernels_rules import MOVES, RULES, judge
from graphopt.quantization.kernels_shadow import DQ, Op, Q, Shadow

#: Operators that are integer kernels as they stand in a model.
INTEGER_OPS: Final = frozenset(
    "ConvInteger DynamicQuantizeLSTM DynamicQuantizeMatMul MatMulBnb4 MatMulInteger MatMulIntegerToFloat "
    "MatMulNBits QAttention QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv "
    "QLinearGlobalAveragePool "
    "QLinearLeakyRelu QLinearMatMul QLinearMul QLinearSigmoid QLinearSoftmax QLinearWhere QMoE "
    "GatherBlockQuantized".split()
)
# What to do about operators that need not be there.
_INSTEAD: Final = {
    "BatchNormalization": "fold it into the layer before it (fold-conv-bn) before quantizing",
    "Clip": "let the range of the quantized output be within its bounds: then it goes away",
    "Identity": "remove it (remove-identity) before quantizing",
    "Relu": "let the range of the quantized output start at 0: then it goes away",
}
#: Operators that move integers as they are stored, such as a Gather of int8 embeddings.
STORED_MOVES: Final = MOVES - {"ArgMax"} | {"Concat", "DepthToSpace", "GatherND", "Pad", "SpaceToDepth"}
_WIDEST: Final = 16
_ARITHMETIC: Final = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_PLUMBING: Final = frozenset((Q, DQ, "DynamicQuantizeLinear", "Constant", "If", "Loop", "Scan"))


@dataclass(frozen=True)
class Prediction:
    """What a node runs as.

    Attributes:
        node: the node.
        kernel: the integer kernel; None when it stays float.
        reason: why it stays float; "" when it does not.
        fix: what to do about it; "" when there is nothing.
        quantized: it has a DequantizeLinear before it or a QuantizeLinear behind it.
        eligible: the target has an integer kernel for this operator.
        merged: it becomes part of a neighbour's kernel.
    """

    node: Node
    kernel: str | None
    reason: str = ""
    fix: str = ""
    quantized: bool = False
    eligible: bool = False
    merged: bool = False

    @property
    def moves_data(self) -> bool:
        """The operator only moves data: as an integer kernel it saves time, but computes nothing."""
        return self.node.op in MOVES


def has_integer_kernel(op: str, target: str) -> bool:
    """Whether `target` has an integer kernel for the standard operator `op`, under the right conditions."""
    if target == "ort-cuda":
        return op == "MatMul"
    if target == "tensorrt":
        return op in kernels_tensorrt.INTEGER
    return op in RULES


def predict(view: GraphView, target: str = "ort-cpu") -> list[Prediction]:
    """Predict every node of a body except QuantizeLinear, DequantizeLinear, constants and control flow.

    Args:
        view: the body, with facts about types and shapes.
        target: "ort-cpu" (also for "portable"), "ort-cuda" or "tensorrt".

    Returns:
        predictions in topological order.
    """
    judged = kernels_tensorrt.judge(view) if target == "tensorrt" else _judged(view, target)
    found = []
    for node in view.nodes():
        if node.op in _PLUMBING:
            continue
        verdict, merged = judged.get(node, (Verdict(None), False))
        standard = view.is_op(node, node.op)
        eligible = standard and has_integer_kernel(node.op, target)
        prediction = Prediction(
            node,
            verdict.kernel,
            verdict.reason,
            verdict.fix,
            quantized=is_quantized(view, node),
            eligible=eligible or verdict.kernel is not None,
            merged=merged,
        )
        found.append(_explained(prediction, target) if verdict.kernel is None else prediction)
    return found


def _explained(prediction: Prediction, target: str) -> Prediction:
    """With a reason where no rule gave one."""
    if not prediction.quantized:
        return replace(prediction, reason="not quantized", fix="")
    if prediction.reason:
        return prediction
    node = prediction.node
    if prediction.merged or prediction.eligible:
        return replace(prediction, reason="it becomes part of an operator that stays float")
    who = {"ort-cuda": "onnxruntime's CUDA provider", "tensorrt": "TensorRT"}.get(target, "onnxruntime")
    fix = _INSTEAD.get(node.op, "leave it in float, without conversions of its own")
    reason = f"{who} has no integer kernel for {node.op}, so the conversions around it only cost time"
    return replace(prediction, reason=reason, fix=fix)


def is_quantized(view: GraphView, node: Node) -> bool:
    """Whether a DequantizeLinear stands before `node`, or a QuantizeLinear behind an arithmetic operator.

    What else stands before a QuantizeLinear may just be where the float part of the model ends.
    """
    if any(source is not None and source.op == DQ for source in map(view.producer, node.inputs)):
        return True
    return node.op in _ARITHMETIC and any(
        reader.op == Q for t in node.outputs if t.name for reader in view.consumers(t)
    )


def _judged(view: GraphView, target: str) -> dict[Node, tuple[Verdict, bool]]:
    """Verdicts per node of the model; the flag says that the node is part of another's kernel."""
    shadow = Shadow(view)
    settle(shadow)
    found: dict[Node, tuple[Verdict, bool]] = {}
    dynamic = {op: fused for op in shadow.ops if (fused := fused_product(shadow, op)) is not None}
    for op in shadow.ops:
        verdict = dynamic.get(op) or _verdict(shadow, op, target)
        for i, node in enumerate(op.nodes):
            if node not in found and node.op not in (Q, DQ):
                found[node] = (verdict, i > 0 and op.op not in (Q, DQ, node.op))
        if verdict.kernel is not None:
            for node in _absorbed(verdict):
                found[node] = (verdict, True)
            for quantizer in _quantizers_of(shadow, op, verdict):
                for node in quantizer.nodes:
                    if node.op not in (Q, DQ):
                        found[node] = (verdict, True)
    return found


def _verdict(shadow: Shadow, op: Op, target: str) -> Verdict:
    if op.op in INTEGER_OPS and (
        op.domain or op.op in ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
    ):
        return Verdict(op.op)
    stored = quant_type(shadow.dtype(op.input(0)))
    if stored is not None and stored.bits <= _WIDEST and shadow.is_op(op, *STORED_MOVES):
        return Verdict(op.op)
    verdict = judge(shadow, op)
    if target == "ort-cuda" and verdict.kernel not in (None, "MatMulNBits"):
        return Verdict(
            None,
            "onnxruntime's CUDA provider has no integer kernels but MatMulNBits: quantized nodes run in "
            "float",
            "quantize the weights only (int4-weights), or deploy with TensorRT",
        )
    return verdict


def _absorbed(verdict: Verdict) -> Iterator[Node]:
    for op in verdict.absorbed:
        yield from op.nodes


def _quantizers_of(shadow: Shadow, op: Op, verdict: Verdict) -> Iterator[Op]:
    """The Qs that a kernel takes in, which may stand for a Relu or Clip that they imply."""
    last = verdict.absorbed[0] if verdict.absorbed else op
    for key in last.outputs:
        for reader, slot in shadow.edges(key):
            if slot == 0 and shadow.is_op(reader, Q):
                yield reader
