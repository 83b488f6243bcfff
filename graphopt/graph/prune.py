"""Taking out what is no node: local functions and opset imports, each as a site of its own."""

from __future__ import annotations

from graphopt.graph.state import GraphState
from graphopt.ir import Body, Function, Node


def prune_function(state: GraphState, function: Function) -> bool:
    """Erase a local function that nothing calls; False when the journal does not allow it."""
    anchor = f"{function.domain}.{function.name}"
    with state.open_bare_site(state.model.graph, anchor, "function", "nothing calls it") as site:
        _remove_function(state, function)
    return not site.refused


def prune_opset_import(state: GraphState, body: Body, domain: str) -> bool:
    """Erase an opset import of the main graph or of a function; False when the journal does not allow it."""
    with state.open_bare_site(body, domain, "opset import", "no node is from it") as site:
        imports = state.opsets(body)
        before = dict(imports)
        del imports[domain]
        state._log(_put_imports, imports, before)
    return not site.refused


def _remove_function(state: GraphState, function: Function) -> None:
    index, functions = state.index, state.model.graph.functions
    for node in reversed(state.ordered(function)):
        state.remove_node(node)
    for t in function.outputs:
        state._drop_output(t)
    before = list(functions)
    entries = index.nodes.pop(function), index.by_op.pop(function)
    _put_functions(state, [f for f in functions if f is not function])
    state._log(_unremove_function, state, function, before, *entries)


def _unremove_function(
    state: GraphState,
    function: Function,
    functions: list[Function],
    nodes: dict[Node, None],
    by_op: dict[tuple[str, str], dict[Node, None]],
) -> None:
    state.index.nodes[function] = nodes
    state.index.by_op[function] = by_op
    _put_functions(state, functions)


def _put_functions(state: GraphState, functions: list[Function]) -> None:
    """A name that no function has any more means the operator of that name again."""
    state.model.graph.functions[:] = functions
    state.index.function_ops = frozenset((f.domain or "", f.name) for f in functions)
    state.facts.functions = frozenset((f.domain or "", f.name, f.overload) for f in functions)


def _put_imports(imports: dict[str, int], entries: dict[str, int]) -> None:
    imports.clear()
    imports.update(entries)
