"""Where quantization goes: which nodes run on integers, and which tensors are quantized for that.

A pure function of the graph, the target's profile and what the user selected; no data is looked at. Rules:

- Conv, Gemm and MatMul (the core) are quantized wherever the target has an integer kernel for them.
- A tensor is quantized behind a Relu or Clip that its range can imply, never in front of it. Any other
  activation function stays behind a quantized tensor of its own.
- Operators with an integer kernel that gain nothing by themselves (glue: Add, Concat, pools, ...) are
  quantized only between integer operators: what they read comes out of some, and what they compute goes into
  some.
- Operators that only move elements keep their grid, so all of a chain of them share one. Where they stand in
  front of integer operators only, the chain is quantized at its start: fewer bytes are moved.
- All that reads the result of an integer kernel reads it quantized: a float reader besides would make the
  runtime fall back to float. Nodes that read something float which is quantized for others read the original.
- Products (Gemm, MatMul) can leave their result in float and still run on integers. They do where that is
  read in float as well, or split into parts that are better off with a range each; not in front of a Relu.
- The product with a positive number has the grid of what is multiplied, scaled, so that nothing is rounded.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from graphopt.graph.view import GraphView
from graphopt.ir import Node, Tensor
from graphopt.quantization.plan_nodes import (
    Core,
    Unfit,
    absorbed_bounds,
    glue_data,
    hides_product,
    is_broken,
    moves_only,
    read_core,
)
from graphopt.quantization.profiles import Profile

Kind = Literal["always", "optional", "const", "float"]
Implies = Literal["any", "relu", "none"]


@dataclass(frozen=True)
class Selection:
    """What the user wants to be quantized.

    Attributes:
        ops: operator types; empty for all of the profile's.
        nodes: globs over node names (or names of what they compute); empty for all.
        exclude: globs of nodes that stay float.
    """

    ops: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def takes(self, node: Node) -> bool:
        """Whether `node` may be quantized."""
        if self.ops and node.op not in self.ops:
            return False
        if self.nodes and not matches(node, self.nodes):
            return False
        return not matches(node, self.exclude)


def matches(node: Node, globs: Sequence[str]) -> bool:
    """Whether the name of `node`, or of something that it computes, matches one of `globs`."""
    names = [node.name, *(t.name for t in node.outputs)]
    return any(name and fnmatch.fnmatchcase(name, glob) for glob in globs for name in names)


@dataclass(eq=False)
class Group:
    """Tensors on one grid.

    Attributes:
        sources: those whose values decide the range; the others hold only values of theirs.
        bounds: outside of which there are no values, and which the grid must not exceed: what a Relu or
            Clip leaves out.
        scaled: the tensor, and the number times which it is the only source.
    """

    sources: list[Tensor] = field(default_factory=list)
    bounds: tuple[float, float] | None = None
    scaled: tuple[Tensor, float] | None = None


@dataclass(frozen=True, eq=False)
class Planned:
    """A node that runs on integers.

    Attributes:
        node: the node.
        data: slots that read quantized tensors.
        constants: slots of constants that are quantized like data.
        core: for the core operators, how; None for glue and what moves elements.
        outputs: tensors that are quantized for all their readers: the node's result, behind an activation
            that the range absorbs.
    """

    node: Node
    data: tuple[int, ...]
    constants: tuple[int, ...] = ()
    core: Core | None = None
    outputs: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be quantized in one body.

    Attributes:
        nodes: the nodes that run on integers, in topological order.
        groups: the group of every tensor that is quantized.
        reasons: why other nodes that might have been are left in float.
    """

    nodes: Mapping[Node, Planned]
    groups: Mapping[Tensor, Group]
    reasons: Mapping[Node, str]

    def sources(self) -> list[Tensor]:
        """Every tensor whose range has to be known, each once."""
        return list(dict.fromkeys(t for g in dict.fromkeys(self.groups.values()) for t in g.sources))


def make_plan(
    graph: GraphView, profile: Profile, selection: Selection | None = None, *, implies: Implies = "any"
) -> Plan:
    """What to quantize in the body at hand.

    Args:
        graph: the body.
        profile: the target's.
        selection: which nodes may be quantized at all.
        implies: which activations the ranges can imply: "any" Clip around 0, only those with one bound
            ("relu": scales that are powers of two end where they end), or "none" (signed, no zero point).
    """
    return _Planner(graph, profile, selection or Selection(), implies).plan()


class _Planner:
    def __init__(self, graph: GraphView, profile: Profile, selection: Selection, implies: Implies) -> None:
        self.graph, self.profile, self.selection = graph, profile, selection
        self.implies: Implies = implies if profile.output_pairs else "any"
        self.core: dict[Node, Core] = {}
        self.glue: dict[Node, tuple[int, ...]] = {}
        self.reasons: dict[Node, str] = {}
        self.result: dict[Node, Tensor] = {}
        self.maker: dict[Tensor, Node] = {}
        self.bounds: dict[Tensor, tuple[float, float]] = {}
        self.moving: dict[Node, bool] = {}

    def plan(self) -> Plan:
        order = self.graph.nodes()
        for node in order:
            self._consider(node)
        if not self.core:
            return Plan({}, {}, self.reasons)
        self._settle_glue()
        planned: dict[Node, Planned] = {}
        for node in order:
            made = self._planned(node)
            if made is not None:
                planned[node] = made
        return Plan(planned, self._groups(planned), self.reasons)

    # -- candidates ----------------------------------------------------------------------------------

    def _consider(self, node: Node) -> None:
        graph, profile = self.graph, self.profile
        if not graph.is_op(node, node.op):
            return
        if node.op in profile.core or node.op in profile.no_kernel:
            if not self.selection.takes(node):
                if node.op in profile.core:
                    self.reasons[node] = "it is not among the nodes that were asked for"
                return
            try:
                core = read_core(graph, node, profile)
            except Unfit as unfit:
                if unfit.reason is not None:
                    self.reasons[node] = unfit.reason
                return
            if any(self._reads_broken(node.inputs[slot]) for slot in core.data):
                self.reasons[node] = (
                    "onnxruntime's integer kernel for the average pool in front of it is broken"
                )
                return
            self.core[node] = core
            self._note_result(node, core.end)
        elif node.op in profile.glue and self.selection.takes(node):
            data = glue_data(graph, node, profile)
            # The Add behind a MatMul is part of it.
            if data is not None and self.maker.get(node.outputs[0]) is None:
                self.glue[node] = data
                self._note_result(node, node)

    def _reads_broken(self, tensor: Tensor) -> bool:
        """Whether quantizing `tensor` would make a kernel that does not work of the node in front of it."""
        while True:
            producer = self.graph.producer(tensor)
            if producer is None or not self._moves(producer):
                return producer is not None and is_broken(self.graph, producer)
            tensor = producer.inputs[0]

    def _note_result(self, node: Node, end: Node) -> None:
        tensor = end.outputs[0]
        reader = self.graph.sole_consumer(tensor) if self.implies != "none" else None
        if reader is not None and self.graph.is_live(reader) and reader.inputs[0] is tensor:
            bounds = absorbed_bounds(self.graph, reader)
            if bounds is not None and (self.implies == "any" or bounds == (0.0, math.inf)):
                tensor = reader.outputs[0]
                self.bounds[tensor] = bounds
        self.result[node] = tensor
        self.maker[tensor] = node

    def _drop_glue(self, node: Node) -> None:
        del self.glue[node]
        tensor = self.result.pop(node)
        del self.maker[tensor]
        self.bounds.pop(tensor, None)

    def _settle_glue(self) -> None:
        """Take out glue operators until each of those left stands between integer operators."""
        while True:
            out = []
            for node in list(self.glue):
                reason = self._why_not_glue(node)
                if reason is not None:
                    out.append(node)
                    if reason:
                        self.reasons[node] = reason
                    self._drop_glue(node)
            if not out:
                return

    def _why_not_glue(self, node: Node) -> str | None:
        """None for a glue operator to quantize, "" for one not worth a word."""
        kinds = [self._kind(node.inputs[slot]) for slot in self.glue[node]]
        to_integer, to_float = self._read_by(self.result[node])
        if all(kind in ("float", "const") for kind in kinds):
            return ""
        if "float" in kinds:
            return "not all that it reads is computed on integers" if to_integer else ""
        if not to_integer:
            return "nothing that reads its result runs on integers"
        if "optional" in kinds:
            if to_float:
                return "its operands are products in float precision, and its result is read in float as well"
            if node.op not in ("Add", "Concat") and self._factor(node) is None:
                return "its operands are products in float precision"
        return None

    # -- questions -----------------------------------------------------------------------------------

    def _kind(self, tensor: Tensor) -> Kind:
        """How `tensor` is computed: quantized at any rate, possibly, not at all, or it is a constant."""
        split = False
        while True:
            if self.graph.is_constant(tensor):
                return "const"
            node = self.maker.get(tensor)
            if node is not None:
                core = self.core.get(node)
                if core is None or not core.output_optional:
                    return "always"
                return "optional" if not split and self._pairs_product(node, core) else "float"
            producer = self.graph.producer(tensor)
            if producer is None or not self._moves(producer):
                return "float"
            split |= producer.op == "Split"
            tensor = producer.inputs[0]

    def _pairs_product(self, node: Node, core: Core) -> bool:
        """Whether the result of a product is quantized."""
        if not core.pairs_output:
            return False
        if hides_product(self.graph, core.end):
            return True
        result = self.result[node]
        to_integer, to_float = self._read_by(result, parts=False)
        # What reads it quantized right there takes the choice away: float readers besides cost the kernel.
        return to_integer and (not to_float or any(self._is_data(*u) for u in self.graph.uses(result)))

    def _is_data(self, node: Node, slot: int) -> bool:
        core = self.core.get(node)
        return (core is not None and slot in core.data) or slot in self.glue.get(node, ())

    def _factor(self, node: Node) -> float | None:
        """The positive number that a Mul multiplies with, None for other nodes."""
        if node.op != "Mul":
            return None
        for slot in (0, 1):
            value = self.graph.scalar(node.inputs[slot])
            rank, other = self.graph.rank(node.inputs[slot]), self.graph.rank(node.inputs[1 - slot])
            if value is not None and value > 0 and rank is not None and other is not None and rank <= other:
                return float(value)
        return None

    def _moves(self, node: Node) -> bool:
        found = self.moving.get(node)
        if found is None:
            found = self.moving[node] = self.graph.is_live(node) and moves_only(self.graph, node)
        return found

    def _read_by(self, tensor: Tensor, *, parts: bool = True) -> tuple[bool, bool]:
        """Whether integer operators read `tensor`, and whether others do; also past what moves elements.

        Without `parts` a Split is among the others.
        """
        to_integer = to_float = False
        stack = [tensor]
        while stack:
            t = stack.pop()
            to_float |= self.graph.is_output(t)
            for node, slot in self.graph.uses(t):
                if self._is_data(node, slot):
                    to_integer = True
                elif slot == 0 and self._moves(node) and (parts or node.op != "Split"):
                    stack.extend(o for o in node.outputs if o.name and self.graph.is_read(o))
                else:
                    to_float = True
        return to_integer, to_float

    # -- the plan ------------------------------------------------------------------------------------

    def _planned(self, node: Node) -> Planned | None:
        core = self.core.get(node)
        if core is not None:
            return Planned(node, core.data, (), core, self._core_output(node, core))
        if node in self.glue:
            slots = self.glue[node]
            data = tuple(s for s in slots if not self.graph.is_constant(node.inputs[s]))
            constants = tuple(s for s in slots if s not in data)
            result = self.result[node]
            return Planned(node, data, constants, None, (result,) if self.profile.output_pairs else ())
        if not self.profile.output_pairs or not self._moves(node):
            return None
        outputs = tuple(t for t in node.outputs if t.name and self.graph.is_read(t))
        readers = [self._read_by(t) for t in outputs]
        if not any(to_integer for to_integer, _ in readers):
            return None
        if self._kind(node.inputs[0]) == "float":
            maker = self.maker.get(node.inputs[0])
            core = None if maker is None else self.core.get(maker)
            if node.op == "Split" or any(to_float for _, to_float in readers):
                return None
            if core is not None and core.pairs_output:
                return None  # a product that is read in float as well: nothing may read it quantized
        return Planned(node, (0,), (), None, outputs)

    def _core_output(self, node: Node, core: Core) -> tuple[Tensor, ...]:
        if not self.profile.output_pairs:
            return ()
        if core.output_optional and not self._pairs_product(node, core):
            return ()
        return (self.result[node],)

    def _groups(self, planned: Mapping[Node, Planned]) -> dict[Tensor, Group]:
        leader: dict[Tensor, Tensor] = {}
        moved: set[Tensor] = set()

        def find(t: Tensor) -> Tensor:
            while leader.setdefault(t, t) is not t:
                leader[t] = leader[leader[t]]
                t = leader[t]
            return t

        for node, plan in planned.items():
            reads = [node.inputs[s] for s in plan.data]
            for t in (*reads, *plan.outputs):
                find(t)
            if plan.core is None and node not in self.glue:
                for t in plan.outputs:
                    leader[find(t)] = find(reads[0])
                    moved.add(t)
        groups: dict[Tensor, Group] = {}
        by_leader: dict[Tensor, Group] = {}
        for t in leader:
            group = by_leader.setdefault(find(t), Group())
            groups[t] = group
            if t not in moved:
                group.sources.append(t)
                source = self.maker.get(t)
                maker = None if source is None else planned.get(source)
                if maker is not None and any(t is o for o in maker.outputs):
                    group.bounds = self.bounds.get(t)
                    factor = self._factor(maker.node)
                    if maker.constants and factor is not None and group.bounds is None:
                        group.scaled = maker.node.inputs[maker.data[0]], factor
        for group in by_leader.values():
            if len(group.sources) > 1:
                group.scaled = None
        return groups
