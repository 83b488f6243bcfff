"""Which nodes a pass works on: globs that must match something."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from graphopt.passkit import GraphView, Node, PassContext, UserError


def picked(node: Node, nodes: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether the name of `node`, or of one of its outputs, matches `nodes` and not `exclude`."""
    return (not nodes or _matches(node, nodes)) and not _matches(node, exclude)


def check_globs(
    graph: GraphView, ctx: PassContext, owner: Any, candidates: Iterable[Node], globs: Sequence[str]
) -> None:
    """Note which of `globs` match in this body; complain in the main graph about those that never did.

    Args:
        graph: a body; the main graph comes last.
        ctx: remembers what matched in the bodies before.
        owner: the pass, whose globs these are.
        candidates: nodes of this body that the pass could work on.
        globs: what the user wrote.

    Raises:
        UserError: a glob matches no candidate of any body.
    """
    if not globs:
        return
    seen: tuple[set[str], set[str]] = ctx.notes.setdefault((owner.name, owner, "globs"), (set(), set()))
    matched, names = seen
    for node in candidates:
        own = _names(node)
        names.update(own)
        matched.update(g for g in globs if any(fnmatch.fnmatchcase(n, g) for n in own))
    if not graph.is_main:
        return
    for glob in globs:
        if glob not in matched:
            close = difflib.get_close_matches(glob.replace("*", ""), names, n=3, cutoff=0.4)
            fix = f"close to it: {', '.join(close)}" if close else f"it could quantize {len(names)} names"
            raise UserError(f"{owner.name}: {glob!r} matches no node that it could quantize", fix=fix)


def _names(node: Node) -> list[str]:
    return [n for n in (node.name, *(t.name for t in node.outputs)) if n]


def _matches(node: Node, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for name in _names(node) for glob in globs)
