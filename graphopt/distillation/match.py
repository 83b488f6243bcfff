"""Which tensor of the teacher each tensor of the student is to become: along the depth, in order."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from graphopt.distillation.anchors import Anchor
from graphopt.distillation.channels import Indices, choose_channels
from graphopt.distillation.similarity import Floats, Samples, similarities

How = Literal["map", "name", "output", "correlation"]

# What counts beside the similarity: the same part of the depth, kind of tensor, form of a kernel, and name.
_DEPTH: Final = 0.5
_SAME_KIND: Final = 0.1
_SAME_FORM: Final = 0.2
_SAME_NAME: Final = 0.2
# Names that exporters number mean nothing.
NUMBERED: Final = re.compile(r"\D{0,12}\d+")
# Ways to be certain outweigh any similarity.
_CERTAIN: Final = 1e3


@dataclass(frozen=True, eq=False)
class Match:
    """A tensor of the student and the one of the teacher that it is to become.

    Attributes:
        student, teacher: the two.
        how: by what they were found.
        similarity: linear CKA as the student is, between 0 and 1.
        channels: which of the teacher's channels; None: all, in their order.
        width: how many channels the teacher has.
    """

    student: Anchor
    teacher: Anchor
    how: How
    similarity: float
    channels: Indices | None = None
    width: int = 0


def match(
    student: Sequence[Anchor],
    teacher: Sequence[Anchor],
    mine: Mapping[Anchor, Samples],
    theirs: Mapping[Anchor, Samples],
    certain: Mapping[tuple[Anchor, Anchor], How],
) -> list[Match]:
    """Pairs of anchors, at most one for each, so that order along the depth is kept.

    Args:
        student, teacher: the anchors of both.
        mine, theirs: what they hold on the data.
        certain: pairs that are known.
    """
    alike = similarities([mine[a].rows for a in student], [theirs[a].rows for a in teacher])
    score = np.full(alike.shape, -np.inf)
    deepest = [max((a.level for a in side), default=1) for side in (student, teacher)]
    for i, a in enumerate(student):
        for j, b in enumerate(teacher):
            if (a, b) in certain:
                score[i, j] = _CERTAIN
            elif fits(a, b, mine[a], theirs[b]):
                apart = abs(a.level / deepest[0] - b.level / deepest[1])
                score[i, j] = alike[i, j] + _DEPTH * (1 - apart) + _bonus(a, b)
    pairs = in_order([a.level for a in student], [b.level for b in teacher], score)
    found = [
        Match(
            student[i], teacher[j], certain.get((student[i], teacher[j]), "correlation"), float(alike[i, j])
        )
        for i, j in pairs
    ]
    return _with_channels(found, mine, theirs)


def _bonus(a: Anchor, b: Anchor) -> float:
    named = a.name == b.name and not NUMBERED.fullmatch(a.name)
    return _SAME_KIND * (a.kind == b.kind) + _SAME_FORM * (a.form == b.form) + _SAME_NAME * named


def fits(a: Anchor, b: Anchor, mine: Samples, theirs: Samples) -> bool:
    """Whether a tensor of the student can become one of the teacher, or some channels of it."""
    if mine.shape is None or theirs.shape is None or len(mine.shape) != len(theirs.shape):
        return False
    if (a.kind == "norm") != (b.kind == "norm") or a.axis % (len(mine.shape) + 1) != b.axis % (
        len(theirs.shape) + 1
    ):
        return False
    at = a.axis - 1 if a.axis > 0 else a.axis
    rest_a, rest_b = list(mine.shape), list(theirs.shape)
    width_a, width_b = rest_a.pop(at), rest_b.pop(at)
    if rest_a != rest_b:
        return False
    # Heads are no channels that could be left out one by one, and queries are no values.
    return a.attends == b.attends and (width_a == width_b if a.attends else width_a <= width_b)


def in_order(mine: Sequence[int], theirs: Sequence[int], score: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs with the largest total score whose levels rise together.

    Args:
        mine, theirs: level of each anchor.
        score: of each pair, -inf where they do not fit.
    """
    rows, columns = sorted(set(mine)), sorted(set(theirs))
    members = [[i for i, level in enumerate(mine) if level == r] for r in rows]
    others = [[j for j, level in enumerate(theirs) if level == c] for c in columns]
    best = np.zeros((len(rows) + 1, len(columns) + 1))
    chosen: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for r in range(len(rows)):
        for c in range(len(columns)):
            pairs = _at_one_level(members[r], others[c], score)
            both = best[r, c] + sum(score[i, j] for i, j in pairs)
            best[r + 1, c + 1] = max(best[r, c + 1], best[r + 1, c])
            if pairs and both > best[r + 1, c + 1]:
                best[r + 1, c + 1] = both
                chosen[r, c] = pairs
    found: list[tuple[int, int]] = []
    r, c = len(rows), len(columns)
    while r and c:
        if (r - 1, c - 1) in chosen and best[r, c] > max(best[r - 1, c], best[r, c - 1]):
            found += chosen[r - 1, c - 1]
            r, c = r - 1, c - 1
        elif best[r - 1, c] >= best[r, c - 1]:
            r -= 1
        else:
            c -= 1
    return sorted(found)


def _at_one_level(
    mine: Sequence[int], theirs: Sequence[int], score: NDArray[np.float64]
) -> list[tuple[int, int]]:
    """Pairs of anchors that do not depend on each other, the best first."""
    ranked = sorted(
        ((score[i, j], -i, -j) for i in mine for j in theirs if np.isfinite(score[i, j])), reverse=True
    )
    found: list[tuple[int, int]] = []
    for _, i, j in ranked:
        if all(-i != a and -j != b for a, b in found):
            found.append((-i, -j))
    return found


def _with_channels(
    found: Sequence[Match], mine: Mapping[Anchor, Samples], theirs: Mapping[Anchor, Samples]
) -> list[Match]:
    """The matches with channels chosen, the same ones wherever channels are the same."""
    groups: dict[int, list[Match]] = {}
    for pair in found:
        groups.setdefault(pair.student.group, []).append(pair)
    result: list[Match] = []
    for members in groups.values():
        # Where the teacher has other channels in between, the student cannot follow both.
        counts = [sum(m.teacher.group == other.teacher.group for other in members) for m in members]
        main = members[int(np.argmax(counts))].teacher.group
        alike = [m for m in members if m.teacher.group == main]
        rows = [(_seen(m.student, mine), _seen(m.teacher, theirs)) for m in alike]
        width = rows[0][0].shape[1]
        fixed = any(m.student.attends or m.how == "output" for m in members)
        channels = None
        if not fixed and all(b.shape[1] == rows[0][1].shape[1] for _, b in rows):
            channels = choose_channels([a for a, _ in rows], [b for _, b in rows], width)
        for m in members:
            same = theirs[m.teacher].rows.shape[1] == width
            if m in alike and (channels is not None or same):
                wide = rows[0][1].shape[1]
                result.append(Match(m.student, m.teacher, m.how, m.similarity, channels, wide))
            elif channels is None and same:
                result.append(m)
    order: Collection[Match] = {id(m.student): m for m in result}.values()
    return sorted(order, key=lambda m: m.student.level)


def _seen(anchor: Anchor, samples: Mapping[Anchor, Samples]) -> Floats:
    """What the next layers see of a tensor."""
    rows = samples[anchor].rows
    return np.maximum(rows, 0) if anchor.clipped else rows
