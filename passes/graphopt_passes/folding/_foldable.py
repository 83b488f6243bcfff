"""Which nodes may be computed ahead of time, and how large their results can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx

from graphopt.passkit import RANDOM_OPS, AttributeRef, GraphView, Node, Tensor
from graphopt_passes.cleanup.cse import may_train

_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_NOT_TENSORS = frozenset(
    {
        "ConcatFromSequence",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SplitToSequence",
    }
)
_NEVER = RANDOM_OPS | _QUANTIZATION | _NOT_TENSORS | {"Constant"}
_STRING = onnx.TensorProto.STRING

_PACKED = {
    getattr(onnx.TensorProto, name): bits
    for name, bits in {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.items()
    if hasattr(onnx.TensorProto, name)
}

_SMALL = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8, *_PACKED})
_WIDENING = frozenset({"BitShift", "BitwiseAnd", "Cast", "CastLike"})
_MANY = 256

_HALF = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
_MOVES = frozenset(
    "Compress Concat ConstantOfShape DepthToSpace Equal Expand Flatten Gather GatherElements GatherND "
    "Greater GreaterOrEqual Identity IsInf IsNaN Less LessOrEqual NonZero Pad Reshape ScatterElements "
    "ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze Where".split()
)

# Results with no more elements than input 0 has.
_NOT_LARGER = frozenset(
    "Abs ArgMax ArgMin Cast CastLike Ceil Clip Compress Cos CumSum Erf Exp Flatten Floor Identity IsInf "
    "IsNaN Log Neg Not Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu "
    "Reshape Round Shape Sigmoid Sign Sin Size Slice Softmax Split Sqrt Squeeze Tanh TopK Transpose Trilu "
    "Unique Unsqueeze".split()
)
_ELEMENTWISE = frozenset(
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Gather GatherElements GatherND Greater "
    "GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub Where Xor".split()
)


def may_fold(node: Node, graph: GraphView) -> bool:
    """Whether `node` gives the same tensors on every run from the same inputs.

    Quantization is left alone on purpose: folding a DequantizeLinear would undo it. So are weights that are
    stored in a byte or less and widened when the model is loaded.
    """
    if node.domain or node.op in _NEVER or not graph.is_op(node, node.op):
        return False
    if _widens_weight(node, graph) or _spreads_scales(node, graph):
        return False
    for value in node.attrs.values():
        if isinstance(value, AttributeRef):
            return False
    if any(True for _ in node.bodies()) or not graph.has_op(node.op):
        return False
    if node.op == "Dropout":
        return not may_train(node, graph)
    if node.op == "BatchNormalization":
        return not graph.attr(node, "training_mode") and sum(bool(t.name) for t in node.outputs) == 1
    return True


def _widens_weight(node: Node, graph: GraphView) -> bool:
    """Whether `node` unpacks, or makes wide, a constant of many small integers."""
    if node.op not in _WIDENING or graph.dtype(node.inputs[0]) not in _SMALL:
        return False
    stored = graph.constant(node.inputs[0])
    return stored is not None and math.prod(stored.shape) >= _MANY


def _spreads_scales(node: Node, graph: GraphView) -> bool:
    """Whether `node` repeats the scales or offsets of a weight's blocks for all of their elements."""
    if node.op != "Gather" or not graph.is_constant(node.inputs[0]):
        return False
    readers = graph.consumers(node.outputs[0])
    return bool(readers) and all(r.op in ("Mul", "Sub") and _reads_widened(r, graph) for r in readers)


def _reads_widened(node: Node, graph: GraphView) -> bool:
    makers = [graph.producer(t) for t in node.inputs]
    if any(m is not None and m.op == "Sub" and _reads_widened(m, graph) for m in makers):
        return True
    return any(m is not None and _widens_weight(m, graph) for m in makers)


def is_exact(node: Node, graph: GraphView) -> bool:
    """Whether computing `node` apart from its neighbours gives the bits that it gives among them.

    Not so for arithmetic in half precision and rounding to it, see `FoldHalfConstants`. What moves or
    compares elements is exact in any precision, and so is widening them.
    """
    if node.op in _MOVES:
        return True
    if node.op in ("Cast", "CastLike"):
        return graph.dtype(node.outputs[0]) not in _HALF
    return not any(graph.dtype(t) in _HALF for t in (*node.inputs, *node.outputs) if t.name)


def element_bits(dtype: int) -> int | None:
    """Bits that one stored element of an onnx.TensorProto.DataType takes; None for strings."""
    if dtype == _STRING:
        return None
    if dtype in _PACKED:
        return _PACKED[dtype]
    return int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize) * 8


def elements_at_most(node: Node, tensor: Tensor, graph: GraphView, known: Mapping[Tensor, int]) -> int | None:
    """How many elements the output `tensor` of `node` has at most, before computing it.

    Args:
        node: a node all of whose inputs are in `known`.
        tensor: one of its outputs.
        graph: the body.
        known: bounds of the elements of the inputs.

    Returns:
        The bound, None if there is none: the result could be of any size.
    """
    shape = graph.static_shape(tensor)
    if shape is not None:
        return math.prod(shape)
    sizes = [known[t] for t in node.inputs if t.name]
    if node.op in _NOT_LARGER:
        return max(sizes[0], 1)
    if node.op == "NonZero":
        rank = graph.rank(node.inputs[0])
        return None if rank is None else rank * sizes[0]
    bound: Callable[[list[int]], int] | None = None
    if node.op in _ELEMENTWISE:
        bound = math.prod
    elif node.op == "Concat":
        bound = sum
    return None if bound is None else bound([max(s, 1) for s in sizes])


def stored_bytes(elements: int, dtype: int) -> int | None:
    """Bytes that so many elements take in a file."""
    bits = element_bits(dtype)
    return None if bits is None else (elements * bits + 7) // 8
