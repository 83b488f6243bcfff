"""Initializers with the same bytes become one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from graphopt.passkit import Body, Constant, GraphView, Numerics, Pass, PassContext, Rewriter

# What is compared before whole contents, in bytes at either end: enough to tell most weights apart.
_SAMPLE = 1024
# Initializers by dtype, shape and sample.
_Table: TypeAlias = dict[Hashable, list[Constant]]


def shallow_key(constant: Constant) -> Hashable:
    """What two constants must have in common to be worth comparing; reads no values."""
    return constant.dtype, tuple(constant.shape)


def content_groups(constants: Iterable[Constant], graph: GraphView) -> Iterator[list[Constant]]:
    """Groups of two or more constants that are the same bit for bit, each in the order given.

    Dtype, shape and size are compared first, then both ends, and only what still looks the same in full,
    so that weights which differ are hardly read. 0.0 and -0.0 differ, and so do NaNs of other bits.
    """
    for alike in _split(constants, shallow_key):
        large = alike[0].nbytes > 2 * _SAMPLE
        for sampled in _split(alike, lambda c: _sample(graph.content(c))) if large else [alike]:
            yield from _split(sampled, lambda c: _digest(graph.content(c)))


def _split(constants: Iterable[Constant], key: Callable[[Constant], Any]) -> list[list[Constant]]:
    parts: dict[Hashable, list[Constant]] = {}
    for constant in constants:
        parts.setdefault(key(constant), []).append(constant)
    return [part for part in parts.values() if len(part) > 1]


def _sample(content: Any) -> Any:
    if isinstance(content, tuple):
        return content
    return content[:_SAMPLE].tobytes(), content[-_SAMPLE:].tobytes()


def _digest(content: Any) -> Any:
    if isinstance(content, tuple):
        return content
    if len(content) <= 2 * _SAMPLE:
        return content.tobytes()
    return hashlib.blake2b(content).digest()


@dataclass(frozen=True)
class DedupInitializers(Pass):
    """Initializers of the same dtype, shape and bytes become one.

    The first stays. Initializers of a nested body give way to one of a body around it.

    Left alone: overridable initializers (they are inputs), initializers that a body returns, sparse
    ones, and whatever is kept by name. 0.0 and -0.0 differ.
    """

    name: ClassVar[str] = "dedup-initializers"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Merge the initializers of the body with each other and with those of outer bodies."""
        if graph.is_main:
            ctx.notes.pop(self.name, None)  # it comes last, and has nothing around it
        own = graph.body.initializers
        if not own:
            return
        dense = [c for c in own if _is_dense(c)]
        for first, *twins in content_groups((*_outer_twins(dense, graph, self._tables(ctx)), *dense), graph):
            for twin in twins:
                if twin in own and not graph.is_output(twin):
                    graph.redirect(twin, first, why=f"{twin.name} holds the same as {first.name}")

    def _tables(self, ctx: PassContext) -> dict[Body, _Table]:
        """The initializers of bodies that hold others, by what tells them apart; made once per run."""
        tables: dict[Body, _Table] = ctx.notes.setdefault(self.name, {})
        return tables


def _outer_twins(own: list[Constant], graph: GraphView, tables: dict[Body, _Table]) -> list[Constant]:
    """Initializers of enclosing bodies that look like one of `own` and can be read in its place."""
    found: dict[Constant, None] = {}
    looks: dict[Hashable, None] | None = None
    for body in graph.enclosing():
        if body not in tables:
            tables[body] = _table(body, graph)
        if not tables[body]:
            continue
        if looks is None:
            looks = {_look(c, graph): None for c in own}
        for look in looks:
            found.update((c, None) for c in tables[body].get(look, ()) if c in body.initializers)
    return graph.readable(found)


def _table(body: Body, graph: GraphView) -> _Table:
    table: _Table = {}
    for constant in body.initializers:
        if _is_dense(constant):
            alike = table.setdefault(_look(constant, graph), [])
            if not alike or constant.nbytes > 2 * _SAMPLE:  # small ones that look alike are alike
                alike.append(constant)
    return table


def _look(constant: Constant, graph: GraphView) -> Hashable:
    content = graph.content(constant)
    return shallow_key(constant), _digest(content) if constant.nbytes <= 2 * _SAMPLE else _sample(content)


def _is_dense(constant: Constant) -> bool:
    # Of the messages a constant can come from, only the sparse one has indices.
    return not hasattr(constant.origin, "indices")
