"""Inputs and outputs of teacher and student: whether they fit, and under which names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from graphopt.errors import UserError
from graphopt.graph.facts import Facts
from graphopt.graph.shapes import infer
from graphopt.ir import Tensor
from graphopt.model import Model

Side = Literal["input", "output"]


def aligned(teacher: Model, student: Model) -> Model:
    """A copy of the teacher whose inputs and outputs have the names that the student gives them.

    They belong together by name; those that do not, by their place.

    Raises:
        UserError: they do not fit.
    """
    copy = teacher.copy()
    theirs, mine = infer(copy), infer(student)
    fixed = {t.name for t in copy.graph.defaults}, {t.name for t in student.graph.defaults}
    for side in ("input", "output"):
        those = [t for t in getattr(copy.graph, f"{side}s") if side == "output" or t.name not in fixed[0]]
        these = [t for t in getattr(student.graph, f"{side}s") if side == "output" or t.name not in fixed[1]]
        for a, b in _pairs(those, these, side):
            _check(a, b, theirs, mine, side)
            _rename(copy, a, b.name)
    return copy


def _pairs(theirs: Sequence[Tensor], mine: Sequence[Tensor], side: Side) -> list[tuple[Tensor, Tensor]]:
    names = {t.name: t for t in theirs}
    pairs = [(names[t.name], t) for t in mine if t.name in names]
    left = [t for t in mine if t.name not in names]
    done = {id(a) for a, _ in pairs}
    others = [t for t in theirs if id(t) not in done]
    if len(left) != len(others):
        words = [", ".join(t.name for t in ts) or "none" for ts in (theirs, mine)]
        raise UserError(
            f"the {side}s of the two models differ: the teacher has {words[0]}, the student {words[1]}",
            fix=f"export both with the same {side}s",
        )
    return pairs + list(zip(others, left, strict=True))


def _check(a: Tensor, b: Tensor, theirs: Facts, mine: Facts, side: Side) -> None:
    first, second = theirs.shape(a), mine.shape(b)
    words = f"the {side} {b.name} of the student", f"{a.name} of the teacher"
    if theirs.dtype(a) != mine.dtype(b):
        raise UserError(
            f"{words[0]} and {words[1]} are of different types", fix="export both with the same types"
        )
    if first is None or second is None:
        return
    same = len(first) == len(second) and all(
        x == y or not isinstance(x, int) or not isinstance(y, int) for x, y in zip(first, second, strict=True)
    )
    if not same:
        text = ["[" + ", ".join(map(str, shape)) + "]" for shape in (first, second)]
        raise UserError(
            f"{words[0]} has the shape {text[1]}, {words[1]} {text[0]}",
            fix="both models have to take and to give the same",
        )


def _rename(model: Model, tensor: Tensor, name: str) -> None:
    if tensor.name == name:
        return
    for body in model.bodies():
        computed = (t for node in body.nodes for t in node.outputs)
        for other in (*body.inputs, *body.initializers, *computed):
            if other is not tensor and other.name == name:
                other.name = f"{name}/of_teacher"
    tensor.name = name
