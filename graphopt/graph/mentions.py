"""What a model refers to from outside of its nodes' links: annotations, training information, imports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import onnx

from graphopt.ir import Body, Function, Graph, Node

if TYPE_CHECKING:
    from graphopt.graph.state import GraphState


def mentioned_names(state: GraphState, body: Body) -> frozenset[str]:
    """Names of tensors of `body` that a quantization annotation or the training information refers to."""
    names: set[str] = set()
    if isinstance(body, Graph) and body.origin is not None:
        for annotation in body.origin.quantization_annotation:
            names.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    if body is state.model.graph:
        for info in state.model.origin.training_info:
            for binding in (*info.initialization_binding, *info.update_binding):
                names.update((binding.key, binding.value))
            for node in training_nodes(state):
                names.update(node.input)
    return frozenset(names)


def training_nodes(state: GraphState) -> Iterator[onnx.NodeProto]:
    """The nodes of the training information, at any depth."""
    stack: list[onnx.GraphProto] = []
    for info in state.model.origin.training_info:
        stack += [info.initialization, info.algorithm]
    while stack:
        for node in stack.pop().node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    stack.append(attribute.g)
                stack.extend(attribute.graphs)


def unreachable_functions(state: GraphState) -> list[Function]:
    """Local functions that neither the main graph nor the training information calls, even indirectly."""
    graph = state.model.graph
    functions: dict[tuple[str, str], list[Function]] = {}
    for function in graph.functions:
        functions.setdefault((function.domain or "", function.name), []).append(function)
    reached: set[Function] = set()
    calls = [(node.domain, node.op_type) for node in training_nodes(state)]
    calls += [(node.domain or "", node.op) for node in _nodes_in(state, graph)]
    while calls:
        # Overloads stay together: which one a call means is for the runtime to say.
        for function in functions.get(calls.pop(), ()):
            if function not in reached:
                reached.add(function)
                calls += [(node.domain or "", node.op) for node in _nodes_in(state, function)]
    return [f for f in graph.functions if f not in reached]


def unused_opset_imports(state: GraphState, body: Body) -> list[str]:
    """Domains that `body`, the main graph or a function, imports for nothing.

    Never the standard domain.
    """
    used = {"", *(node.domain or "" for node in _nodes_in(state, body))}
    if not isinstance(body, Function):
        used.update(_standard(node.domain) for node in training_nodes(state))
        for function in state.model.graph.functions:
            used.add(function.domain or "")
            used.update(state.opsets(function))
    return [domain for domain in state.opsets(body) if domain not in used]


def _standard(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _nodes_in(state: GraphState, body: Body) -> Iterable[Node]:
    """The nodes of `body` and of the bodies that they hold."""
    stack = [body]
    while stack:
        for node in state.index.nodes[stack.pop()]:
            yield node
            stack.extend(node.bodies())
