"""Infer the facts of a whole model: rules in topological order, completed by ONNX's own inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import onnx

from graphopt import collector
from graphopt.graph.dims import Dim, fresh_dim, symbol
from graphopt.graph.facts import Facts, Shape, SymValue
from graphopt.graph.schema_shapes import SchemaHints, body_step
from graphopt.io.dtypes import onnx_dtype
from graphopt.ir import Body, Function, Graph, Node, Tensor, Variable

__all__ = ["Facts", "Shape", "SymValue", "infer"]

_MAX_ROUNDS = 4


class HasGraph(Protocol):
    """What inference needs of a model."""

    @property
    def graph(self) -> Graph:
        """The main graph."""

    @property
    def opset_imports(self) -> dict[str, int]:
        """Opset version by domain."""

    def skeleton(self) -> onnx.ModelProto:
        """The model without its weights' data, which the caller may modify."""


def infer(model: HasGraph, *, strict: bool = False) -> Facts:
    """Facts of every tensor of `model`, in nested bodies and local functions too.

    Dims of graph inputs are facts (runtimes enforce them); other declared shapes are ignored. Linear in
    the size of the model. An invalid model gives fewer facts, not an error.

    Args:
        strict: let the exceptions of rules through; for tests.
    """
    with collector.paused():
        functions = list(model.graph.functions)
        facts = Facts(((f.domain, f.name, f.overload) for f in functions), strict=strict)
        run = _Inference(facts, SchemaHints(model.skeleton()))
        for tensor in model.graph.inputs:
            run.declare(tensor)
        run.body(model.graph, model.opset_imports, ())
        run.hints = SchemaHints(None)
        for function in functions:
            run.body(function, opsets_of(function, model.opset_imports), ())
        facts.hints = {}
    return facts


def opsets_of(body: Body, of_model: Mapping[str, int]) -> Mapping[str, int]:
    """Opset imports in force in `body`: a function has its own."""
    if not isinstance(body, Function):
        return of_model
    return body.opset_imports or of_model


class _Inference:
    """One run over a model."""

    def __init__(self, facts: Facts, hints: SchemaHints) -> None:
        self.facts = facts
        self.hints = hints

    def declare(self, tensor: Tensor) -> None:
        """Take the declared type of an input of the main graph as a fact."""
        if not isinstance(tensor, Variable) or tensor.type != "tensor_type":
            return
        shape: Shape | None = None
        if tensor.shape is not None:
            shape = tuple(_declared_dim(d) for d in tensor.shape)
        self.facts.set(tensor, shape, None if tensor.dtype is None else onnx_dtype(tensor.dtype))

    def body(self, body: Body, opsets: Mapping[str, int], path: tuple[str, ...]) -> None:
        """Infer all nodes of `body`, whose inputs' facts are set."""
        facts = self.facts
        outer = facts.hints
        facts.hints = self.hints.of_body(path)
        infer_node, apply_hint = facts.infer_node, facts.apply_hint
        for node in ordered(body):
            for value in node.attrs.values():
                if isinstance(value, Graph | list):
                    self._bodies(node, opsets, path)
                    break
            infer_node(node, opsets)
            if facts.hints:
                for tensor in node.outputs:
                    if tensor.name in facts.hints:
                        apply_hint(tensor)
        facts.hints = outer

    def _bodies(self, node: Node, opsets: Mapping[str, int], path: tuple[str, ...]) -> None:
        held = {}
        first = next((t.name for t in node.outputs if t.name), "")
        for name, value in node.attrs.items():
            bodies = value if isinstance(value, list) else [value]
            for i, body in enumerate(bodies):
                if isinstance(body, Graph):
                    held[body] = (*path, body_step(first, name, i))
        standard = self.facts.rule(node) is not None
        for body, where in held.items():
            if standard and node.op == "Loop":
                self._loop(node, body, opsets, where)
            elif standard and node.op == "Scan" and opsets.get("", 0) >= 9:
                self._scan(node, body, opsets, where)
            else:
                self.body(body, opsets, where)

    def _loop(self, node: Node, body: Graph, opsets: Mapping[str, int], path: tuple[str, ...]) -> None:
        for tensor, dtype in zip(body.inputs, (7, 9), strict=False):  # iteration number, condition
            self.facts.set(tensor, dtype=dtype)
        self._to_invariant(node, body, opsets, path, body.inputs[2:], node.inputs[2:], body.outputs[1:])

    def _scan(self, node: Node, body: Graph, opsets: Mapping[str, int], path: tuple[str, ...]) -> None:
        scanned = int(node.attrs.get("num_scan_inputs", 0))
        carried = len(body.inputs) - scanned
        axes = node.attrs.get("scan_input_axes") or [0] * scanned
        for inner, outer, axis in zip(body.inputs[carried:], node.inputs[carried:], axes, strict=False):
            shape = self.facts.shape(outer)
            if shape is not None and -len(shape) <= axis < len(shape):
                at = axis % len(shape)
                self.facts.set(inner, shape[:at] + shape[at + 1 :])
            self.facts.set(inner, dtype=self.facts.dtype(outer))
        self._to_invariant(node, body, opsets, path, body.inputs[:carried], node.inputs, body.outputs)

    def _to_invariant(
        self,
        node: Node,
        body: Graph,
        opsets: Mapping[str, int],
        path: tuple[str, ...],
        into: list[Variable],
        initial: list[Tensor],
        out: list[Tensor],
    ) -> None:
        """Find shapes of the carried tensors that the body preserves, by weakening the initial ones.

        A shape which holds before the first iteration and which the body maps to itself holds always.
        Dims that change become unknown, then ranks, and the body is inferred again.
        """
        facts = self.facts
        local: set[Dim] = set()
        carried = list(zip(into, initial, out, strict=False))
        for inner, outer, _ in carried:
            facts.set(inner, facts.shape(outer), facts.dtype(outer))
        for attempt in range(_MAX_ROUNDS + 1):
            self.body(body, opsets, path)
            stable = True
            for inner, _, made in carried:
                before, after = facts.shape(inner), facts.shape(made)
                if before is None or before == after:
                    continue
                if after is None or len(after) != len(before) or attempt == _MAX_ROUNDS - 1:
                    stable = False
                    facts.forget_shape(inner)
                    continue
                weaker = list(before)
                for i, (b, a) in enumerate(zip(before, after, strict=True)):
                    if b != a and b not in local:
                        weaker[i] = fresh_dim()
                        local.add(weaker[i])
                if weaker != list(before):
                    stable = False
                    facts.set(inner, tuple(weaker))
            if stable:
                break
            forget_body(facts, body)
        else:  # not reached: the last round leaves no shape that could change
            for inner, _, _ in carried:
                facts.forget_shape(inner)
        facts.local_dims[node] = frozenset(local)


def forget_body(facts: Facts, body: Body) -> None:
    """Drop the facts of all that the nodes of `body`, and of bodies in it, compute."""
    stack: list[Body] = [body]
    while stack:
        for node in stack.pop().nodes:
            for tensor in node.outputs:
                facts.forget(tensor)
            stack.extend(node.bodies())


def _declared_dim(dim: Any) -> Dim:
    if isinstance(dim, str) and dim:
        return symbol(dim)
    if isinstance(dim, int) and dim >= 0:
        return dim
    return fresh_dim()


def ordered(body: Body) -> list[Node]:
    """The nodes of `body`, producers first; as they are if they are in order already."""
    done: set[Tensor] = set()
    made = {t for node in body.nodes for t in node.outputs if t.name}
    for node in body.nodes:
        for tensor in node.inputs:
            if tensor in made and tensor not in done:
                return _sorted(body)
        done.update(node.outputs)
    return list(body.nodes)


def _sorted(body: Body) -> list[Node]:
    producer = {t: node for node in body.nodes for t in node.outputs if t.name}
    done: dict[Node, None] = {}
    opened: set[Node] = set()
    for start in body.nodes:
        stack = [start]
        while stack:
            node = stack.pop()
            if node in done:
                continue
            waits = [p for t in node.inputs if (p := producer.get(t)) is not None and p not in done]
            if not waits or node in opened:  # a cycle is somebody else's error to report
                done[node] = None
                continue
            opened.add(node)
            stack.append(node)
            stack.extend(waits)
    return list(done)
