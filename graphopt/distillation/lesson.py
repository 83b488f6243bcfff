"""What a student is to learn from a teacher: pairs of tensors, found on data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from graphopt.distillation.anchors import Anchor, behind_bias, find_anchors
from graphopt.distillation.match import NUMBERED, How, Match, fits, match
from graphopt.distillation.similarity import Samples
from graphopt.errors import UserError
from graphopt.graph.shapes import infer
from graphopt.graph.state import GraphState
from graphopt.graph.view import GraphView
from graphopt.ir import Tensor
from graphopt.model import Model
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.services import Request, Services
from graphopt.pipeline.teacher import Teacher

MatchBy = Literal["auto", "name", "correlation"]


@dataclass
class Lesson:
    """Makes the teacher of a run, and remembers what was matched.

    Attributes:
        model: the teacher, with the student's names of inputs and outputs.
        services: runs both on the data.
        given: pairs of names, student's and teacher's, that the user knows.
        by: how the others are found.
        matches: what was found, once the run has begun.
        unmatched: tensors of the student that are not taught.
    """

    model: Model
    services: Services
    given: Mapping[str, str] = field(default_factory=dict)
    by: MatchBy = "auto"
    matches: list[Match] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)

    def __call__(self, state: GraphState, ctx: PassContext) -> Teacher:
        """The teacher for the student at hand; notes which of its channels the student is to have.

        Raises:
            UserError: a given name is not there, or its tensors do not fit.
        """
        mine = GraphView(state, state.model.graph)
        theirs = GraphView(GraphState(self.model, infer(self.model)), self.model.graph)
        student, teacher = find_anchors(mine), find_anchors(theirs)
        _Names(mine, theirs, self.given).check()
        student += self._extra(mine, self.given, student)
        teacher += self._extra(theirs, {v: k for k, v in self.given.items()}, teacher)
        samples = self._samples(state.finish(), student, teacher)
        certain = self._certain(mine, theirs, student, teacher, *samples)
        self.matches = match(student, teacher, *samples, certain)
        if self.by == "name":
            self.matches = [m for m in self.matches if m.how != "correlation"]
        taught = {id(m.student) for m in self.matches}
        self.unmatched = [a.name for a in student if id(a) not in taught]
        twins: dict[Tensor, Tensor] = {}
        for pair in self.matches:
            twins[pair.student.tensor] = pair.teacher.tensor
            if pair.channels is not None:
                # Channels lie where they do in the student, counted from the back or not.
                ctx.notes["kept", pair.student.tensor] = (pair.student.axis, pair.channels)
        for a, b in zip(mine.outputs, _outputs(mine, theirs), strict=True):
            twins.setdefault(a, b)
        return Teacher.of(self.model, twins)

    def _samples(
        self, student: Model, mine: Sequence[Anchor], theirs: Sequence[Anchor]
    ) -> tuple[dict[Anchor, Samples], dict[Anchor, Samples]]:
        requests = [Request(Samples(a.axis), (a.name,)) for a in mine]
        requests += [Request(Samples(b.axis), (), (b.name,)) for b in theirs]
        found = self.services.observe(student, self.model, requests)
        count = len(mine)
        return dict(zip(mine, found[:count], strict=True)), dict(zip(theirs, found[count:], strict=True))

    def _extra(self, graph: GraphView, given: Mapping[str, str], anchors: Sequence[Anchor]) -> list[Anchor]:
        """Tensors that the user names and that are no anchors by themselves."""
        known = {a.tensor for a in anchors}
        found: list[Anchor] = []
        for name in given:
            tensor = _tensor(graph, name)
            if tensor is not None and tensor not in known:
                axis = 1 if (graph.rank(tensor) or 0) > 3 else -1
                level = max((a.level for a in anchors if _before(graph, a.tensor, tensor)), default=0)
                group = -1 - len(found)
                found.append(Anchor(tensor, "layer", axis, level, "", False, group, str(tensor.name)))
        return found

    def _certain(
        self,
        mine: GraphView,
        theirs: GraphView,
        student: Sequence[Anchor],
        teacher: Sequence[Anchor],
        samples: Mapping[Anchor, Samples],
        others: Mapping[Anchor, Samples],
    ) -> dict[tuple[Anchor, Anchor], How]:
        """Pairs that are known: what the user says, outputs, and equal names."""
        certain: dict[tuple[Anchor, Anchor], How] = {}
        by_tensor = {a.tensor: a for a in student}, {b.tensor: b for b in teacher}
        for a, b in zip(mine.outputs, _outputs(mine, theirs), strict=True):
            for x, y in _back(mine, theirs, a, b):
                if x in by_tensor[0] and y in by_tensor[1]:
                    certain[by_tensor[0][x], by_tensor[1][y]] = "output"
        for name, other in self.given.items():
            tensors = _tensor(mine, name), _tensor(theirs, other)
            assert tensors[0] is not None
            assert tensors[1] is not None
            pair = by_tensor[0][tensors[0]], by_tensor[1][tensors[1]]
            held = samples[pair[0]], others[pair[1]]
            if not fits(*pair, *held):
                raise UserError(
                    f"--map {name}={other}: {_words(held[0])} cannot become {_words(held[1])}",
                    fix="all dims but the channels have to be equal, and the student have no more of these",
                )
            certain[pair] = "map"
        if self.by == "correlation":
            return certain
        named = self._by_name(student, teacher, samples, others)
        same = [a.kind for a in student] == [b.kind for b in teacher]
        if self.by == "name" or (same and 2 * len(named) >= len(student)):
            for pair in named:
                certain.setdefault(pair, "name")
        return certain

    def _by_name(
        self,
        student: Sequence[Anchor],
        teacher: Sequence[Anchor],
        samples: Mapping[Anchor, Samples],
        others: Mapping[Anchor, Samples],
    ) -> list[tuple[Anchor, Anchor]]:
        names = {b.name: b for b in teacher}
        pairs = [(a, names[a.name]) for a in student if a.name in names]
        return [
            (a, b)
            for a, b in pairs
            if (self.by == "name" or not NUMBERED.fullmatch(a.name)) and fits(a, b, samples[a], others[b])
        ]


def _words(samples: Samples) -> str:
    return f"[N, {', '.join(map(str, samples.shape or ()))}]"


def _outputs(mine: GraphView, theirs: GraphView) -> list[Tensor]:
    """The teacher's outputs in the student's order."""
    names = {t.name: t for t in theirs.outputs}
    return [names[t.name] for t in mine.outputs]


def _back(mine: GraphView, theirs: GraphView, a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    """A pair of outputs, and what they are computed from as long as that is by the same operators."""
    pairs = [(a, b)]
    while True:
        x, y = mine.producer(a), theirs.producer(b)
        if x is None or y is None or x.op != y.op or len(x.inputs) != 1 or len(y.inputs) != 1:
            return pairs
        a, b = x.inputs[0], y.inputs[0]
        pairs.append((a, b))


def _before(graph: GraphView, tensor: Tensor, other: Tensor) -> bool:
    """Whether `other` is computed from `tensor`."""
    seen, stack = {other}, [other]
    while stack:
        current = stack.pop()
        if current is tensor:
            return True
        node = graph.producer(current)
        for t in node.inputs if node is not None else ():
            if t not in seen:
                seen.add(t)
                stack.append(t)
    return False


def _tensor(graph: GraphView, name: str) -> Tensor | None:
    """The tensor of that name, or what the node of that name computes, behind its bias."""
    for node in graph.nodes():
        if node.name == name:
            return behind_bias(graph, node.outputs[0])
        for tensor in node.outputs:
            if tensor.name == name:
                return tensor
    return None


class _Names:
    """Checks the names that the user gives."""

    def __init__(self, mine: GraphView, theirs: GraphView, given: Mapping[str, str]) -> None:
        self.sides = (("student", mine), ("teacher", theirs))
        self.given = given

    def check(self) -> None:
        """Raise UserError for a name that is not there."""
        for pair in self.given.items():
            for name, (side, graph) in zip(pair, self.sides, strict=True):
                if _tensor(graph, name) is None:
                    names = {t.name for node in graph.nodes() for t in node.outputs} | {
                        node.name for node in graph.nodes()
                    }
                    close = difflib.get_close_matches(name, names - {""}, n=3, cutoff=0.4)
                    raise UserError(
                        f"--map {pair[0]}={pair[1]}: the {side} computes no {name!r} in its main graph",
                        fix=f"names close to it: {', '.join(close)}" if close else None,
                    )
