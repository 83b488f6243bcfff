"""convert-io: another float type at the model's border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

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
from graphopt_passes.conversion._ports import (
    FLOATS,
    TYPES,
    elem_type_of,
    find,
    info_of,
    inputs_of,
    main_of,
    np_dtype,
    type_name,
)


@dataclass(frozen=True)
class ConvertIo(Pass):
    """f(x) = y becomes f'(x') = y' with x = Cast(x'), y' = Cast(y): another float type at the border.

    Without names: all float inputs and outputs. The model inside is as it was; `merge-casts` removes what
    cancels, as behind `convert-fp16`. The original is compared on the values that the new type can hold.

    Refuses (before any work) when: a named input or output is not there, or is not of a float type. Leaves
    alone, with a reason: an input that is an output as well, or has a default value; an output that no node
    computes.
    """

    name: ClassVar[str] = "convert-io"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    changes_interface: ClassVar[bool] = True

    dtype: Literal["float16", "bfloat16", "float32", "float64"] = field(
        default="float16", metadata={"help": "what callers see from now on"}
    )
    inputs: tuple[str, ...] = field(default=(), metadata={"help": "inputs to change"})
    outputs: tuple[str, ...] = field(default=(), metadata={"help": "outputs to change"})

    def check(self, bodies: Sequence[GraphView], ctx: PassContext) -> None:
        """Refuse names that the model does not have, and types that are not floats."""
        for kind, names, tensors in (
            ("input", self.inputs, inputs_of(main_of(bodies))),
            ("output", self.outputs, main_of(bodies).outputs),
        ):
            for name in names:
                elem_type = elem_type_of(info_of(find(tensors, name, kind)))
                if elem_type not in FLOATS:
                    raise UserError(
                        f"the {kind} {name!r} is of type {type_name(elem_type)}, which is no float"
                    )

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Change the inputs, then the outputs."""
        if not graph.is_main:
            return
        self._change(graph, "input", self.inputs, PortRewriter(graph).inputs)
        self._change(graph, "output", self.outputs, PortRewriter(graph).outputs)

    def _change(
        self, graph: Rewriter, kind: Literal["input", "output"], names: Sequence[str], tensors: Sequence[Any]
    ) -> None:
        named = bool(self.inputs or self.outputs)
        chosen = [find(tensors, name, kind) for name in names] if named else list(dict.fromkeys(tensors))
        new = TYPES[self.dtype]
        for tensor in chosen:
            info = PortRewriter(graph).declared(kind, tensor)
            old = elem_type_of(info)
            if old == new or old not in FLOATS:
                continue
            adapter, why = cast(np_dtype(old), np_dtype(new)), f"{type_name(old)} -> {self.dtype}"
            if kind == "input":
                ops = [("Cast", (), {"to": old})]
                PortRewriter(graph).replace_input(tensor, with_type(info, new), ops, adapter, why)
            else:
                ops = [("Cast", (), {"to": new})]
                PortRewriter(graph).replace_output(tensor, with_type(info, new), ops, adapter, why)


def cast(old: np.dtype[Any], new: np.dtype[Any]) -> Adapter:
    """Between values of two types."""

    def forward(value: Array) -> Array:
        with np.errstate(over="ignore"):
            return value.astype(new)

    return Adapter(f"cast to {new}", forward, lambda value: value.astype(old))
