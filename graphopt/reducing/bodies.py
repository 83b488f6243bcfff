"""Making what is inside control flow smaller: one branch in place of an If, and fewer nodes in bodies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphopt import ir
from graphopt.errors import GraphOptError
from graphopt.extracting import drop_unused
from graphopt.graph.index import Index
from graphopt.graph.inline import inline_branch
from graphopt.graph.rewriter import Rewriter
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.model import Model
from graphopt.reducing.candidate import redirect

if TYPE_CHECKING:
    from graphopt.reducing.candidate import Plan
    from graphopt.reducing.specimen import Specimen


def shrink_bodies(specimen: Specimen) -> None:
    """Put branches in the place of their If where that still fails, and leave out nodes of bodies."""
    while any(specimen.attempt(model, what) for what, model in _inlined(specimen.model)):
        pass
    while any(specimen.attempt(model, what) for what, model in _bypassed(specimen.plan)):
        pass


def _inlined(model: Model) -> Iterator[tuple[str, Model]]:
    """The model with one If replaced by one of its branches."""
    for place, node in enumerate(model.graph.nodes):
        if node.op != "If" or node.domain:
            continue
        for key, branch in node.attrs.items():
            if not isinstance(branch, ir.Graph):
                continue
            twin = model.copy()
            chosen = twin.graph.nodes[place]
            state = GraphState(twin, infer(twin))
            rewriter = Rewriter(state, twin.graph)
            try:
                with rewriter.site(chosen, "one branch takes the place of an If"):
                    inline_branch(rewriter, chosen, chosen.attrs[key])
            except GraphOptError:
                continue
            yield f"{key} of {node.name or 'an If'} takes its place", state.finish()


def _bypassed(plan: Plan) -> Iterator[tuple[str, Model]]:
    """The model with one node of a nested body bypassed: its output becomes one of its inputs."""
    model = plan.model
    bodies = model.bodies()
    for number, body in enumerate(bodies):
        if body is model.graph or isinstance(body, ir.Function):
            continue
        for place in reversed(range(len(body.nodes))):
            node = body.nodes[place]
            results = [t for t in node.outputs if plan.index.is_read(t)]
            if len(results) != 1:
                continue
            result = results[0]
            returned = any(result is t for t in body.outputs)
            for slot, source in enumerate(node.inputs):
                own = plan.index.producer.get(source) in plan.index.nodes[body]
                if not source.name or not plan.same_type(result, source) or (returned and not own):
                    continue
                yield f"without {node.op} in a body", _bypass(model, number, place, slot, result.name)
                break


def _bypass(model: Model, number: int, place: int, slot: int, name: str) -> Model:
    twin = model.copy()
    body = twin.bodies()[number]
    node = body.nodes[place]
    old, new = next(t for t in node.outputs if t.name == name), node.inputs[slot]
    redirect(twin, Index(twin.graph), old, new)
    body.nodes = [n for n in body.nodes if n is not node]
    _sweep(twin)
    return twin


def _sweep(model: Model) -> None:
    """Drop nodes and initializers of nested bodies that nothing reads any more."""
    while True:
        index = Index(model.graph)
        gone = {
            n
            for body in model.bodies()
            for n in body.nodes
            if body is not model.graph and not any(index.is_read(t) for t in n.outputs if t.name)
        }
        if not gone:
            break
        for body in model.bodies():
            body.nodes = [n for n in body.nodes if n not in gone]
    for body in model.bodies():
        body.initializers = {c: None for c in body.initializers if index.is_read(c)}
    drop_unused(model, infer(model))
