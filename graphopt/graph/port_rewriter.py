"""Changes of the model as callers see it: its inputs, its outputs, and what it says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from graphopt.errors import RefusedRewrite
from graphopt.graph import ports
from graphopt.graph.annotations import Annotations, strip
from graphopt.graph.journal import Refusal
from graphopt.interface import Adapter, Array, Kind
from graphopt.ir import Node, Tensor, Variable

if TYPE_CHECKING:
    from graphopt.graph.rewriter import Rewriter

#: Operator type, inputs besides the value itself, attributes.
Op = tuple[str, Sequence[Tensor], Mapping[str, Any]]
Dim = onnx.TensorShapeProto.Dimension


class PortRewriter:
    """Changes the interface of the main graph. Each method is one site.

    A change that is refused (RefusedRewrite) is undone and noted, as everywhere.

    Args:
        graph: the rewriter of the main graph.
    """

    def __init__(self, graph: Rewriter) -> None:
        assert graph.is_main, "only the main graph has an interface"
        self._graph, self._state = graph, graph._state

    # -- questions -------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[Variable]:
        """The inputs that must be fed: those without a default value."""
        graph = self._state.model.graph
        return [t for t in graph.inputs if t not in graph.defaults]

    @property
    def outputs(self) -> list[Tensor]:
        """The outputs."""
        return list(self._state.model.graph.outputs)

    def declared(self, kind: Kind, tensor: Tensor) -> onnx.ValueInfoProto:
        """A copy of what the model declares about an input or output."""
        return ports.declared(self._state.model.graph, kind, tensor)

    def refuse(self, kind: Kind, name: str, reason: str) -> None:
        """Note that an input or output was looked at and left alone, and why."""
        self._state.journal.refuse(Refusal(self._state.pass_name, name, kind, reason))

    # -- values ----------------------------------------------------------------------------------

    def replace_input(
        self, old: Variable, info: onnx.ValueInfoProto, ops: Sequence[Op], adapter: Adapter, why: str
    ) -> bool:
        """An input of another type or layout takes the name of `old`; `ops`, one after the other, compute
        `old` from it. Its readers stay as they are.

        Returns:
            Whether it was done.
        """

        def act() -> None:
            ports.replace_input(
                self._state, old, info, adapter, why, lambda x, _: self._chain(x, ops, old.name)
            )

        return self._site("input", old, why, act)

    def replace_output(
        self, old: Tensor, info: onnx.ValueInfoProto, ops: Sequence[Op], adapter: Adapter, why: str
    ) -> bool:
        """An output that `ops`, one after the other, compute from `old` takes its name.

        Returns:
            Whether it was done.
        """

        def act() -> None:
            ports.replace_output(
                self._state, old, info, adapter, why, lambda y, name: self._chain(y, ops, name)
            )

        return self._site("output", old, why, act)

    def _chain(self, x: Tensor, ops: Sequence[Op], name: str) -> Node:
        node: Node | None = None
        for op, inputs, attrs in ops:
            node = self._graph._make_node(op, [x, *inputs], attrs, "", name, 1)
            x = node.outputs[0]
        assert node is not None, "nothing computes it"
        return node

    def _site(self, kind: Kind, tensor: Tensor, why: str, act: Callable[[], None]) -> bool:
        state, name = self._state, tensor.name
        if self._graph.keeps(tensor):
            self.refuse(kind, name, f"{name} is kept")
            return False
        try:
            with state.open_bare_site(state.model.graph, name, kind, why) as site:
                act()
        except RefusedRewrite as refused:
            self.refuse(kind, name, refused.reason)
            return False
        return not site.refused

    def strip(self, what: Annotations, why: str) -> bool:
        """Take what computes nothing out of the whole model, as one site; False when nothing changed."""
        return strip(self._state, what, why)

    # -- dims ------------------------------------------------------------------------------------

    def bind_dim(self, name: str, axes: Sequence[tuple[str, int]], size: int, why: str) -> bool:
        """A dim has one size from now on, wherever it is declared.

        Args:
            name: of the symbolic dim; "" for none.
            axes: input and axis of further dims.
            size: the size.
            why: the change in words.
        """

        def bound(dim: Dim) -> Dim:
            return Dim(dim_value=size, denotation=dim.denotation)

        def change(tensor: str, axis: int, dim: Dim) -> Dim:
            return bound(dim) if name and dim.dim_param == name else dim

        def at_input(tensor: str, axis: int, dim: Dim) -> Dim:
            return bound(dim) if (tensor, axis) in axes else change(tensor, axis, dim)

        def act() -> None:
            before = ports.declarations(self._state)
            ports.rewrite_dims(self._state, change, at_input)
            ports.settle_dims(self._state)
            ports.note_dims(self._state, before, self._cuts(before), why)

        return self._dim_site(name or ", ".join(f"{t}:{a}" for t, a in axes), why, act)

    def rename_dims(self, names: Mapping[str, str], axes: Mapping[tuple[str, int], str], why: str) -> bool:
        """Symbolic dims get other names, wherever they are declared; `axes` names dims of inputs."""

        def change(tensor: str, axis: int, dim: Dim) -> Dim:
            new = names.get(dim.dim_param) if dim.dim_param else None
            return dim if new is None else Dim(dim_param=new, denotation=dim.denotation)

        def at_input(tensor: str, axis: int, dim: Dim) -> Dim:
            new = axes.get((tensor, axis))
            if new is None:
                return change(tensor, axis, dim)
            return Dim(dim_param=new, denotation=dim.denotation)

        def act() -> None:
            before = ports.declarations(self._state)
            ports.rewrite_dims(self._state, change, at_input)
            ports.note_dims(self._state, before, {}, why)

        anchor = ", ".join([*names, *(f"{t}:{a}" for t, a in axes)])
        return self._dim_site(anchor, why, act)

    def _dim_site(self, anchor: str, why: str, act: Callable[[], None]) -> bool:
        state = self._state
        with state.open_bare_site(state.model.graph, anchor, "dim", why) as site:
            act()
        return not site.refused

    def _cuts(self, before: Mapping[tuple[Kind, str], onnx.ValueInfoProto]) -> dict[str, Adapter]:
        """For the inputs that have fewer open dims now, what brings a value of any size to the one wanted."""
        found: dict[str, Adapter] = {}
        now = ports.declarations(self._state)
        for (kind, name), old in before.items():
            if kind == "input" and now[kind, name] != old:
                dims = now[kind, name].type.tensor_type.shape.dim
                sizes = {i: d.dim_value for i, d in enumerate(dims) if d.HasField("dim_value")}
                found[name] = cut(sizes)
        return found


def cut(sizes: Mapping[int, int]) -> Adapter:
    """Brings values to `sizes`, by axis: what is too long is cut off, what is too short is repeated."""

    def forward(value: Array) -> Array:
        for axis, size in sizes.items():
            if axis < value.ndim and value.shape[axis] not in (0, size):
                value = np.take(value, np.arange(size) % value.shape[axis], axis=axis)
        return value

    words = f"cut to {dict(sorted(sizes.items()))}"
    return Adapter(words, forward, lambda value: value)
