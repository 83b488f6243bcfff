"""Structural checks: what must hold of a graph after every pass."""

from __future__ import annotations

from collections.abc import Iterable

from graphopt.errors import PassError
from graphopt.graph.schema import schema
from graphopt.graph.state import GraphState
from graphopt.ir import Body, Constant, Function, Node, Tensor


def verify_touched(state: GraphState, since: int = 0) -> None:
    """Check what changed since `state.touched` had `since` entries.

    Raises:
        PassError: naming the running pass, the node and the tensor.
    """
    state.settle_order()
    for node in dict.fromkeys(state.touched[since:]):
        if node in state.index.home:
            _verify_node(state, node)


def verify_model(state: GraphState) -> None:
    """Check every node, every body output and the order of every body.

    Raises:
        PassError: naming the running pass, the node and the tensor.
    """
    for body in state.live_bodies():
        nodes = state.ordered(body)
        defined: set[str] = set()
        for name in _definitions(body, nodes):
            if name in defined:
                raise PassError(state.pass_name, f"{state.label(body)} defines {name!r} twice")
            defined.add(name)
        for node in nodes:
            _verify_node(state, node)
        for t in body.outputs:
            if t.name and not _is_visible(state, t, body):
                raise PassError(state.pass_name, f"output {t.name!r} of {state.label(body)} is not computed")


def _definitions(body: Body, nodes: Iterable[Node]) -> Iterable[str]:
    yield from (t.name for t in body.inputs)
    yield from (c.name for c in body.initializers)
    for node in nodes:
        yield from (t.name for t in node.outputs if t.name)


def _verify_node(state: GraphState, node: Node) -> None:
    index, body = state.index, state.index.home[node]

    def broken(text: str) -> PassError:
        return PassError(state.pass_name, f"{node!r} in {state.label(body)} {text}")

    for slot, t in enumerate(node.inputs):
        if t.name and not _is_visible(state, t, body):
            raise broken(f"reads {t.name!r} at input {slot}, which nothing computes there")
    for t in node.outputs:
        if t.name and index.producer.get(t) is not node:
            raise broken(f"computes {t.name!r}, which another node computes as well")
    found = schema(node.op, node.domain or "", state.opsets(body).get(node.domain or "", 0))
    if found is None or (node.domain or "", node.op) in index.function_ops or not node.made_by:
        return
    if found.deprecated:
        raise broken("is deprecated at this opset")
    if not found.min_input <= len(node.inputs) <= found.max_input:
        raise broken(f"has {len(node.inputs)} inputs; it takes {found.min_input} to {found.max_input}")
    if not found.min_output <= len(node.outputs) <= found.max_output:
        raise broken(f"has {len(node.outputs)} outputs; it has {found.min_output} to {found.max_output}")
    for name in node.attrs:
        if name not in found.attributes:
            raise broken(f"has an attribute {name!r} that does not exist at this opset")
    for name, attribute in found.attributes.items():
        if attribute.required and name not in node.attrs:
            raise broken(f"lacks the attribute {name!r}")


def _is_visible(state: GraphState, tensor: Tensor, body: Body) -> bool:
    """Whether `tensor` is defined in `body` or around it."""
    index = state.index
    producer = index.producer.get(tensor)
    if producer is not None:
        return index.encloses(index.home[producer], body)
    if isinstance(tensor, Constant):
        home = index.constant_home.get(tensor)
        return home is not None and index.encloses(home, body)
    while True:
        if any(tensor is t for t in body.inputs):
            return True
        holder = index.holder.get(body)
        if holder is None or isinstance(body, Function):
            return False
        body = index.home[holder]
