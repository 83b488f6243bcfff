"""Smaller models made from a model: fewer outputs, and tensors that are no longer computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx

from graphopt import ir
from graphopt.errors import UserError
from graphopt.extracting import declared, drop_unused, fresh_name
from graphopt.graph.facts import Facts
from graphopt.graph.index import Index
from graphopt.graph.shapes import infer
from graphopt.graph.view import Array
from graphopt.interface import UNCHANGED
from graphopt.io.importer import describe
from graphopt.model import Model


@dataclass(frozen=True)
class Swap:
    """What takes the place of a computed tensor of the main graph.

    Attributes:
        tensor: its name.
        by: an input of that name, a constant that holds the value recorded, or another tensor.
        other: name of the other tensor.
    """

    tensor: str
    by: Literal["input", "constant", "tensor"]
    other: str = ""


class Plan:
    """A model, seen as something to make smaller ones of. It is not changed.

    Attributes:
        model: the model.
        facts: what is inferred about its tensors.
        index: its links.
        nodes: the nodes of the main graph in topological order.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.index = Index(model.graph)
        self.facts: Facts = infer(model)
        self.nodes = sorted(model.graph.nodes, key=self.index.rank.__getitem__)

    @property
    def size(self) -> int:
        """Nodes, those of nested bodies and functions included."""
        return sum(len(body.nodes) for body in self.model.bodies())

    def reads(self, node: ir.Node) -> list[ir.Tensor]:
        """What a node reads, its bodies included."""
        found = [t for t in node.inputs if t.name]
        return [*found, *self.index.captured(node)] if any(True for _ in node.bodies()) else found

    def entering(self, nodes: Sequence[ir.Node]) -> list[ir.Tensor]:
        """Tensors that `nodes` read and that other nodes compute."""
        made = {t for n in nodes for t in n.outputs}
        return list(
            dict.fromkeys(
                t for n in nodes for t in self.reads(n) if t not in made and t in self.index.producer
            )
        )

    def leaving(self, nodes: Sequence[ir.Node]) -> list[ir.Tensor]:
        """Tensors that `nodes` compute and that are read elsewhere, or returned."""
        inside = set(nodes)
        return [
            t
            for n in nodes
            for t in n.outputs
            if t.name
            and (
                t in self.index.output_slots
                or any(self._outermost(r) not in inside for r in self.index.readers.get(t, ()))
            )
        ]

    def _outermost(self, node: ir.Node) -> ir.Node:
        while (holder := self.index.holder.get(self.index.home[node])) is not None:
            node = holder
        return node

    def is_returned(self, tensor: ir.Tensor) -> bool:
        """It is an output of the main graph."""
        return any(tensor is t for t in self.model.graph.outputs)

    def same_type(self, a: ir.Tensor, b: ir.Tensor) -> bool:
        """Both are known to have the same element type and dims."""
        if self.facts.dtype(a) is None or self.facts.dtype(a) != self.facts.dtype(b):
            return False
        shape = self.facts.shape(a)
        return shape is not None and shape == self.facts.shape(b)

    def build(
        self,
        *,
        outputs: Sequence[str] | None = None,
        swaps: Sequence[Swap] = (),
        values: Mapping[str, Array] | None = None,
    ) -> Model | None:
        """A copy of the model with other outputs, in which some tensors are replaced; None if impossible.

        Inputs stay, needed or not: who runs the model may feed them.

        Args:
            outputs: names of the tensors that it returns; by default what it returns now.
            swaps: what takes the place of tensors that nothing computes any more.
            values: recorded values of tensors, for constants and for types that are not inferred.
        """
        part = self.model.copy()
        part.interface = UNCHANGED
        twins = dict(zip(_tensors(self.model), _tensors(part), strict=True))
        originals = {t.name: t for t in twins}
        graph, index = part.graph, Index(part.graph)
        try:
            if outputs is not None:
                ports = {t.name for t in self.model.graph.outputs}
                for name in outputs:
                    if name not in ports:
                        info = self._info(originals[name], "output", values)
                        describe(twins[originals[name]], info)
                graph.outputs = [twins[originals[name]] for name in outputs]
            for swap in swaps:
                original, other = originals[swap.tensor], originals.get(swap.other)
                new = twins[other] if other is not None else None
                if not self._swap(part, index, original, twins[original], swap, new, values or {}):
                    return None
        except UserError:  # the type of a tensor is not known
            return None
        _keep_needed(part, Index(graph))
        drop_unused(part, self.facts)
        return part

    def _swap(
        self,
        part: Model,
        index: Index,
        original: ir.Tensor,
        old: ir.Tensor,
        swap: Swap,
        new: ir.Tensor | None,
        values: Mapping[str, Array],
    ) -> bool:
        graph = part.graph
        producer = index.producer[old]
        slot = next(i for i, t in enumerate(producer.outputs) if t is old)
        spare = fresh_name(f"{old.name}_unused", index.names)
        index.names.add(spare)
        list.__setitem__(producer.outputs, slot, ir.Variable(spare))
        if swap.by == "input":
            assert isinstance(old, ir.Variable)
            describe(old, self._info(original, "input", values))
            graph.inputs.append(old)
            return True
        if swap.by == "constant":
            if swap.tensor not in values:
                return False
            constant = ir.Constant(old.name, values[swap.tensor])
            graph.initializers[constant] = None
            new = constant
        elif self.is_returned(original):
            return False  # the name of an output stays
        assert new is not None
        redirect(part, index, old, new)
        return True

    def _info(self, tensor: ir.Tensor, kind: str, values: Mapping[str, Array] | None) -> onnx.ValueInfoProto:
        """What a tensor declares as a port: what is inferred, else what was recorded."""
        try:
            return declared(tensor, self.facts, as_port=False, kind=kind)
        except UserError:
            value = (values or {}).get(tensor.name)
            if value is None:
                raise
            elem = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            return onnx.helper.make_tensor_value_info(tensor.name, elem, value.shape)


def _tensors(model: Model) -> list[ir.Tensor]:
    """The tensors of the main graph, in an order that copies share."""
    graph = model.graph
    found: dict[ir.Tensor, None] = dict.fromkeys(graph.inputs)
    found.update(dict.fromkeys(graph.initializers))
    found.update(dict.fromkeys(t for n in graph.nodes for t in n.outputs if t.name))
    found.update(dict.fromkeys(graph.outputs))
    return list(found)


def redirect(model: Model, index: Index, old: ir.Tensor, new: ir.Tensor) -> None:
    """Let whoever reads or returns `old`, in any body, read or return `new`."""
    for reader in index.readers.get(old, ()):
        for i, t in enumerate(reader.inputs):
            if t is old:
                list.__setitem__(reader.inputs, i, new)
    for body in model.bodies():
        if any(t is old for t in body.outputs):
            body.outputs = [new if t is old else t for t in body.outputs]


def _keep_needed(part: Model, index: Index) -> None:
    """Drop the nodes and initializers of the main graph that its outputs do not depend on."""
    graph = part.graph
    needed: dict[ir.Node, None] = {}
    seen: set[ir.Tensor] = set()
    stack = list(graph.outputs)
    while stack:
        tensor = stack.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        producer = index.producer.get(tensor)
        if producer is None or producer in needed or index.home[producer] is not graph:
            continue
        needed[producer] = None
        stack.extend(t for t in producer.inputs if t.name)
        if any(True for _ in producer.bodies()):
            stack.extend(index.captured(producer))
    graph.nodes = [n for n in graph.nodes if n in needed]
    graph.initializers = {c: None for c in graph.initializers if c in seen}
    graph.defaults = {v: c for v, c in graph.defaults.items() if v in graph.inputs}
