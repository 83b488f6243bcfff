"""embed-postprocessing: what callers do with an output becomes part of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import onnx

from graphopt.passkit import (
    Adapter,
    Array,
    GraphView,
    Numerics,
    Pass,
    PassContext,
    PortRewriter,
    Rewriter,
    UserError,
    with_type,
)
from graphopt_passes.conversion._ports import FLOATS, dims_of, elem_type_of, find, info_of, main_of, type_name


@dataclass(frozen=True)
class EmbedPostprocessing(Pass):
    """f(x) = y becomes f'(x) = softmax(y), sigmoid(y) or argmax(y), along `axis`, under the output's name.

    The result is compared with what numpy makes of the original's output. An index of argmax may differ where
    the values that it points at agree within the model's noise. Whatever else reads y inside the model still
    reads y.

    Refuses (before any work) when: there is no such output, or none is named although there are several; it
    is not of a float type; its rank is not declared (softmax and argmax) or it has no such axis; softmax is
    along another axis than the last, and the opset is older than 13. Leaves alone, with a reason: an output
    that no node computes.
    """

    name: ClassVar[str] = "embed-postprocessing"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    changes_interface: ClassVar[bool] = True

    op: Literal["softmax", "argmax", "sigmoid"] = field(metadata={"help": "what is done to the output"})
    output: str = field(default="", metadata={"help": "the output; may be left out where there is one only"})
    axis: int = field(default=-1, metadata={"help": "of softmax and argmax: the axis of the classes"})
    keepdims: bool = field(default=False, metadata={"help": "of argmax: the axis stays, with a size of 1"})

    def check(self, bodies: Sequence[GraphView], ctx: PassContext) -> None:
        """Refuse an output that is not there, or that this cannot be done to."""
        self._require(info_of(find(main_of(bodies).outputs, self.output, "output")))

    def _require(self, info: onnx.ValueInfoProto) -> None:
        elem_type, dims = elem_type_of(info), dims_of(info)
        if elem_type not in FLOATS:
            raise UserError(f"the output {info.name!r} is of type {type_name(elem_type)}, which is no float")
        if self.op == "sigmoid":
            return
        if dims is None:
            raise UserError(f"the rank of the output {info.name!r} is not declared: where are its classes?")
        if not -len(dims) <= self.axis < len(dims):
            raise UserError(f"the output {info.name!r} is of rank {len(dims)}: it has no axis {self.axis}")

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Put the operator behind the output."""
        if not graph.is_main:
            return
        tensor = find(PortRewriter(graph).outputs, self.output, "output")
        info = PortRewriter(graph).declared("output", tensor)
        self._require(info)
        dims = dims_of(info)
        axis = self.axis if dims is None or self.op == "sigmoid" else self.axis % len(dims)
        if self.op == "sigmoid":
            op, attrs, adapter = "Sigmoid", {}, Adapter("sigmoid", sigmoid)
            after = info
        elif self.op == "softmax":
            assert dims is not None
            if graph.opset < 13 and axis != len(dims) - 1:
                raise UserError(
                    f"Softmax of opset {graph.opset} is not along one axis only",
                    fix="raise the model first: --passes 'raise-opset{least=13},...'",
                )
            op, attrs, adapter = "Softmax", {"axis": axis}, _softmax(axis)
            after = info
        else:
            assert dims is not None
            op, attrs = "ArgMax", {"axis": axis, "keepdims": int(self.keepdims)}
            adapter = _argmax(axis, self.keepdims)
            one = [onnx.TensorShapeProto.Dimension(dim_value=1)] if self.keepdims else []
            after = with_type(info, onnx.TensorProto.INT64, [*dims[:axis], *one, *dims[axis + 1 :]])
        where = "" if self.op == "sigmoid" else f" along axis {axis}"
        PortRewriter(graph).replace_output(tensor, after, [(op, (), attrs)], adapter, f"now {self.op}{where}")


def sigmoid(value: Array) -> Array:
    """1 / (1 + exp(-x)), computed in double precision."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-value.astype(np.float64)))).astype(value.dtype)


def _softmax(axis: int) -> Adapter:
    def forward(value: Array) -> Array:
        x = value.astype(np.float64)
        with np.errstate(invalid="ignore"):
            e = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
            result: Array = (e / e.sum(axis=axis, keepdims=True)).astype(value.dtype)
        return result

    return Adapter(f"softmax along {axis}", forward)


def _argmax(axis: int, keepdims: bool) -> Adapter:
    def forward(value: Array) -> Any:
        return value.argmax(axis=axis, keepdims=keepdims).astype(np.int64)

    return Adapter(f"argmax along {axis}, keepdims {keepdims}", forward, points=(axis, keepdims))
