"""Putting nodes and weights into half precision, one site each, with as few casts as that takes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from graphopt.passkit import Array, Constant, Node, Rewriter, Tensor
from graphopt_passes.quantization._half_plan import HalfPlan
from graphopt_passes.quantization._half_types import HalfSlots
from graphopt_passes.quantization._precision import FLOAT, HalfFormat


class HalfWriter:
    """Rewrites nodes of one body; every tensor and constant is converted once.

    Each node is a site of its own: before it casts to half precision, behind it casts back. A node that
    reads what another one casts back reads its half-precision result instead; a cast that nobody reads any
    more goes.
    """

    def __init__(self, graph: Rewriter, form: HalfFormat) -> None:
        self.graph, self.form = graph, form
        self._halves: dict[tuple[Tensor, bool], Tensor] = {}

    def convert(self, node: Node, slots: HalfSlots, clamped: Iterable[int] = ()) -> None:
        """`node` computes in half precision.

        Args:
            node: a live node of the body.
            slots: its slots that change.
            clamped: input slots whose values are raised to half of the most negative finite one at least.
        """
        graph, form = self.graph, self.form
        with graph.site(node, f"{node.op} in {form.name}"):
            clamped = frozenset(clamped)
            inputs: list[Tensor | None] = [
                self.half(t, clamp=slot in clamped) if slot in slots.inputs else (t if t.name else None)
                for slot, t in enumerate(node.inputs)
            ]
            old = list(node.outputs)
            hint = f"{old[slots.outputs[0]].name}_{form.name}"
            new = graph.op(node.op, inputs, attrs=dict(node.attrs), hint=hint, n_outputs=len(old))
            made = graph.producer(new[0])
            assert made is not None
            used = [bool(t.name) and graph.is_read(t) for t in old]
            cast: Node | None = None
            for slot, tensor in reversed(list(enumerate(old))):
                if not used[slot]:
                    if node.op != "Split":  # the number of its outputs has a meaning
                        graph.omit_output(made, slot)
                elif slot in slots.outputs:
                    cast = graph.replace(tensor, "Cast", [new[slot]], attrs={"to": FLOAT})
                    self._halves[tensor, False] = new[slot]
                    self._spare_casts(tensor, new[slot])
                else:
                    graph.bypass(tensor, new[slot])
            # The one that computes keeps the name; the casts are new.
            if cast is not None:
                if cast.name == node.name:
                    made.name, cast.name = cast.name, made.name
                made.doc_string, cast.doc_string = node.doc_string, ""

    def half(self, tensor: Tensor, *, clamp: bool = False) -> Tensor:
        """`tensor`, which is float32, in half precision."""
        graph = self.graph
        key = tensor, clamp
        found = self._halves.get(key)
        # A site that was undone took its casts with it.
        if found is not None and (isinstance(found, Constant) or graph.producer(found) is not None):
            return found
        values = graph.array(tensor)
        if values is not None:
            made: Tensor = graph.new_constant(self._hint(tensor), self._store(values, clamp))
        elif (source := self._uncast(tensor)) is not None and not clamp:
            made = source
        else:
            if clamp:
                floor = graph.new_constant(f"{tensor.name}_floor", np.float32(-self.form.largest / 2))
                tensor = graph.op("Max", [tensor, floor], hint=f"{tensor.name}_clamped")
            made = graph.op("Cast", [tensor], attrs={"to": self.form.onnx_type}, hint=self._hint(tensor))
        self._halves[key] = made
        return made

    def _hint(self, tensor: Tensor) -> str:
        return f"{tensor.name}_{self.form.name}"

    def _store(self, values: Array, clamp: bool) -> Array:
        if clamp:
            floor = np.float32(-self.form.largest / 2)
            values = np.where(np.isneginf(values), values, np.maximum(values, floor))
        return self.form.store(values)

    def _uncast(self, tensor: Tensor) -> Tensor | None:
        """What `tensor` is a cast of, if that is of the format already."""
        cast = self.graph.producer_op(tensor, "Cast")
        source = None if cast is None else self.graph.input(cast, 0)
        return source if source is not None and self.graph.dtype(source) == self.form.onnx_type else None

    def _spare_casts(self, tensor: Tensor, half: Tensor) -> None:
        """Whoever casts `tensor` to the format reads `half`, from which it was made, instead."""
        graph = self.graph
        for reader in graph.consumers(tensor):
            if graph.is_op(reader, "Cast") and reader.attrs.get("to") == self.form.onnx_type:
                result = reader.outputs[0]
                if not graph.is_output(result) and not graph.keeps(result):
                    graph.redirect(result, half)

    def store(self, constant: Constant) -> None:
        """Readers of an initializer read it from half precision through a Cast."""
        graph = self.graph
        reader = graph.consumers(constant)[0]
        with graph.site(reader, f"{constant.name} stored as {self.form.name}"):
            values = graph.array(constant)
            assert values is not None
            half = graph.new_constant(self._hint(constant), self.form.store(values))
            cast = graph.op(
                "Cast", [half], attrs={"to": FLOAT}, hint=f"{constant.name}_{self.form.name}_cast"
            )
            graph.redirect(constant, cast, root=reader)


def simulate(graph: Rewriter, form: HalfFormat, plan: HalfPlan, nodes: Iterable[Node]) -> None:
    """Round what `nodes` read and compute to the format, but go on computing in float32.

    A runtime that lacks kernels may compute in float32 and not round in between at all, which would make
    the error look smaller than it is where there are such kernels.
    """
    rounded: dict[tuple[Tensor, bool], Tensor] = {}

    def of(tensor: Tensor, clamp: bool) -> Tensor:
        key = tensor, clamp
        if key not in rounded:
            values = graph.array(tensor)
            if values is not None:
                if clamp:
                    values = np.maximum(values, np.float32(-form.largest / 2))
                rounded[key] = graph.new_constant(f"{tensor.name}_rounded", form.round(values))
            else:
                half = graph.op("Cast", [tensor], attrs={"to": form.onnx_type})
                rounded[key] = graph.op("Cast", [half], attrs={"to": FLOAT})
        return rounded[key]

    chosen = [n for n in nodes if n in plan.nodes]
    among = set(chosen)
    for node in chosen:
        slots = plan.nodes[node]
        inputs: list[Tensor | None] = [t if t.name else None for t in node.inputs]
        for slot in slots.inputs:
            inputs[slot] = of(node.inputs[slot], slot in plan.clamped.get(node, ()))
        for tensor in (node.outputs[s] for s in slots.outputs):
            for reader in graph.consumers(tensor):
                if reader not in among and not graph.is_op(reader, "Cast") and not graph.keeps(reader):
                    place = [i for i, t in enumerate(reader.inputs) if t is tensor]
                    for slot in place:
                        graph.set_input(reader, slot, of(tensor, False))
        graph.set_inputs(node, inputs)
