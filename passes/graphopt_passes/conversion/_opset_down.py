"""One adapter for each version of an operator whose nodes can be written as the version before it.

An adapter is called with the opset already lowered: its nodes are written for the oldest version. It
returns the node that stands there now, or None when that one is written for the oldest version already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx

from graphopt.passkit import Constant, Node, RefusedRewrite, Tensor
from graphopt_passes.conversion._opset_adapters import Adapter, Step

_T = onnx.TensorProto
_INTEGERS: Final = (_T.INT8, _T.INT16, _T.INT32, _T.INT64, _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64)


def _constant_ints(step: Step, slot: int, what: str) -> list[int] | None:
    """The integers at an input; None when it is omitted."""
    tensor = step.graph.input(step.node, slot)
    if tensor is None:
        return None
    values = step.graph.ints(tensor)
    if values is None:
        raise RefusedRewrite(f"{what} ({tensor.name}) is computed: an older {step.node.op} wants a constant")
    return values


def _constant_float(step: Step, slot: int, what: str) -> float | None:
    tensor = step.graph.input(step.node, slot)
    if tensor is None:
        return None
    value = step.graph.scalar(tensor)
    if value is None:
        raise RefusedRewrite(f"{what} ({tensor.name}) is computed: an older {step.node.op} wants a constant")
    return float(value)


def _axes_to_attribute(step: Step) -> Node | None:
    """Squeeze, Unsqueeze, Reduce*: which axes is an attribute."""
    axes = _constant_ints(step, 1, "which axes")
    noop = step.known("noop_with_empty_axes") if "noop_with_empty_axes" in step.node.attrs else 0
    if noop and not axes:
        raise RefusedRewrite("noop_with_empty_axes: an older one reduces all axes")
    step.drop("noop_with_empty_axes")
    step.inputs([step.x])
    if axes:
        step.graph.set_attr(step.node, "axes", axes)
    return step.node


def _split_18(step: Step) -> Node:
    """Without sizes all parts are equal; since 18 the last one may be smaller."""
    graph, node = step.graph, step.node
    if graph.input(node, 1) is None:
        shape, parts = graph.shape(step.x), len(node.outputs)
        axis = step.known("axis")
        size = None if shape is None else shape[axis]
        if not isinstance(size, int) or size % parts:
            raise RefusedRewrite(f"whether {step.x.name} splits into {parts} equal parts is not known")
    step.drop("num_outputs")
    return node


def _split_13(step: Step) -> Node:
    sizes = _constant_ints(step, 1, "the sizes")
    step.inputs([step.x])
    if sizes is not None:
        step.graph.set_attr(step.node, "split", sizes)
    return step.node


def _softmax_13(step: Step) -> Node:
    """Along one axis; before, over all axes from it on: the same for the last one."""
    shape, axis = step.graph.shape(step.x), step.known("axis")
    if shape is None:
        raise RefusedRewrite(f"the rank of {step.x.name} is not known")
    axis %= max(len(shape), 1)
    if any(d != 1 for d in shape[axis + 1 :]):
        raise RefusedRewrite(f"{step.node.op} is along axis {axis}, which is not the last of {len(shape)}")
    step.graph.set_attr(step.node, "axis", axis)
    return step.node


def _dropout_mode(step: Step) -> Node:
    mode = step.graph.input(step.node, 2)
    if mode is not None and step.graph.scalar(mode) is not False:
        raise RefusedRewrite("it is, or may be, in training mode")
    ratio = _constant_float(step, 1, "the ratio")
    mask = step.graph.output(step.node, 1)
    if mask is not None and step.graph.is_read(mask):
        raise RefusedRewrite(f"the mask {mask.name} is read, and means something else there")
    step.drop("seed")
    step.inputs([step.x])
    if ratio is not None:
        step.graph.set_attr(step.node, "ratio", ratio)
    return step.node


def _batch_norm_14(step: Step) -> Node:
    if step.known("training_mode"):
        raise RefusedRewrite("it is in training mode")
    step.drop("training_mode")
    return step.node


def _per_tensor(step: Step) -> Node:
    """QuantizeLinear, DequantizeLinear: per axis came with 13."""
    shape = step.graph.static_shape(step.node.inputs[1])
    if shape is None or int(np.prod(shape)) != 1:
        raise RefusedRewrite("it is quantized per channel, which came with opset 13")
    step.drop("axis")
    return step.node


def _grid_sample_20(step: Step) -> Node:
    if step.graph.rank(step.x) != 4:
        raise RefusedRewrite("only images of rank 4 could be sampled before opset 20")
    mode = step.known("mode")
    step.graph.set_attr(step.node, "mode", {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode))
    return step.node


def _mod_28(step: Step) -> Node:
    """Of floats only fmod=1 was defined before 28."""
    if not step.known("fmod") and step.graph.dtype(step.x) not in _INTEGERS:
        raise RefusedRewrite("fmod=0 of floats came with opset 28")
    return step.node


def _reshape_14(step: Step) -> Node:
    """A zero meant the input's dim before 14: fine where there is none, or where it is that dim."""
    graph, node = step.graph, step.node
    if step.known("allowzero"):
        target, shape = graph.sym_value(node.inputs[1]), graph.shape(step.x)
        for place, dim in enumerate(target if target is not None else (0,)):
            same = shape is not None and place < len(shape) and shape[place] == dim
            if not same and (dim == 0 or not isinstance(dim, int)):
                raise RefusedRewrite(f"allowzero, and a dim in {node.inputs[1].name} may be zero")
    step.drop("allowzero")
    return node


def _shape_15(step: Step) -> Node | None:
    """A part of the shape is the shape, sliced."""
    start, end = step.known("start"), step.node.attrs.get("end")
    step.drop("start", "end")
    if not start and end is None:
        return step.node
    graph = step.graph
    whole = graph.op("Shape", [step.x], hint=step.hint("whole"))
    last = end if end is not None else np.iinfo(np.int64).max
    bounds = [
        graph.new_constant(step.hint(n), np.asarray([v], np.int64))
        for n, v in (("start", start), ("end", last))
    ]
    graph.replace(step.node.outputs[0], "Slice", [whole, *bounds])
    return None


def _constant_12(step: Step) -> Node | None:
    """Values of a plain number or list become a tensor."""
    attrs = step.node.attrs
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in attrs:
            value = step.known(name)
            step.graph.set_attr(step.node, "value", Constant("", np.asarray(value, dtype)))
            step.drop(name)
            return step.node
    if "value" in attrs or "sparse_value" in attrs:
        return step.node
    raise RefusedRewrite("a Constant of strings needs opset 12")


def _cast_like(step: Step) -> Node | None:
    like = step.node.inputs[1]
    dtype = step.graph.dtype(like)
    if dtype is None:
        raise RefusedRewrite(f"the type of {like.name} is not known")
    return step.graph.replace(step.node.outputs[0], "Cast", [step.x], attrs={"to": dtype})


def _number(step: Step, value: float, like: Tensor) -> Constant:
    dtype = step.graph.dtype(like)
    if dtype is None:
        raise RefusedRewrite(f"the type of {like.name} is not known")
    return step.graph.new_constant(
        step.hint(f"{value:g}"), np.asarray(value, onnx.helper.tensor_dtype_to_np_dtype(dtype))
    )


def _hard_swish(step: Step) -> Node | None:
    """X * HardSigmoid(x; 1/6, 1/2)."""
    gate = step.graph.op("HardSigmoid", [step.x], attrs={"alpha": 1 / 6, "beta": 0.5}, hint=step.hint("gate"))
    step.graph.replace(step.node.outputs[0], "Mul", [step.x, gate])
    return None


def _mish(step: Step) -> Node | None:
    """X * tanh(softplus(x))."""
    inner = step.graph.op(
        "Tanh", [step.graph.op("Softplus", [step.x], hint=step.hint("softplus"))], hint=step.hint("gate")
    )
    step.graph.replace(step.node.outputs[0], "Mul", [step.x, inner])
    return None


def _gelu(step: Step) -> Node | None:
    """X / 2 * (1 + erf(x / sqrt 2)), or with tanh(sqrt(2 / pi) * (x + 0.044715 x^3))."""
    graph, x = step.graph, step.x
    if step.known("approximate") == "tanh":
        cube = graph.op("Mul", [graph.op("Mul", [x, x]), x])
        inner = graph.op("Add", [x, graph.op("Mul", [cube, _number(step, 0.044715, x)])])
        bend = graph.op("Tanh", [graph.op("Mul", [inner, _number(step, float(np.sqrt(2 / np.pi)), x)])])
    else:
        bend = graph.op("Erf", [graph.op("Mul", [x, _number(step, float(np.sqrt(0.5)), x)])])
    gate = graph.op("Add", [bend, _number(step, 1.0, x)])
    half = graph.op("Mul", [x, _number(step, 0.5, x)])
    graph.replace(step.node.outputs[0], "Mul", [half, gate])
    return None


def _layer_norm(step: Step) -> Node | None:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the axes from `axis` on, computed in float."""
    graph, node, x = step.graph, step.node, step.x
    if any(
        graph.output(node, slot) is not None and graph.is_read(node.outputs[slot])
        for slot in range(1, len(node.outputs))
    ):
        raise RefusedRewrite("its mean or deviation is read")
    rank, dtype = graph.rank(x), graph.dtype(x)
    if rank is None or dtype not in (_T.FLOAT, _T.DOUBLE) or step.known("stash_type") != _T.FLOAT:
        raise RefusedRewrite(f"the rank of {x.name} is not known, or it is not float")
    first = step.known("axis") % rank
    axes = list(range(first, rank))

    def mean(value: Tensor) -> Tensor:
        if step.new >= 18:
            held = graph.new_constant(step.hint("axes"), np.asarray(axes, np.int64))
            return graph.op("ReduceMean", [value, held], hint=step.hint("mean"))
        return graph.op("ReduceMean", [value], attrs={"axes": axes}, hint=step.hint("mean"))

    centred = graph.op("Sub", [x, mean(x)], hint=step.hint("centred"))
    variance = mean(graph.op("Mul", [centred, centred]))
    deviation = graph.op("Sqrt", [graph.op("Add", [variance, _number(step, step.known("epsilon"), x)])])
    result = graph.op("Div", [centred, deviation], hint=step.hint("normalized"))
    bias = graph.input(node, 2)
    if bias is None:
        graph.replace(node.outputs[0], "Mul", [result, node.inputs[1]])
    else:
        graph.replace(node.outputs[0], "Add", [graph.op("Mul", [result, node.inputs[1]]), bias])
    return None


_REDUCE: Final = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

#: (operator, version whose nodes are rewritten for the version before) -> adapter.
ADAPTERS: Final[dict[tuple[str, int], Adapter]] = {
    ("BatchNormalization", 14): _batch_norm_14,
    ("CastLike", 15): _cast_like,
    ("Constant", 12): _constant_12,
    ("DequantizeLinear", 13): _per_tensor,
    ("Dropout", 12): _dropout_mode,
    ("Gelu", 20): _gelu,
    ("GridSample", 20): _grid_sample_20,
    ("HardSwish", 14): _hard_swish,
    ("Hardmax", 13): _softmax_13,
    ("LayerNormalization", 17): _layer_norm,
    ("LogSoftmax", 13): _softmax_13,
    ("Mish", 18): _mish,
    ("Mod", 28): _mod_28,
    ("QuantizeLinear", 13): _per_tensor,
    **{(f"Reduce{kind}", 18): _axes_to_attribute for kind in _REDUCE},
    ("ReduceSum", 13): _axes_to_attribute,
    ("Reshape", 14): _reshape_14,
    ("Shape", 15): _shape_15,
    ("Softmax", 13): _softmax_13,
    ("Split", 13): _split_13,
    ("Split", 18): _split_18,
    ("Squeeze", 13): _axes_to_attribute,
    ("Unsqueeze", 13): _axes_to_attribute,
}

#: (operator, version) -> attribute and the values of it that came with that version.
NEW_VALUES: Final[dict[tuple[str, int], tuple[str, Sequence[Any]]]] = {
    ("Pad", 19): ("mode", ("wrap",)),
    ("Resize", 19): ("coordinate_transformation_mode", ("half_pixel_symmetric",)),
    ("ScatterElements", 18): ("reduction", ("max", "min")),
    ("ScatterND", 18): ("reduction", ("max", "min")),
}
#: Changed behind a signature that says nothing of it.
REDEFINED: Final[dict[tuple[str, int], str]] = {
    ("DFT", 20): "the axis became an input",
    ("GroupNormalization", 21): "scale and bias were per group",
    ("Resize", 13): "opset 11 wants inputs that may be left out since",
    ("RoiAlign", 16): "half pixels came with opset 16",
}
