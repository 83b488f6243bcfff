"""One adapter for each version of an operator that changed what a node means.

An adapter is called with the opset already raised: the nodes that it makes are written for the newest
version, and those versions in between that it passes over are its own business. It returns the node that
stands there now, or None when that one is up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx

from graphopt.passkit import AttributeRef, Node, RefusedRewrite, Rewriter, Tensor
from graphopt_passes.conversion._opset_schemas import default, schema_at

_DOUBLE: Final = onnx.TensorProto.DOUBLE


@dataclass(frozen=True)
class Step:
    """A node on the way to a newer opset.

    Attributes:
        graph: the body that it stands in.
        node: the node.
        old: the opset that it was written for.
        new: the opset that it is raised to.
    """

    graph: Rewriter
    node: Node
    old: int
    new: int

    def attr(self, name: str) -> Any:
        """The attribute's value, or its default in the old version."""
        if name in self.node.attrs:
            return self.node.attrs[name]
        schema = schema_at(self.node.op, self.old)
        return None if schema is None else default(schema, name)

    def known(self, name: str) -> Any:
        """As `attr`, for what decides how the node is rewritten.

        Raises:
            RefusedRewrite: it refers to an attribute of the enclosing function.
        """
        value = self.attr(name)
        if isinstance(value, AttributeRef):
            raise RefusedRewrite(f"{name} is an attribute of the function")
        return value

    def drop(self, *names: str) -> None:
        """Drop attributes."""
        for name in names:
            if name in self.node.attrs:
                self.graph.set_attr(self.node, name, None)

    def ints(self, name: str) -> Tensor | None:
        """The attribute as an int64 vector to be read at an input; None when it is not given."""
        value = self.node.attrs.get(name)
        if value is None:
            return None
        hint = self.hint(name)
        if isinstance(value, AttributeRef):
            return self.graph.op("Constant", [], attrs={"value_ints": value}, hint=hint)
        return self.graph.new_constant(hint, np.asarray(value, np.int64).reshape(-1))

    def scalar(self, name: str, like: Tensor) -> Tensor:
        """The float attribute, given or not, as a scalar of the type of `like`."""
        value, dtype = self.attr(name), self.graph.dtype(like)
        hint = self.hint(name)
        if dtype is not None and not isinstance(value, AttributeRef):
            with np.errstate(over="ignore"):  # what a bound beyond the type's means is no bound
                array = np.asarray(value, onnx.helper.tensor_dtype_to_np_dtype(dtype))
            return self.graph.new_constant(hint, array)
        if isinstance(value, AttributeRef):
            held = self.graph.op("Constant", [], attrs={"value_float": value}, hint=hint)
        else:
            held = self.graph.new_constant(hint, np.float32(value))
        if not self.graph.has_op("CastLike"):
            raise RefusedRewrite(f"the type of {like.name} is not known")
        return self.graph.op("CastLike", [held, like], hint=hint)

    def hint(self, what: str) -> str:
        """A name for something that belongs to the node."""
        return f"{self.node.outputs[0].name or self.node.op}/{what}"

    def inputs(self, tensors: Sequence[Tensor | None]) -> None:
        """The node reads `tensors`; omitted ones at the end go."""
        kept = list(tensors)
        while kept and kept[-1] is None:
            kept.pop()
        self.graph.set_inputs(self.node, kept)

    @property
    def x(self) -> Tensor:
        """Input 0."""
        return self.node.inputs[0]


Adapter = Callable[[Step], Node | None]


def _axes_to_input(step: Step) -> Node:
    """Squeeze, Unsqueeze, Reduce*: which axes is an input now."""
    axes = step.ints("axes")
    empty = axes is not None and step.node.attrs["axes"] == []
    step.drop("axes")
    if axes is not None and not empty:
        step.inputs([step.x, axes])
    return step.node


def _split_13(step: Step) -> Node:
    sizes = step.ints("split")
    step.drop("split")
    if sizes is not None:
        step.inputs([step.x, sizes])
    return step.node


def _split_18(step: Step) -> Node:
    if step.graph.input(step.node, 1) is None:
        step.graph.set_attr(step.node, "num_outputs", len(step.node.outputs))
    return step.node


def _softmax_13(step: Step) -> Node:
    """Softmax, LogSoftmax, Hardmax: over all dims from `axis` on became over `axis` alone."""
    graph, node, x = step.graph, step.node, step.x
    axis = step.known("axis")
    shape = graph.shape(x)
    if shape is not None:
        place = axis + len(shape) if axis < 0 else axis
        if all(d == 1 for d in shape[place + 1 :]):
            graph.set_attr(node, "axis", place)
            return node
    dims = graph.op("Shape", [x], hint=step.hint("shape"))
    flat = graph.op("Flatten", [x], attrs={"axis": axis}, hint=step.hint("flat"))
    result = graph.op(node.op, [flat], attrs={"axis": -1}, hint=step.hint("rows"))
    attrs = {"allowzero": 1} if step.new >= 14 else {}
    graph.replace(node.outputs[0], "Reshape", [result, dims], attrs=attrs)
    return flat_node(graph, result)


def flat_node(graph: Rewriter, tensor: Tensor) -> Node:
    """The node that computes `tensor`."""
    node = graph.producer(tensor)
    assert node is not None
    return node


def _dropout_mask(step: Step) -> Node:
    """The mask has been boolean since 10, and true where nothing is dropped since 12."""
    mask = step.graph.output(step.node, 1)
    if mask is not None:
        if step.graph.is_read(mask):
            raise RefusedRewrite(f"the mask {mask.name} is read, and means something else now")
        step.graph.omit_output(step.node, 1)
    return step.node


def _dropout_12(step: Step) -> Node:
    _dropout_mask(step)
    ratio = None
    if "ratio" in step.node.attrs:
        value = step.known("ratio")
        ratio = step.graph.new_constant(step.hint("ratio"), np.float32(value))
    step.drop("ratio")
    step.inputs([step.x, ratio])
    return step.node


def _clip_11(step: Step) -> Node:
    x, attrs = step.x, step.node.attrs
    # The bounds that go without saying are float's, of any type that may be clipped.
    wide = step.graph.dtype(x) == _DOUBLE
    low = step.scalar("min", x) if "min" in attrs or wide else None
    high = step.scalar("max", x) if "max" in attrs or wide else None
    step.drop("min", "max")
    step.inputs([x, low, high])
    return step.node


def _pad_11(step: Step) -> Node:
    pads = step.ints("pads")
    value = step.scalar("value", step.x) if "value" in step.node.attrs else None
    step.drop("pads", "value")
    step.inputs([step.x, pads, value])
    return step.node


def _slice_10(step: Step) -> Node:
    starts, ends, axes = (step.ints(name) for name in ("starts", "ends", "axes"))
    step.drop("starts", "ends", "axes")
    step.inputs([step.x, starts, ends, axes])
    return step.node


def _topk_10(step: Step) -> Node:
    k = step.known("k")
    step.drop("k")
    step.inputs([step.x, step.graph.new_constant(step.hint("k"), np.asarray([k], np.int64))])
    return step.node


def _batch_norm_9(step: Step) -> Node:
    if step.known("spatial") != 1:
        raise RefusedRewrite("spatial = 0: one statistic for each element has no counterpart since opset 9")
    step.drop("spatial")
    return step.node


def _batch_norm_14(step: Step) -> Node:
    for slot in range(len(step.node.outputs) - 1, 0, -1):
        tensor = step.graph.output(step.node, slot)
        if tensor is not None:
            if step.graph.is_read(tensor):
                raise RefusedRewrite(f"{tensor.name} is an output for training, which is another one now")
            step.graph.omit_output(step.node, slot)
    return step.node


def _scatter_11(step: Step) -> Node:
    node = step.node
    return step.graph.replace(node.outputs[0], "ScatterElements", list(node.inputs), attrs=dict(node.attrs))


def _one_hot_11(step: Step) -> Node:
    """Since 11 a negative index counts from the end; before it, that was a row of off values."""
    indices = step.x
    values = step.graph.array(indices)
    if values is not None and (values.size == 0 or values.min() >= 0):
        return step.node
    producer = step.graph.producer_op(indices, "ArgMax", "ArgMin", "NonZero", "Shape", "Size")
    if producer is None:
        raise RefusedRewrite(f"an index in {indices.name} might be negative, which means something else now")
    return step.node


def _roi_align_16(step: Step) -> Node:
    step.graph.set_attr(step.node, "coordinate_transformation_mode", "output_half_pixel")
    return step.node


def _grid_sample_20(step: Step) -> Node:
    mode = step.known("mode")
    step.graph.set_attr(step.node, "mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))
    return step.node


def _dft_20(step: Step) -> Node:
    axis = step.graph.new_constant(step.hint("axis"), np.int64(step.known("axis")))
    length = step.graph.input(step.node, 1)
    step.drop("axis")
    step.inputs([step.x, length, axis])
    return step.node


def _group_norm_21(step: Step) -> Node:
    """Scale and bias are per channel since 21; they were per group."""
    graph, node = step.graph, step.node
    groups = step.known("num_groups")
    one, minus = (
        graph.new_constant(step.hint(n), np.asarray([v], np.int64)) for n, v in (("one", 1), ("all", -1))
    )
    channels = graph.op("Shape", [step.x], attrs={"start": 1, "end": 2}, hint=step.hint("channels"))
    count = graph.new_constant(step.hint("groups"), np.asarray([groups], np.int64))
    repeat = graph.op("Concat", [one, graph.op("Div", [channels, count])], attrs={"axis": 0})
    tensors: list[Tensor | None] = [step.x]
    for slot, name in ((1, "scale"), (2, "bias")):
        column = graph.op("Unsqueeze", [node.inputs[slot], one], hint=step.hint(name))
        tensors.append(
            graph.op("Reshape", [graph.op("Expand", [column, repeat]), minus], hint=step.hint(name))
        )
    if graph.dtype(step.x) == _DOUBLE:
        graph.set_attr(node, "stash_type", _DOUBLE)
    step.inputs(tensors)
    return node


def _no_counterpart(reason: str) -> Adapter:
    def refuse(step: Step) -> Node:
        raise RefusedRewrite(reason)

    return refuse


_REDUCE: Final = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

#: (operator, version that changed it) -> adapter.
ADAPTERS: Final[dict[tuple[str, int], Adapter]] = {
    ("BatchNormalization", 9): _batch_norm_9,
    ("BatchNormalization", 14): _batch_norm_14,
    ("Clip", 11): _clip_11,
    ("DFT", 20): _dft_20,
    ("Dropout", 10): _dropout_mask,
    ("Dropout", 12): _dropout_12,
    ("GridSample", 20): _grid_sample_20,
    ("GroupNormalization", 21): _group_norm_21,
    ("Hardmax", 13): _softmax_13,
    ("LogSoftmax", 13): _softmax_13,
    ("OneHot", 11): _one_hot_11,
    ("Pad", 11): _pad_11,
    **{(f"Reduce{kind}", 18): _axes_to_input for kind in _REDUCE},
    ("ReduceSum", 13): _axes_to_input,
    ("RoiAlign", 16): _roi_align_16,
    ("Scan", 9): _no_counterpart("Scan runs over a batch at opset 8, and no longer does"),
    ("Scatter", 11): _scatter_11,
    ("Slice", 10): _slice_10,
    ("Softmax", 13): _softmax_13,
    ("Split", 13): _split_13,
    ("Split", 18): _split_18,
    ("Squeeze", 13): _axes_to_input,
    ("TopK", 10): _topk_10,
    ("Unsqueeze", 13): _axes_to_input,
}
