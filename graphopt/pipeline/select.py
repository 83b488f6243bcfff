"""Selecting nodes and tensors by glob."""

from __future__ import annotations

import difflib
import fnmatch
import glob
from collections.abc import Iterable, Iterator, Sequence

from graphopt.ir import Node
from graphopt.model import Model


def is_selected(node: Node, globs: Sequence[str] = (), exclude: Sequence[str] = ()) -> bool:
    """Whether the name of `node`, or of one of its outputs, matches one of `globs` and none of `exclude`.

    Without `globs` every node does.
    """
    names = [n for n in (node.name, *(t.name for t in node.outputs)) if n]
    return (not globs or _any(names, globs)) and not _any(names, exclude)


def glob_of(node: Node) -> str:
    """A glob that selects `node`, by the name of its first output: names of nodes are often missing."""
    return glob.escape(next((t.name for t in node.outputs if t.name), node.name))


def select_nodes(nodes: Iterable[Node], globs: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[Node]:
    """Those of `nodes` that `is_selected`, in their order."""
    return [node for node in nodes if is_selected(node, globs, exclude)]


def _any(names: Sequence[str], globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, g) for name in names for g in globs)


def names_of(model: Model, *, nodes: bool = False) -> set[str]:
    """Names of all nodes and tensors, in all bodies; with `nodes`, of nodes and their outputs only."""
    names: set[str] = set()
    for body in model.bodies():
        if not nodes:
            names.update(t.name for t in body.inputs)
            names.update(c.name for c in body.initializers)
        for node in body.nodes:
            names.add(node.name)
            names.update(t.name for t in node.outputs)
    names.discard("")
    return names


def unmatched(globs: Sequence[str], model: Model, *, nodes: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Each glob that matches no name (see `names_of`), with the names that look most like it."""
    names = names_of(model, nodes=nodes) if globs else set()
    for wanted in globs:
        if not any(fnmatch.fnmatchcase(name, wanted) for name in names):
            yield wanted, difflib.get_close_matches(wanted.replace("*", ""), names, n=3, cutoff=0.4)
