"""The usual operators in torch, for gradients. What is not here is said to be missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx

from graphopt.graph.view import GraphView
from graphopt.ir import Node

Value = Any  # a torch.Tensor; torch is there only for those who want it


class CannotCompute(Exception):
    """A form of an operator that is not implemented."""


@dataclass(frozen=True)
class Call:
    """One execution of a node.

    Attributes:
        torch: the module.
        graph: the node's body.
        node: the node.
        inputs: its values, None where omitted.
    """

    torch: Any
    graph: GraphView
    node: Node
    inputs: Sequence[Value | None]

    def __getitem__(self, slot: int) -> Value:
        """An input; None where it is omitted."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or the schema's default."""
        value = self.graph.attr(self.node, name)
        return default if value is None else value

    def ints(self, slot: int, name: str) -> list[int] | None:
        """A list of integers that is an input or, in older opsets, an attribute."""
        value = self[slot]
        if value is not None:
            return [int(v) for v in value.reshape(-1).tolist()]
        listed = self.attr(name)
        return None if listed is None else [int(v) for v in listed]

    @property
    def functional(self) -> Any:
        """torch.nn.functional."""
        return self.torch.nn.functional


def _conv(c: Call) -> Value:
    x, w, b = c[0], c[1], c[2]
    axes = x.dim() - 2
    strides, dilations = c.attr("strides", [1] * axes), c.attr("dilations", [1] * axes)
    x = _padded(c, x, list(w.shape[2:]), strides, dilations, 0.0)
    if axes not in (1, 2, 3):
        raise CannotCompute(f"{axes} spatial axes")
    run = (c.functional.conv1d, c.functional.conv2d, c.functional.conv3d)[axes - 1]
    return run(x, w, b, stride=strides, dilation=dilations, groups=c.attr("group", 1))


def _padded(
    c: Call, x: Value, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], fill: float
) -> Value:
    axes = len(kernel)
    auto = c.attr("auto_pad", "NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    pads = list(c.attr("pads", [0] * (2 * axes)))
    if auto == "VALID":
        return x
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * (2 * axes)
        for i, (n, k, s, d) in enumerate(zip(x.shape[2:], kernel, strides, dilations, strict=True)):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            small, large = total // 2, total - total // 2
            pads[i], pads[axes + i] = (small, large) if auto == "SAME_UPPER" else (large, small)
    if not any(pads):
        return x
    flat = [p for i in reversed(range(axes)) for p in (pads[i], pads[axes + i])]
    return c.functional.pad(x, flat, value=fill)


def _pool(c: Call, *, largest: bool) -> Value:
    x, kernel = c[0], list(c.attr("kernel_shape"))
    axes = len(kernel)
    strides, dilations = c.attr("strides", [1] * axes), c.attr("dilations", [1] * axes)
    if c.attr("ceil_mode", 0) or axes not in (1, 2, 3) or len(c.node.outputs) > 1:
        raise CannotCompute("ceil_mode, indices, or more than three axes")
    if largest:
        x = _padded(c, x, kernel, strides, dilations, -np.inf)
        run = (c.functional.max_pool1d, c.functional.max_pool2d, c.functional.max_pool3d)[axes - 1]
        return run(x, kernel, stride=strides, dilation=dilations)
    padded = _padded(c, x, kernel, strides, dilations, 0.0)
    if padded.shape != x.shape and not c.attr("count_include_pad", 0):
        raise CannotCompute("padding that does not count")
    run = (c.functional.avg_pool1d, c.functional.avg_pool2d, c.functional.avg_pool3d)[axes - 1]
    return run(padded, kernel, stride=strides)


def _gemm(c: Call) -> Value:
    a = c[0].T if c.attr("transA", 0) else c[0]
    b = c[1].T if c.attr("transB", 0) else c[1]
    y = c.attr("alpha", 1.0) * (a @ b)
    return y if c[2] is None else y + c.attr("beta", 1.0) * c[2]


def _batch_norm(c: Call) -> Value:
    if c.attr("training_mode", 0):
        raise CannotCompute("training mode")
    return c.functional.batch_norm(c[0], c[3], c[4], c[1], c[2], False, 0.0, c.attr("epsilon", 1e-5))


def _layer_norm(c: Call) -> Value:
    axis = int(c.attr("axis", -1)) % c[0].dim()
    return c.functional.layer_norm(c[0], list(c[0].shape[axis:]), c[1], c[2], c.attr("epsilon", 1e-5))


def _rms_norm(c: Call) -> Value:
    axes = list(range(int(c.attr("axis", -1)) % c[0].dim(), c[0].dim()))
    power = (c[0] * c[0]).mean(axes, keepdim=True)
    return c[0] * c.torch.rsqrt(power + c.attr("epsilon", 1e-5)) * c[1]


def _clip(c: Call) -> Value:
    low = c[1] if c[1] is not None else c.attr("min")
    high = c[2] if c[2] is not None else c.attr("max")
    if low is None and high is None:
        return c[0]
    as_number = [v if v is None else float(v) for v in (low, high)]
    return c.torch.clamp(c[0], *as_number)


def _gelu(c: Call) -> Value:
    form = c.attr("approximate", "none")
    return c.functional.gelu(c[0], approximate=form.decode() if isinstance(form, bytes) else form)


def _reduce(c: Call, how: str) -> Value:
    axes, keep = c.ints(1, "axes"), bool(c.attr("keepdims", 1))
    if not axes:
        if c.attr("noop_with_empty_axes", 0):
            return c[0]
        axes = list(range(c[0].dim()))
    if how == "l2":
        return c.torch.sqrt((c[0] * c[0]).sum(axes, keepdim=keep))
    if how in ("amax", "amin"):
        return getattr(c.torch, how)(c[0], axes, keepdim=keep)
    return getattr(c.torch, how)(c[0], axes, keepdim=keep)


def _reshape(c: Call) -> Value:
    shape = c.ints(1, "shape") or []
    if not c.attr("allowzero", 0):
        shape = [c[0].shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return c[0].reshape(shape)


def _flatten(c: Call) -> Value:
    axis = int(c.attr("axis", 1)) % (c[0].dim() + 1)
    return c[0].reshape(int(np.prod(c[0].shape[:axis])), -1)


def _transpose(c: Call) -> Value:
    return c[0].permute(c.attr("perm") or list(reversed(range(c[0].dim()))))


def _squeeze(c: Call) -> Value:
    axes = c.ints(1, "axes")
    if axes is None:
        return c[0].squeeze()
    x = c[0]
    for axis in sorted((a % c[0].dim() for a in axes), reverse=True):
        x = x.squeeze(axis)
    return x


def _unsqueeze(c: Call) -> Value:
    axes = c.ints(1, "axes") or []
    x = c[0]
    for axis in sorted(a % (c[0].dim() + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


def _split(c: Call) -> Value:
    axis = int(c.attr("axis", 0))
    sizes = c.ints(1, "split")
    if sizes is None:
        size = -(-c[0].shape[axis] // len(c.node.outputs))
        return c.torch.split(c[0], size, axis)
    return c.torch.split(c[0], sizes, axis)


def _slice(c: Call) -> Value:
    starts, ends = c.ints(1, "starts") or [], c.ints(2, "ends") or []
    axes = c.ints(3, "axes") or list(range(len(starts)))
    steps = c.ints(4, "steps") or [1] * len(starts)
    x = c[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        at = range(*slice(start, end, step).indices(x.shape[axis]))
        if step < 0 and end < -x.shape[axis]:
            at = range(*slice(start, None, step).indices(x.shape[axis]))
        x = x.index_select(axis, c.torch.tensor(list(at), dtype=c.torch.int64))
    return x


def _gather(c: Call) -> Value:
    axis = int(c.attr("axis", 0)) % c[0].dim()
    at = c[1].to(c.torch.int64)
    at = c.torch.where(at < 0, at + c[0].shape[axis], at)
    picked = c[0].index_select(axis, at.reshape(-1))
    return picked.reshape(*c[0].shape[:axis], *at.shape, *c[0].shape[axis + 1 :])


def _pad(c: Call) -> Value:
    mode = c.attr("mode", "constant")
    pads, x = c.ints(1, "pads") or [], c[0]
    if (mode.decode() if isinstance(mode, bytes) else mode) != "constant" or c[3] is not None:
        raise CannotCompute("padding other than with a constant on all axes")
    flat = [p for i in reversed(range(x.dim())) for p in (pads[i], pads[x.dim() + i])]
    return c.functional.pad(x, flat, value=float(c[2]) if c[2] is not None else c.attr("value", 0.0))


def _cast(c: Call) -> Value:
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(_dtype(c.attr("to"))))
    return c[0].to(getattr(c.torch, kind.name))


def _dtype(value: Any) -> int:
    return int(value) if isinstance(value, int | np.integer) else onnx.helper.np_dtype_to_tensor_dtype(value)


def _constant_of_shape(c: Call) -> Value:
    value = c.node.attrs.get("value")
    fill = np.zeros(1, np.float32) if value is None else np.asarray(getattr(value, "values", value))
    made = c.torch.from_numpy(np.ascontiguousarray(fill))
    return made.reshape(()).expand([int(n) for n in c[0].tolist()])


def _expand(c: Call) -> Value:
    return c[0].expand(c.torch.broadcast_shapes(c[0].shape, tuple(int(n) for n in c[1].tolist())))


def _shape(c: Call) -> Value:
    shape = list(c[0].shape)
    return c.torch.tensor(shape[c.attr("start", 0) : c.attr("end", None)], dtype=c.torch.int64)


def _divide(c: Call) -> Value:
    if c[0].is_floating_point():
        return c[0] / c[1]
    return c.torch.div(c[0], c[1], rounding_mode="trunc")


def _prelu(c: Call) -> Value:
    return c.torch.where(c[0] < 0, c[0] * c[1], c[0])


def _hard_sigmoid(c: Call) -> Value:
    return c.torch.clamp(c.attr("alpha", 0.2) * c[0] + c.attr("beta", 0.5), 0.0, 1.0)


def _fold(name: str) -> Callable[[Call], Value]:
    """An operator of two operands, applied to all inputs one after another."""

    def run(c: Call) -> Value:
        total = c[0]
        for value in c.inputs[1:]:
            total = getattr(c.torch, name)(total, value)
        return total

    return run


def _one(name: str) -> Callable[[Call], Value]:
    return lambda c: getattr(c.torch, name)(c[0])


def _two(name: str) -> Callable[[Call], Value]:
    return lambda c: getattr(c.torch, name)(c[0], c[1])


def _spatial(x: Value) -> list[int]:
    return list(range(2, x.dim()))


OPS: Final[dict[str, Callable[[Call], Value]]] = {
    "Abs": _one("abs"),
    "Add": _two("add"),
    "And": _two("logical_and"),
    "AveragePool": lambda c: _pool(c, largest=False),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda c: c.torch.cat(list(c.inputs), int(c.attr("axis"))),
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Cos": _one("cos"),
    "Div": _divide,
    "Dropout": lambda c: c[0],
    "Elu": lambda c: c.functional.elu(c[0], c.attr("alpha", 1.0)),
    "Equal": _two("eq"),
    "Erf": _one("erf"),
    "Exp": _one("exp"),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda c: c[0].mean(_spatial(c[0]), keepdim=True),
    "GlobalMaxPool": lambda c: c.torch.amax(c[0], _spatial(c[0]), keepdim=True),
    "Greater": _two("gt"),
    "GreaterOrEqual": _two("ge"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda c: c.functional.hardswish(c[0]),
    "Identity": lambda c: c[0],
    "InstanceNormalization": lambda c: c.functional.instance_norm(
        c[0], weight=c[1], bias=c[2], eps=c.attr("epsilon", 1e-5)
    ),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda c: c.functional.leaky_relu(c[0], c.attr("alpha", 0.01)),
    "Less": _two("lt"),
    "LessOrEqual": _two("le"),
    "Log": _one("log"),
    "LogSoftmax": lambda c: c.torch.log_softmax(c[0], int(c.attr("axis", -1))),
    "MatMul": _two("matmul"),
    "Max": _fold("maximum"),
    "MaxPool": lambda c: _pool(c, largest=True),
    "Min": _fold("minimum"),
    "Mul": _two("mul"),
    "Neg": _one("neg"),
    "Not": _one("logical_not"),
    "Or": _two("logical_or"),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _two("pow"),
    "RMSNormalization": _rms_norm,
    "Reciprocal": _one("reciprocal"),
    "ReduceL2": lambda c: _reduce(c, "l2"),
    "ReduceMax": lambda c: _reduce(c, "amax"),
    "ReduceMean": lambda c: _reduce(c, "mean"),
    "ReduceMin": lambda c: _reduce(c, "amin"),
    "ReduceSum": lambda c: _reduce(c, "sum"),
    "Relu": _one("relu"),
    "Reshape": _reshape,
    "Selu": lambda c: c.functional.selu(c[0]),
    "Shape": _shape,
    "Sigmoid": _one("sigmoid"),
    "Sin": _one("sin"),
    "Slice": _slice,
    "Softmax": lambda c: c.torch.softmax(c[0], int(c.attr("axis", -1))),
    "Softplus": lambda c: c.functional.softplus(c[0]),
    "Split": _split,
    "Sqrt": _one("sqrt"),
    "Squeeze": _squeeze,
    "Sub": _two("sub"),
    "Sum": _fold("add"),
    "Tanh": _one("tanh"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda c: c.torch.where(c[0], c[1], c[2]),
}
