"""Selecting nodes and tensors by glob."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Sequence

from graphopt.model import Model


def names_of(model: Model) -> set[str]:
    """Names of all nodes and tensors, in all bodies."""
    names: set[str] = set()
    for body in model.bodies():
        names.update(t.name for t in body.inputs)
        names.update(c.name for c in body.initializers)
        for node in body.nodes:
            names.add(node.name)
            names.update(t.name for t in node.outputs)
    names.discard("")
    return names


def unmatched(globs: Sequence[str], model: Model) -> Iterator[tuple[str, list[str]]]:
    """Each glob that matches no name, with the names that look most like it."""
    names = names_of(model)
    for glob in globs:
        if not any(fnmatch.fnmatchcase(name, glob) for name in names):
            yield glob, difflib.get_close_matches(glob.replace("*", ""), names, n=3, cutoff=0.4)
