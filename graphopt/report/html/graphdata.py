"""Drawn models as the page's script takes them: columns of numbers and tables of words, deflated."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable
from typing import Any

from graphopt.report.drawn import DrawnBody, DrawnModel, DrawnNode, GraphView
from graphopt.report.text import clean

_STATES = ("same", "removed", "added", "changed")
_KINDS = ("node", "input", "output")

#: Kinds of operators that have a colour of their own, and the operators of each.
CATEGORIES: dict[str, frozenset[str]] = {
    "compute": frozenset(
        "Conv ConvTranspose Gemm MatMul Einsum LSTM GRU RNN Attention ConvInteger MatMulInteger "
        "QLinearConv QLinearMatMul DeformConv MatMulNBits FusedConv FusedMatMul FusedGemm "
        "QGemm MultiHeadAttention "
        "GroupQueryAttention".split()
    ),
    "norm": frozenset(
        "BatchNormalization LayerNormalization InstanceNormalization GroupNormalization RMSNormalization "
        "LpNormalization LRN MeanVarianceNormalization Softmax LogSoftmax SkipLayerNormalization "
        "SimplifiedLayerNormalization SkipSimplifiedLayerNormalization".split()
    ),
    "activation": frozenset(
        "Relu LeakyRelu PRelu Elu Selu Celu Sigmoid HardSigmoid HardSwish Tanh Gelu Mish "
        "Softplus Softsign Erf "
        "Clip ThresholdedRelu Swish FastGelu QuickGelu BiasGelu".split()
    ),
    "layout": frozenset(
        "Reshape Transpose Squeeze Unsqueeze Flatten Concat Split Slice Gather "
        "GatherElements GatherND Expand "
        "Tile Pad Shape Size Identity Cast CastLike DepthToSpace SpaceToDepth Resize Upsample ScatterND "
        "ScatterElements Scatter Dropout Compress ReverseSequence Trilu".split()
    ),
    "quantize": frozenset("QuantizeLinear DequantizeLinear DynamicQuantizeLinear".split()),
    "control": frozenset("If Loop Scan SequenceMap Optional OptionalGetElement OptionalHasElement".split()),
    "constant": frozenset("Constant ConstantOfShape Range EyeLike".split()),
    "arithmetic": frozenset(
        "Add Sub Mul Div Pow Sqrt Neg Abs Exp Log Min Max Mean Sum Mod Floor Ceil Round "
        "Sign Reciprocal Where "
        "Equal Less Greater LessOrEqual GreaterOrEqual And Or Not Xor ReduceMean ReduceSum "
        "ReduceMax ReduceMin "
        "ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp ArgMax ArgMin TopK CumSum "
        "Sin Cos MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool IsNaN IsInf".split()
    ),
}
#: How the legend calls them.
LEGEND = {
    "compute": "matrix products, convolutions",
    "norm": "normalization, softmax",
    "activation": "activations",
    "arithmetic": "arithmetic, reductions, pooling",
    "layout": "shapes and layout",
    "quantize": "quantize, dequantize",
    "control": "control flow",
    "constant": "constants",
    "other": "others",
}
_BY_OP = {op: category for category, ops in CATEGORIES.items() for op in ops}


def category(op: str) -> str:
    """The kind of an operator; what is after `domain::` decides."""
    return _BY_OP.get(op.rpartition("::")[2], "other")


def packed(view: GraphView) -> str:
    """The drawing as base64 of deflated JSON: harmless in a page, whatever names the models hold."""
    text = json.dumps(columns(view), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # Names are taken as they come: a lone surrogate is no reason to fail.
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 9)).decode("ascii")


def columns(view: GraphView) -> dict[str, Any]:
    """The drawing in columns, as plain values."""
    return {
        "width": view.node_width,
        "height": view.node_height,
        "before": None if view.before is None else _model(view.before),
        "after": _model(view.after),
    }


class _Words:
    """Texts that repeat, by number."""

    def __init__(self, *first: str) -> None:
        self.numbers: dict[str, int] = {text: i for i, text in enumerate(first)}

    def __call__(self, text: str) -> int:
        # Names are shown by a script: nothing in them may drive it, or turn the direction of writing.
        return self.numbers.setdefault(clean(text), len(self.numbers))


def _model(model: DrawnModel) -> dict[str, Any]:
    ops, passes, types, attributes = _Words(), _Words(""), _Words(""), _Words()
    bodies = [_body(body, ops, passes, types, attributes) for body in model.bodies]
    return {
        "title": clean(model.title),
        "ops": list(ops.numbers),
        "categories": [category(op) for op in ops.numbers],
        "passes": list(passes.numbers),
        "types": list(types.numbers),
        "attributes": list(attributes.numbers),
        "bodies": bodies,
    }


def _body(body: DrawnBody, ops: _Words, passes: _Words, types: _Words, attributes: _Words) -> dict[str, Any]:
    nodes, tensors = body.nodes, body.tensors
    return {
        "label": clean(body.label),
        "parent": body.parent,
        "holder": body.holder,
        "pair": body.pair,
        "width": body.width,
        "height": body.height,
        "n": {
            "name": [clean(n.name) for n in nodes],
            "op": [ops(n.op) for n in nodes],
            "kind": [_KINDS.index(n.kind) for n in nodes],
            "state": [_STATES.index(n.state) for n in nodes],
            "pair": [n.pair for n in nodes],
            "by": [passes(n.made_by) for n in nodes],
            "in": [n.inputs for n in nodes],
            "out": [n.outputs for n in nodes],
            "x": [n.x for n in nodes],
            "y": [n.y for n in nodes],
            "attr": _sparse(nodes, lambda n: [attributes(text) for text in n.attributes]),
            "cap": _sparse(nodes, lambda n: n.captures),
            "changes": _sparse(nodes, lambda n: [clean(text) for text in n.changes]),
            "bodies": _sparse(nodes, lambda n: n.bodies),
            "routes": _sparse(nodes, lambda n: n.routes),
            "cut": _sparse(nodes, lambda n: n.cut),
        },
        "t": {
            "name": [clean(t.name) for t in tensors],
            "type": [types(t.type) for t in tensors],
            "kind": {str(i): t.kind for i, t in enumerate(tensors) if t.kind != "value"},
            "stats": {str(i): t.stats for i, t in enumerate(tensors) if t.stats},
        },
    }


def _sparse(nodes: Iterable[DrawnNode], values: Any) -> dict[str, Any]:
    return {str(i): found for i, n in enumerate(nodes) if (found := values(n))}
