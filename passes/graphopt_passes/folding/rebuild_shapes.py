"""Vectors of dims are put together from as few nodes as possible."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import onnx

from graphopt.passkit import (
    Constant,
    Dim,
    Node,
    Numerics,
    Pass,
    PassContext,
    RefusedRewrite,
    Rewriter,
    Sym,
    Tensor,
)

_INT64 = onnx.TensorProto.INT64
# Shape takes `start` and `end` from this opset on.
_SLICED_SHAPE = 15
# Nodes of a computation that are looked at; longer ones count as this long.
_MAX_CONE = 64
# Tensors whose dims are searched for, per dim.
_MAX_SOURCES = 16
_LAST = sys.maxsize


class _Piece(NamedTuple):
    """Consecutive elements: numbers, dims `start` to `stop` of `source`, or an existing tensor."""

    numbers: tuple[int, ...] = ()
    source: Tensor | None = None
    start: int = 0
    stop: int = 0
    tensor: Tensor | None = None


@dataclass(frozen=True)
class RebuildShapes(Pass):
    """Concat(Unsqueeze(Shape(x)[0]), Unsqueeze(Shape(x)[1]), 8) = Concat(Shape(x, 0, 2), 8).

    A vector of int64 which holds dims, or one dim alone, is computed anew from slices of Shape, constants,
    and vectors that exist already, if that takes fewer nodes than what it replaces. A slice of Shape is
    one node from opset 15 on; before that nothing is gained.

    Left alone: outputs, and elements that are computed from several dims unless a tensor holds them.
    """

    name: ClassVar[str] = "rebuild-shapes"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Rebuild what can be, readers before producers."""
        if graph.opset < _SLICED_SHAPE:
            return
        builder = _Builder(graph)
        for t in reversed(builder.vectors):
            node = graph.producer(t)
            if node is not None and graph.is_live(node) and not graph.keeps(node):
                builder.rebuild(t, node)


class _Builder:
    def __init__(self, graph: Rewriter) -> None:
        self.graph = graph
        self.sources: dict[Dim, list[tuple[Tensor, int]]] = {}
        self.slices: dict[tuple[Tensor, int, int], Tensor] = {}
        self.single: dict[Dim, Tensor] = {}
        self.place: dict[Node, int] = {}
        self.vectors: list[Tensor] = []
        read: dict[Tensor, None] = dict.fromkeys(graph.inputs)
        for place, node in enumerate(graph.nodes()):
            self.place[node] = place
            if graph.is_op(node, "Shape"):
                read.setdefault(node.inputs[0])
                bounds = self._bounds(node)
                if bounds is not None:
                    self.slices.setdefault((node.inputs[0], *bounds), node.outputs[0])
            for t in node.outputs:
                if t.name and not graph.is_constant(t):
                    self._note(t)
        for t in read:
            for axis, dim in enumerate(graph.shape(t) or ()):
                if isinstance(dim, Sym):
                    places = self.sources.setdefault(dim, [])
                    if len(places) < _MAX_SOURCES:
                        places.append((t, axis))

    def _note(self, t: Tensor) -> None:
        elements, shape = self.graph.sym_value(t), self.graph.static_shape(t)
        if elements is None or shape is None or self.graph.dtype(t) != _INT64:
            return
        if len(shape) <= 1 and any(isinstance(e, Sym) for e in elements):
            self.vectors.append(t)
            if shape == (1,) and isinstance(elements[0], Sym):
                self.single.setdefault(elements[0], t)

    def _bounds(self, node: Node) -> tuple[int, int] | None:
        rank = self.graph.rank(node.inputs[0])
        start, end = self.graph.attr(node, "start") or 0, self.graph.attr(node, "end")
        if rank is None or not isinstance(start, int) or not isinstance(end, int | None):
            return None
        first, last, _ = slice(start, end).indices(rank)
        return first, last

    # -- one vector --------------------------------------------------------------------------------

    def rebuild(self, t: Tensor, node: Node) -> None:
        """Replace `t` if that saves nodes."""
        graph = self.graph
        if graph.is_op(node, "Shape") or not graph.is_read(t) or len([o for o in node.outputs if o.name]) > 1:
            return
        pieces = self._pieces(t)
        if pieces is None:
            return
        vector = graph.rank(t) == 1
        cost = (len(pieces) > 1) + (not vector)
        cost += len({p for p in pieces if p.source is not None and self._slice(p, t) is None})
        pinned = {p.tensor for p in pieces if p.tensor is not None}
        pinned.update(s for p in pieces if (s := self._slice(p, t)) is not None)
        if cost >= self._freed(t, pinned):
            return
        with graph.site(node, "put together from fewer nodes"):
            parts = [self._part(p, t) for p in pieces]
            attrs = {"axis": 0} if len(parts) > 1 else None
            made = graph.op("Concat", parts, attrs=attrs, hint=t.name) if len(parts) > 1 else parts[0]
            if not vector:
                made = graph.op("Squeeze", [made], hint=t.name)
            if graph.sym_value(made) != graph.sym_value(t):
                raise RefusedRewrite(f"{t.name} could not be shown to come out the same")
            graph.bypass(t, made)
        for piece, part in zip(pieces, parts, strict=True):
            producer = graph.producer(part)
            if piece.source is not None and producer is not None and graph.is_live(producer):
                # It depends on its source alone.
                above = graph.producer(piece.source)
                self.place.setdefault(producer, -1 if above is None else self.place.get(above, -1))
                self.slices.setdefault((piece.source, piece.start, piece.stop), part)

    def _pieces(self, t: Tensor) -> list[_Piece] | None:
        """`t` in as few pieces as a greedy search finds; None when an element is to be had nowhere."""
        elements = self.graph.sym_value(t) or ()
        pieces: list[_Piece] = []
        at = 0
        while at < len(elements):
            element = elements[at]
            if isinstance(element, float):
                return None
            if not isinstance(element, Sym):
                stop = at
                while stop < len(elements) and isinstance(elements[stop], int):
                    stop += 1
                pieces.append(_Piece(numbers=tuple(e for e in elements[at:stop] if isinstance(e, int))))
                at = stop
                continue
            best = self._run(t, elements, at)
            if best is None:
                single = self.single.get(element)
                if single is None or single is t or not self._is_before(single, t):
                    return None
                best = _Piece(tensor=single, stop=1)
            pieces.append(best)
            at += best.stop - best.start
        return pieces

    def _run(self, t: Tensor, elements: tuple[object, ...], at: int) -> _Piece | None:
        """The longest run of dims of one tensor that `elements[at:]` starts with."""
        best: _Piece | None = None
        for source, axis in self.sources.get(elements[at], ()):  # type: ignore[call-overload]
            if not self._is_before(source, t):
                continue
            dims = self.graph.shape(source) or ()
            length = 0
            while at + length < len(elements) and axis + length < len(dims):
                if elements[at + length] != dims[axis + length]:
                    break
                length += 1
            piece = _Piece(source=source, start=axis, stop=axis + length)
            if length and (best is None or length > best.stop - best.start):
                best = piece
                continue
            # Of two equally long ones, the one that exists already.
            as_long = best is not None and length == best.stop - best.start
            if as_long and self._slice(piece, t) is not None and best and self._slice(best, t) is None:
                best = piece
        return best

    def _slice(self, piece: _Piece, t: Tensor) -> Tensor | None:
        """The existing tensor that holds `piece`, if `t` may be computed from it."""
        if piece.source is None:
            return None
        found = self.slices.get((piece.source, piece.start, piece.stop))
        return found if found is not None and found is not t and self._is_before(found, t) else None

    def _part(self, piece: _Piece, t: Tensor) -> Tensor:
        graph = self.graph
        if piece.tensor is not None:
            return piece.tensor
        if piece.source is None:
            return graph.new_constant(f"{t.name}/dims", np.array(piece.numbers, np.int64))
        found = self._slice(piece, t)
        if found is not None:
            return found
        attrs = {}
        if piece.start:
            attrs["start"] = piece.start
        if piece.stop != graph.rank(piece.source):
            attrs["end"] = piece.stop
        return graph.op("Shape", [piece.source], attrs=attrs, hint=f"{piece.source.name}/shape")

    # -- costs -------------------------------------------------------------------------------------

    def _is_before(self, source: Tensor, t: Tensor) -> bool:
        """Whether `source` is there before `t` is computed, so that it does not depend on `t`."""
        producer, reader = self.graph.producer(source), self.graph.producer(t)
        if producer is None or reader is None or not self.graph.is_local(source):
            return True
        return self.place.get(producer, _LAST) < self.place.get(reader, _LAST)

    def _freed(self, t: Tensor, pinned: Iterable[Tensor]) -> int:
        """How many nodes go when nobody reads `t` any more, while `pinned` tensors are read."""
        graph = self.graph
        stays = set(pinned)
        gone: set[Node] = set()
        stack: list[Tensor] = [t]
        while stack and len(gone) < _MAX_CONE:
            u = stack.pop()
            producer = graph.producer(u)
            if producer is None or producer in gone or isinstance(u, Constant) or not graph.is_local(u):
                continue
            if any(graph.keeps(o) for o in producer.outputs if o.name):
                continue
            others = [o for o in producer.outputs if o.name and o is not t]
            if all(o not in stays and graph.only_read_by(o, gone) for o in others) and (
                t not in producer.outputs or not graph.is_output(t)
            ):
                gone.add(producer)
                stack.extend(i for i in producer.inputs if i.name)
        return sum(1 for n in gone if n.op != "Constant")
