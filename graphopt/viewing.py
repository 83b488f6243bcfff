"""Drawing models: the nodes of every body with their places, and what became of them in another model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from graphopt import collector
from graphopt.report.drawn import DrawnBody, DrawnModel, DrawnNode, DrawnTensor, GraphView, State, TensorKind
from graphopt.report.html.layout import HEIGHT, WIDTH, Edge, layout

if TYPE_CHECKING:
    from graphopt.graph.facts import Facts
    from graphopt.ir import Body, Constant, Node, Tensor
    from graphopt.model import Model

#: Initializers larger than this are not read for their statistics, nor any once so many were.
_READ_ELEMENTS = 1 << 20
_READ_TOTAL = 1 << 24
_FEW = 8


@collector.relaxed()
def view(after: Model, before: Model | None = None, removed_by: Mapping[str, str] | None = None) -> GraphView:
    """Draw one model, or two side by side.

    Args:
        after: the model; of two, the one that came from the other.
        before: the other one. Nodes are paired as `graphopt diff` does.
        removed_by: name of the first output of nodes that are gone -> the pass that removed them.

    Returns:
        The drawing. Shapes that cannot be inferred are left out; large initializers have no statistics, and
        a note says so.
    """
    from graphopt.graph.diff import labelled_bodies

    notes: list[str] = []
    bodies_after = labelled_bodies(after)
    if before is None:
        drawn = _Artist(after, bodies_after, {}, notes).model(_title(after))
        return GraphView(drawn, None, WIDTH, HEIGHT, tuple(dict.fromkeys(notes)))
    bodies_before = labelled_bodies(before)
    fates_before, fates_after = _fates(bodies_before, bodies_after)
    for node, fate in fates_before.items():
        if fate.state == "removed" and node.outputs:
            by = (removed_by or {}).get(node.outputs[0].name, "")
            fates_before[node] = replace(fate, by=by)
    first = _Artist(before, bodies_before, fates_before, notes).model(_title(before))
    second = _Artist(after, bodies_after, fates_after, notes).model(_title(after))
    first, second = _paired(first, second, "removed"), _paired(second, first, "added")
    return GraphView(second, first, WIDTH, HEIGHT, tuple(dict.fromkeys(notes)))


@dataclass(frozen=True)
class _Fate:
    """What became of a node: its state, its counterpart's index, what differs, who removed it."""

    state: State
    pair: int = -1
    changes: tuple[str, ...] = ()
    by: str = ""


def _fates(
    before: Mapping[str, Body], after: Mapping[str, Body]
) -> tuple[dict[Node, _Fate], dict[Node, _Fate]]:
    from graphopt.graph.diff import pair_nodes

    old: dict[Node, _Fate] = {}
    new: dict[Node, _Fate] = {}
    for label in dict.fromkeys([*before, *after]):
        a, b = before.get(label), after.get(label)
        numbers = {
            node: len(body.inputs) + i
            for body in (a, b)
            if body is not None
            for i, node in enumerate(body.nodes)
        }
        for x, y, changes in pair_nodes(a, b):
            if x is not None and y is not None:
                state: State = "changed" if changes else "same"
                old[x], new[y] = _Fate(state, numbers[y], changes), _Fate(state, numbers[x], changes)
            elif x is not None:
                old[x] = _Fate("removed")
            elif y is not None:
                new[y] = _Fate("added")
    return old, new


def _paired(model: DrawnModel, other: DrawnModel, lonely: State) -> DrawnModel:
    """With the numbers of the other model's bodies, and of its inputs and outputs.

    Args:
        model, other: the two models.
        lonely: what an input or output is that the other model lacks.
    """
    places = {body.label: i for i, body in enumerate(other.bodies)}
    bodies = []
    for body in model.bodies:
        pair = places.get(body.label, -1)
        theirs = other.bodies[pair].nodes if pair >= 0 else ()
        ports = {(n.kind, n.name): i for i, n in enumerate(theirs) if n.kind != "node"}
        nodes = []
        for node in body.nodes:
            if node.kind != "node":
                found = ports.get((node.kind, node.name), -1)
                node = replace(node, pair=found, state="same" if found >= 0 else lonely)
            nodes.append(node)
        bodies.append(replace(body, pair=pair, nodes=tuple(nodes)))
    return replace(model, bodies=tuple(bodies))


def _title(model: Model) -> str:
    return Path(model.path).name if model.path is not None else str(model.graph.name or "model")


class _Artist:
    """Draws the bodies of one model.

    Args:
        model: the model.
        bodies: its bodies by label, the main graph first.
        fates: of nodes, where there is another model.
        notes: where to say what is not shown.
    """

    def __init__(
        self, model: Model, bodies: Mapping[str, Body], fates: Mapping[Node, _Fate], notes: list[str]
    ) -> None:
        from graphopt.graph.shapes import infer

        self._model, self._bodies, self._fates, self._notes = model, bodies, fates, notes
        self._facts: Facts = infer(model)
        self._number = {body: i for i, body in enumerate(bodies.values())}
        self._functions = {
            (f.domain, f.name, f.overload): self._number[f]
            for f in model.graph.functions
            if f in self._number
        }
        self._read = 0
        self._free: dict[Body, dict[Tensor, None]] = {}
        for body in model.bodies():  # inner bodies first
            self._free[body] = self._reads_from_outside(body)

    def model(self, title: str) -> DrawnModel:
        """All bodies."""
        holders: dict[Body, tuple[Body, int]] = {}
        for body in self._bodies.values():
            for i, node in enumerate(body.nodes):
                for inner in node.bodies():
                    holders[inner] = (body, len(body.inputs) + i)
        drawn = []
        for label, body in self._bodies.items():
            parent, holder = holders.get(body, (None, -1))
            number = -1 if parent is None else self._number[parent]
            drawn.append(replace(self._body(label, body), parent=number, holder=holder))
        self._model.release()
        return DrawnModel(title, tuple(drawn))

    def _reads_from_outside(self, body: Body) -> dict[Tensor, None]:
        """Tensors of enclosing bodies that this one reads, in bodies within it too."""
        own = {*body.inputs, *body.initializers, *(t for node in body.nodes for t in node.outputs)}
        read: dict[Tensor, None] = {}
        for node in body.nodes:
            read |= dict.fromkeys(node.inputs)
            for inner in node.bodies():
                read |= self._free[inner]
        read |= dict.fromkeys(body.outputs)
        return {t: None for t in read if t.name and t not in own}

    def _body(self, label: str, body: Body) -> DrawnBody:
        from graphopt.graph.text import op_text

        table = _Tensors(self, body)
        outer = self._free[body]
        nodes = [DrawnNode(t.name, "", "input", outputs=(table.number(t),)) for t in body.inputs]
        for node in body.nodes:
            fate = self._fates.get(node, _Fate("same"))
            inner = [self._number[b] for b in node.bodies() if b in self._number]
            if (called := self._functions.get((node.domain, node.op, node.overload))) is not None:
                inner.append(called)
            captures = dict.fromkeys(t for b in node.bodies() for t in self._free[b] if t not in outer)
            nodes.append(
                DrawnNode(
                    node.name,
                    op_text(node),
                    state=fate.state,
                    pair=fate.pair,
                    made_by=fate.by or _maker(node),
                    inputs=table.numbers(node.inputs),
                    outputs=table.numbers(node.outputs),
                    captures=table.numbers(captures),
                    attributes=_attributes(node),
                    changes=fate.changes,
                    bodies=tuple(inner),
                )
            )
        nodes += [DrawnNode(t.name, "", "output", inputs=(table.number(t),)) for t in body.outputs]
        return _placed(DrawnBody(label, nodes=tuple(nodes), tensors=tuple(table.rows)))

    def tensor(self, tensor: Tensor, kind: TensorKind) -> DrawnTensor:
        """One tensor with its type, as it is declared or else inferred."""
        from graphopt.graph.text import dtype_text, type_text
        from graphopt.ir import Constant

        if isinstance(tensor, Constant):
            return DrawnTensor(tensor.name, type_text(tensor), kind, self._stats(tensor))
        declared = type_text(tensor)
        if "[" not in declared:
            dtype, shape = self._facts.dtype(tensor), self._facts.shape(tensor)
            if dtype:
                declared = dtype_text(dtype)
                declared += "" if shape is None else f"[{','.join(map(str, shape))}]"
        return DrawnTensor(tensor.name, declared, kind)

    def _stats(self, tensor: Constant) -> str:
        """Size of an initializer and what its values are like, as far as reading them is cheap."""
        import numpy as np

        from graphopt.report.text import figure, size

        words = size(tensor.nbytes)
        elements = int(np.prod(tensor.shape, dtype=np.int64))
        if not elements:
            return words
        if elements > _READ_ELEMENTS or self._read + elements > _READ_TOTAL:
            self._notes.append("large initializers are shown without what their values are like")
            return words
        self._read += elements
        values = np.asarray(tensor.values)
        if values.dtype == object:
            return words
        if elements <= _FEW:
            return f"{words}: {', '.join(f'{v:.6g}' for v in values.reshape(-1).astype(np.float64))}"
        numbers = values.astype(np.float64)
        odd = int(elements - np.isfinite(numbers).sum())
        finite = numbers[np.isfinite(numbers)] if odd else numbers
        if finite.size:
            words += f": {figure(float(finite.min()))} to {figure(float(finite.max()))}"
            words += f", mean {figure(float(finite.mean()))}, std {figure(float(finite.std()))}"
        zeros = elements - int(np.count_nonzero(numbers))
        words += f", {100 * zeros / elements:.3g}% zeros" if zeros else ""
        return words + (f", {odd:,} NaN or infinite" if odd else "")


class _Tensors:
    """The tensors of one body, numbered as they are met."""

    def __init__(self, artist: _Artist, body: Body) -> None:
        self._artist = artist
        self._kinds: dict[Tensor, TensorKind] = dict.fromkeys(artist._free[body], "outer")
        self._kinds |= dict.fromkeys(body.initializers, "initializer")
        self._kinds |= dict.fromkeys(body.outputs, "output")
        self._kinds |= dict.fromkeys(body.inputs, "input")
        self._numbers: dict[Tensor, int] = {}
        self.rows: list[DrawnTensor] = []

    def number(self, tensor: Tensor) -> int:
        """The tensor's number; -1 for one that is left out."""
        if not tensor.name:
            return -1
        found = self._numbers.get(tensor)
        if found is None:
            found = self._numbers[tensor] = len(self.rows)
            self.rows.append(self._artist.tensor(tensor, self._kinds.get(tensor, "value")))
        return found

    def numbers(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        """Several."""
        return tuple(map(self.number, tensors))


def _maker(node: Node) -> str:
    from graphopt.graph.diff import made_by

    return made_by(node)


def _attributes(node: Node) -> tuple[str, ...]:
    from graphopt.graph.text import attribute_text

    texts = ((key, attribute_text(value)) for key, value in node.attrs.items())
    return tuple(f"{key}={text}" for key, text in texts if text is not None)


def _placed(body: DrawnBody) -> DrawnBody:
    """The body with a place for every node, and the lines that bend."""
    producer = {t: i for i, node in enumerate(body.nodes) for t in node.outputs if t >= 0}
    edges: list[Edge] = []
    constant: list[bool] = []
    for i, node in enumerate(body.nodes):
        still = node.kind == "node"
        for slot, tensor in enumerate((*node.inputs, *node.captures)):
            source = producer.get(tensor)
            if source is not None and source != i:
                edges.append(Edge(source, i, slot))
                still = still and source < i and constant[source]
            elif tensor >= 0 and body.tensors[tensor].kind == "outer":
                still = False
        constant.append(still)
    found = layout(len(body.nodes), edges, constant)
    routes: dict[int, list[tuple[int, ...]]] = {}
    cut: dict[int, list[int]] = {}
    for number, edge in enumerate(edges):
        if number in found.cut:
            cut.setdefault(edge.target, []).append(edge.slot)
        elif number in found.bends:
            points = (value for point in found.bends[number] for value in point)
            routes.setdefault(edge.target, []).append((edge.slot, *points))
    nodes = (
        replace(node, x=found.x[i], y=found.y[i], routes=tuple(routes.get(i, ())), cut=tuple(cut.get(i, ())))
        for i, node in enumerate(body.nodes)
    )
    return replace(body, nodes=tuple(nodes), width=found.width, height=found.height)
