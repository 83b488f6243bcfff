"""transpose-io: images channels first or channels last at the model's border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import onnx

from graphopt.passkit import (
    GraphView,
    Numerics,
    Pass,
    PassContext,
    PortRewriter,
    Rewriter,
    Tensor,
    UserError,
    with_type,
)
from graphopt_passes.conversion._layout import channels_at, denoted, from_layout, permuted, to_layout
from graphopt_passes.conversion._ports import FLOATS, dims_of, elem_type_of, find, info_of, inputs_of, main_of

_RANKS = (3, 4, 5)
_IMAGES = (4, 5)


@dataclass(frozen=True)
class TransposeIo(Pass):
    """f(x) = y becomes f'(x') = y' with x = Transpose(x') and y' = Transpose(y): NCHW at the border -> NHWC.

    With `layout=nhwc` channels, which were axis 1, come last; with `layout=nchw` what was last becomes
    axis 1. A Transpose is inserted behind inputs and before outputs; the model inside is as it was, so that
    passes behind it can merge and cancel these with others (`merge-transposes`). Declared dims move along
    with their names, and get denotations (DATA_BATCH, DATA_CHANNEL, DATA_FEATURE), by which a second run
    sees that there is nothing left to do.

    Without names: all float inputs and outputs of rank 4 and 5. With names: these, of any type, of rank 3
    to 5.

    Refuses (before any work) when: a named input or output is not there, or is not of rank 3 to 5. Leaves
    alone, with a reason: what is denoted to have the layout already; an input that is an output as well, or
    has a default value; an output that no node computes.
    """

    name: ClassVar[str] = "transpose-io"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    changes_interface: ClassVar[bool] = True

    inputs: tuple[str, ...] = field(default=(), metadata={"help": "inputs to change"})
    outputs: tuple[str, ...] = field(default=(), metadata={"help": "outputs to change"})
    layout: Literal["nhwc", "nchw"] = field(
        default="nhwc", metadata={"help": "what callers see from now on: channels last, or first"}
    )

    def check(self, bodies: Sequence[GraphView], ctx: PassContext) -> None:
        """Refuse names that the model does not have, and ranks that have no layout."""
        for kind, names, tensors in (
            ("input", self.inputs, inputs_of(main_of(bodies))),
            ("output", self.outputs, main_of(bodies).outputs),
        ):
            for name in names:
                self._require(info_of(find(tensors, name, kind)), kind)

    def _require(self, info: onnx.ValueInfoProto, kind: str) -> None:
        dims = dims_of(info)
        if dims is None or len(dims) not in _RANKS:
            said = "of no declared rank" if dims is None else f"of rank {len(dims)}"
            raise UserError(
                f"the {kind} {info.name!r} is {said}: only ranks 3 to 5 have channels first or last"
            )

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Change the inputs, then the outputs."""
        if not graph.is_main:
            return
        for tensor in self._chosen(graph, "input", self.inputs, PortRewriter(graph).inputs):
            self._change(graph, "input", tensor)
        for tensor in self._chosen(graph, "output", self.outputs, PortRewriter(graph).outputs):
            self._change(graph, "output", tensor)

    def _chosen(
        self, graph: Rewriter, kind: Literal["input", "output"], names: Sequence[str], tensors: Sequence[Any]
    ) -> list[Any]:
        if names or self.inputs or self.outputs:
            found = [find(tensors, name, kind) for name in names]
            for tensor in found:
                self._require(PortRewriter(graph).declared(kind, tensor), kind)
            return found
        chosen: list[Any] = []
        for tensor in tensors:
            info = PortRewriter(graph).declared(kind, tensor)
            dims = dims_of(info)
            is_image = dims is not None and len(dims) in _IMAGES and elem_type_of(info) in FLOATS
            if is_image and not any(tensor is other for other in chosen):
                chosen.append(tensor)
        return chosen

    def _change(self, graph: Rewriter, kind: Literal["input", "output"], tensor: Tensor) -> None:
        info = PortRewriter(graph).declared(kind, tensor)
        dims = dims_of(info)
        assert dims is not None
        rank = len(dims)
        if channels_at(dims) == (rank - 1 if self.layout == "nhwc" else 1):
            PortRewriter(graph).refuse(
                kind, tensor.name, f"it is {self.layout} already, as its denotations say"
            )
            return
        perm = to_layout(self.layout, rank)  # what callers see = Transpose(what the model has, perm)
        after = with_type(info, dims=denoted([dims[axis] for axis in perm], self.layout))
        why = f"now {self.layout}"
        adapter = permuted(perm)
        if kind == "input":
            ops = [("Transpose", (), {"perm": from_layout(self.layout, rank)})]
            PortRewriter(graph).replace_input(tensor, after, ops, adapter, why)
        else:
            PortRewriter(graph).replace_output(
                tensor, after, [("Transpose", (), {"perm": perm})], adapter, why
            )
