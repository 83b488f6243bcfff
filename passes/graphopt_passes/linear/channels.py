"""How channels of a tensor relate to the teacher's: sums for a straight line through each."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, fields

import numpy as np

from graphopt.passkit import Array
from graphopt_passes.linear.layer import Floats
from graphopt_passes.linear.moments import Selection


def _nothing() -> Floats:
    return np.zeros(0)


@dataclass(eq=False)
class LineSums:
    """Sums over the positions of each channel, `(channels,)`, of the student's values s and the teacher's t.

    Attributes:
        s, t, ss, st, tt: sums of the values and of their products.
        count: positions per channel.
    """

    s: Floats = field(default_factory=_nothing)
    t: Floats = field(default_factory=_nothing)
    ss: Floats = field(default_factory=_nothing)
    st: Floats = field(default_factory=_nothing)
    tt: Floats = field(default_factory=_nothing)
    count: int = 0

    def include(self, other: LineSums) -> None:
        """Add all sums of `other`."""
        if not other.count:
            return
        self.count += other.count
        for f in fields(self):
            if f.name != "count":
                mine, theirs = getattr(self, f.name), getattr(other, f.name)
                setattr(self, f.name, mine + theirs if mine.size else theirs.copy())

    def error(self, slope: Floats, shift: Floats) -> Floats:
        """Squared error per channel of slope * s + shift."""
        left = (
            self.tt
            - 2 * slope * self.st
            - 2 * shift * self.t
            + slope**2 * self.ss
            + 2 * slope * shift * self.s
            + self.count * shift**2
        )
        return np.maximum(left, 0.0)

    def line(self, *, shifted: bool) -> tuple[Floats, Floats]:
        """The slope and shift with the least error per channel; the shift is 0 unless `shifted`."""
        s, t = (self.s / self.count, self.t / self.count) if shifted else (0.0 * self.s, 0.0 * self.t)
        ss, st = self.ss - self.count * s**2, self.st - self.count * s * t
        # A channel that hardly moves says nothing about its slope.
        moves = ss > 1e-9 * np.maximum(self.ss, np.finfo(np.float64).tiny)
        slope = np.divide(st, ss, out=np.ones_like(ss), where=moves)
        return slope, t - slope * s


class ChannelLines:
    """`LineSums` of a tensor along one axis, in two halves, for one to check what the other says.

    Updated with the student's value and the teacher's. Positions with NaN or infinity make a channel's sums
    so, and the channel useless.

    Args:
        axis: along which channels lie.
        selection: the teacher's channels that the student has; None for all.
    """

    def __init__(self, axis: int, selection: Selection | None = None) -> None:
        self.axis, self.selection = axis, selection
        self.halves = (LineSums(), LineSums())
        self._batches = 0

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("ChannelLines", self.axis, self.selection)

    @property
    def nbytes(self) -> int:
        """About how much memory this takes."""
        return 10 * int(self.halves[0].s.nbytes)

    @property
    def total(self) -> LineSums:
        """The sums over all positions."""
        total = LineSums()
        for half in self.halves:
            total.include(half)
        return total

    def fresh(self) -> ChannelLines:
        """An empty one with the same settings."""
        return ChannelLines(self.axis, self.selection)

    def update(self, *values: Array) -> None:
        """Take in one batch: the student's value and the teacher's.

        Raises:
            ValueError: they differ in shape.
        """
        student, teacher = values
        if self.selection is not None:
            teacher = self.selection(teacher)
        if student.shape != teacher.shape:
            raise ValueError(f"student and teacher differ in shape: {student.shape}, {teacher.shape}")
        middle = len(student) // 2 if student.ndim > 1 else 0
        for turn, at in enumerate((slice(middle), slice(middle, None))):
            s, t = (
                np.moveaxis(v[at], self.axis, -1).reshape(-1, v.shape[self.axis]).astype(np.float64)
                for v in (student, teacher)
            )
            with np.errstate(over="ignore", invalid="ignore"):
                sums = LineSums(
                    s.sum(axis=0),
                    t.sum(axis=0),
                    *(np.einsum("rc,rc->c", a, b) for a, b in ((s, s), (s, t), (t, t))),
                )
            sums.count = len(s)
            self.halves[(turn + self._batches) % 2].include(sums)
        self._batches += 1

    def merge(self, other: ChannelLines) -> None:
        """Take in what another one has seen."""
        if other.key != self.key:
            raise ValueError("statistics of different kinds do not merge")
        for mine, theirs in zip(self.halves, other.halves, strict=True):
            mine.include(theirs)
