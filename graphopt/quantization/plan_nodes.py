"""What nodes need to run on integers: which inputs are data, weight and bias, and what stands against it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from graphopt.graph.view import GraphView
from graphopt.ir import Constant, Node, Tensor
from graphopt.quantization.profiles import PASS_THROUGH, Profile

FLOAT = int(onnx.TensorProto.FLOAT)


class Unfit(Exception):
    """A node cannot be quantized; `reason` says why, None when it is no candidate in the first place."""

    def __init__(self, reason: str | None) -> None:
        self.reason = reason
        super().__init__(reason or "")


@dataclass(frozen=True, eq=False)
class Core:
    """How a Conv, Gemm or MatMul is quantized.

    Attributes:
        data: slots of activations.
        weight: slot of the constant weight, None between two activations.
        axis: the weight's axis with a scale per index, where scales per channel are asked for; None where
            the kernel takes one scale only.
        unsigned_weight: the weight is the left operand, which has to be unsigned like activations.
        bias: node and slot that read the bias, one number per output; None without one.
        end: the node that computes the result: the Add behind a MatMul that the runtime merges into it.
        output_optional: it has an integer kernel without a quantized output too.
        pairs_output: the output can be quantized in the same kernel.
        bias_apart: the third operand of a Gemm is none that the kernel takes: it is added behind the kernel.
    """

    data: tuple[int, ...]
    weight: int | None
    axis: int | None
    unsigned_weight: bool
    bias: tuple[Node, int] | None
    end: Node
    output_optional: bool
    pairs_output: bool = True
    bias_apart: bool = False


def is_quantized(graph: GraphView, node: Node) -> bool:
    """Whether `node` already reads something that was quantized."""
    return any(graph.producer_op(t, "DequantizeLinear") is not None for t in node.inputs if t.name)


def read_core(graph: GraphView, node: Node, profile: Profile) -> Core:
    """What `node` needs.

    Raises:
        Unfit: it cannot run on integers.
    """
    if is_quantized(graph, node):
        raise Unfit(None)
    if graph.keeps(node):
        raise Unfit("it is kept")
    if node.op in profile.no_kernel:
        raise Unfit(profile.no_kernel[node.op])
    if len(node.inputs) < 2 or graph.output(node, 0) is None:
        raise Unfit(None)
    for slot in (0, 1):
        require_float(graph, graph.input(node, slot))
    if node.op in ("Conv", "ConvTranspose"):
        return _conv(graph, node)
    return _gemm(graph, node) if node.op == "Gemm" else _matmul(graph, node)


def require_float(graph: GraphView, tensor: Tensor | None) -> None:
    """Raise Unfit unless `tensor` is known to be float32."""
    dtype = graph.dtype(tensor)
    name = tensor.name if tensor is not None else "an input"
    if dtype is None:
        raise Unfit(f"the element type of {name} is not known")
    if dtype != FLOAT:
        raise Unfit(f"{name} is {onnx.TensorProto.DataType.Name(dtype).lower()}: only float32 is quantized")


def _conv(graph: GraphView, node: Node) -> Core:
    weight = graph.constant(node.inputs[1])
    if weight is None:
        raise Unfit(f"its weight {node.inputs[1].name} is no constant")
    if graph.is_constant(node.inputs[0]):
        raise Unfit("all that it reads is constant")
    bias = _constant_bias(graph, node, 2)
    # A ConvTranspose of several groups has its outputs on two axes of the weight.
    axis: int | None = 0
    if node.op == "ConvTranspose":
        axis = 1 if graph.attr(node, "group") in (None, 1) else None
    return Core((0,), 1, axis, False, bias, node, False)


def _constant_bias(graph: GraphView, node: Node, slot: int) -> tuple[Node, int] | None:
    bias = graph.input(node, slot)
    if bias is None:
        return None
    if not graph.is_constant(bias):
        raise Unfit(f"its bias {bias.name} is no constant")
    return node, slot


def _gemm(graph: GraphView, node: Node) -> Core:
    flags = [bool(graph.attr(node, name) or 0) for name in ("transA", "transB")]
    constant = [graph.is_constant(t) for t in node.inputs[:2]]
    if all(constant):
        raise Unfit("all that it reads is constant")
    if graph.attr(node, "alpha") != 1.0:
        raise Unfit("its alpha is not 1, which the integer kernel does not take (normalize-gemm folds it)")
    bias = graph.input(node, 2)
    if bias is not None and graph.attr(node, "beta") != 1.0:
        raise Unfit("its beta is not 1, which the integer kernel does not take (normalize-gemm folds it)")
    place, apart = None, False
    if bias is not None:
        apart = not _is_per_column(graph, bias, node.outputs[0])
        place = None if apart else (node, 2)
    if constant[1]:
        data, weight, axis = (0,), 1, 0 if flags[1] else 1
    elif constant[0]:
        data, weight, axis = (1,), 0, None
    else:
        return Core((0, 1), None, None, False, place, node, True, not apart, apart)
    return Core(data, weight, axis, weight == 0, place, node, True, not apart, apart)


def _matmul(graph: GraphView, node: Node) -> Core:
    constant = [graph.is_constant(t) for t in node.inputs[:2]]
    if all(constant):
        raise Unfit("all that it reads is constant")
    if constant[1]:
        # A stack of matrices with a scale per column makes the kernel fail when it runs.
        axis = 1 if graph.rank(node.inputs[1]) == 2 else None
        core = Core((0,), 1, axis, False, None, node, True)
    elif constant[0]:
        core = Core((1,), 0, None, True, None, node, True)
    else:
        core = Core((0, 1), None, None, False, None, node, True)
    add = graph.sole_consumer(node.outputs[0])
    if add is None or not graph.is_op(add, "Add") or len(add.inputs) != 2 or not graph.is_live(add):
        return core
    slot = 1 if add.inputs[0] is node.outputs[0] else 0
    per_column = _is_per_column(graph, add.inputs[slot], node.outputs[0])
    if not _is_merged(graph, node, add.inputs[slot]):
        # The Add stays apart and in float: what follows it is quantized for its own sake.
        return replace(core, pairs_output=not per_column)
    if not per_column:
        raise Unfit(
            "onnxruntime makes a Gemm in float of it and the Add behind it, whose other operand is not one "
            "constant per column (with fuse-matmul-add before, the two are kept apart)"
        )
    return replace(core, bias=(add, slot), end=add)


def _is_per_column(graph: GraphView, bias: Tensor, product: Tensor) -> bool:
    """Whether `bias` is constant, with one number for each column of `product`."""
    shape, columns = graph.static_shape(bias), graph.shape(product)
    if not graph.is_constant(bias) or not shape or not columns:
        return False
    return shape[-1] == columns[-1] and len(shape) <= len(columns) and all(d == 1 for d in shape[:-1])


def _is_merged(graph: GraphView, node: Node, addend: Tensor) -> bool:
    """Whether onnxruntime makes one Gemm of this MatMul and the Add of `addend` behind it.

    It does so for matrices, and for stacks of them whose dims it knows. The Gemm has an integer kernel if its
    bias is int32, or if its output is quantized.
    """
    ranks, rank = [graph.rank(t) for t in node.inputs[:2]], graph.rank(addend)
    if ranks[1] != 2 or rank is None:
        return False
    if ranks[0] == 2:
        return rank in (1, 2) or (rank == 0 and not graph.is_constant(addend))
    return graph.static_shape(node.inputs[0]) is not None and rank == 1


def hides_product(graph: GraphView, end: Node) -> bool:
    """Whether onnxruntime fails to see that the product which `end` computes could run on integers.

    So it is with a Relu or Clip behind it that has one reader itself, unless what comes out is quantized.
    """
    reader = graph.sole_consumer(end.outputs[0])
    if reader is None or not graph.is_op(reader, "Relu", "Clip"):
        return False
    return graph.n_uses(reader.outputs[0]) == 1 and not graph.is_output(reader.outputs[0])


# -- operators between those ---------------------------------------------------------------------------


def glue_data(graph: GraphView, node: Node, profile: Profile) -> tuple[int, ...] | None:
    """Slots of what a glue operator computes with, None when it has no integer kernel as it stands."""
    slots = profile.glue[node.op]
    slots = tuple(range(len(node.inputs))) if slots is None else slots
    if graph.keeps(node) or is_quantized(graph, node) or graph.output(node, 0) is None:
        return None
    for slot in slots:
        tensor = graph.input(node, slot)
        if graph.dtype(tensor) != FLOAT:
            return None
        constant = graph.constant(tensor)
        if constant is not None and not is_finite(graph, constant):
            return None
    if all(graph.is_constant(node.inputs[s]) for s in slots):
        return None
    return None if is_broken(graph, node) else slots


def is_broken(graph: GraphView, node: Node) -> bool:
    """Whether onnxruntime would make a kernel of `node` that does not work, between quantized tensors.

    With dilations an average pool becomes a model that does not load. Where the last window may reach past
    the padding, which counts, its averages are wrong.
    """
    if not graph.is_op(node, "AveragePool"):
        return False
    over = bool(graph.attr(node, "ceil_mode")) and bool(graph.attr(node, "count_include_pad"))
    return "dilations" in node.attrs or over


def is_finite(graph: GraphView, constant: Constant) -> bool:
    """Whether all elements are finite."""
    array = graph.array(constant)
    return array is not None and bool(np.isfinite(np.asarray(array, np.float32)).all())


def moves_only(graph: GraphView, node: Node) -> bool:
    """Whether `node` only moves (or picks the largest) elements of its first input, on integers too."""
    if node.op not in PASS_THROUGH or not graph.is_op(node, node.op) or graph.keeps(node):
        return False
    if is_quantized(graph, node):
        return False
    if graph.dtype(graph.input(node, 0)) != FLOAT or graph.is_constant(graph.input(node, 0)):
        return False
    if node.op == "Resize":
        return _text(graph.attr(node, "mode")) == "nearest" and graph.input(node, 1) is None
    if node.op == "MaxPool":
        return graph.output(node, 1) is None
    # Of a Split the kernel for integers needs every part to be quantized.
    return node.op != "Split" or all(t.name and graph.is_read(t) for t in node.outputs)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def absorbed_bounds(graph: GraphView, node: Node | None) -> tuple[float, float] | None:
    """Bounds of a Relu or constant Clip around 0, which a range can imply; None for anything else."""
    if node is None or not graph.is_op(node, "Relu", "Clip") or graph.keeps(node):
        return None
    if node.op == "Relu":
        return 0.0, np.inf
    bounds = [-np.inf, np.inf]
    for slot in (1, 2):
        tensor = graph.input(node, slot)
        if tensor is not None:
            value = graph.scalar(tensor)
            if value is None:
                return None
            bounds[slot - 1] = float(value)
    low, high = bounds
    return (low, high) if low <= 0.0 <= high and low < high else None
