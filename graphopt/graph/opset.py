"""Raising the version of the standard operators, in all bodies at once, as one site."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from graphopt.errors import RefusedRewrite
from graphopt.graph.mentions import training_nodes
from graphopt.graph.state import GraphState
from graphopt.ir import Body


@contextlib.contextmanager
def raised_opset(
    state: GraphState, version: int, why: str, *, lower: bool = False
) -> Iterator[list[tuple[Body, int]]]:
    """Import ai.onnx `version` wherever an older one is imported; inside, adapt the nodes.

    Args:
        state: the model.
        version: of the standard operator set.
        why: the rewrite in words.
        lower: instead, wherever a newer one is imported.

    Yields:
        The bodies for which a newer version is in force now, innermost first, each with the version that
        was. Functions that import no standard operators, or newer ones, are not among them.

    Raises:
        RefusedRewrite: the training information has nodes, which nobody adapts.
    """
    with state.open_bare_site(state.model.graph, "ai.onnx", "opset import", why) as site:
        before: list[tuple[Body, int]] = []
        for body in state.live_bodies():
            old = state.opsets(body).get("", 0)
            if old > version if lower else 0 < old < version:
                before.append((body, old))
        if before and any(True for _ in training_nodes(state)):
            raise RefusedRewrite("the training information has operators of its own")
        for body, old in before:
            imports = state.opsets(body)
            if imports[""] == version:
                continue  # nested bodies share the imports of the body around them
            imports[""] = version
            state._log(imports.__setitem__, "", old)
        for body, _ in before:
            # What an operator means and which there are is new for every pass.
            state.touched.extend(state.index.nodes[body])
        yield before
        state._collect(site)
