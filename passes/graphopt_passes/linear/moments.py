"""What fitting a layer needs to know about the data: second moments of its inputs and of its error."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, fields

import numpy as np

from graphopt.passkit import Array, PassContext, Tensor
from graphopt_passes.linear.layer import Floats
from graphopt_passes.linear.rows import ConvRows, MatrixRows


def _nothing() -> Floats:
    return np.zeros(0)


@dataclass(eq=False)
class Sums:
    """Sums over rows of a layer's input x, of its output y in the teacher and of the error d = y - y'.

    y' is the student's own output on its own inputs x, so X^T d is what least squares needs to move the
    student's weights towards the teacher's outputs; taken from the difference, it does not lose its digits to
    the size of y.

    Attributes:
        xx: X^T X, (G, K, K); like all sums of no size where there was nothing to add.
        x: sums of x, (G, K).
        xd: X^T d, (G, K, N); of no size, like the sums below, where there were only inputs.
        d, dd: sums of d and of its squares, (G, N).
        y, yy: sums of y and of its squares, (G, N).
        count: rows per group.
    """

    xx: Floats = field(default_factory=_nothing)
    x: Floats = field(default_factory=_nothing)
    xd: Floats = field(default_factory=_nothing)
    d: Floats = field(default_factory=_nothing)
    dd: Floats = field(default_factory=_nothing)
    y: Floats = field(default_factory=_nothing)
    yy: Floats = field(default_factory=_nothing)
    count: int = 0

    def add(self, name: str, terms: Array) -> None:
        """Add `terms` to the sum `name`."""
        total = getattr(self, name)
        if total.size:
            with np.errstate(invalid="ignore"):
                total += terms
        else:
            setattr(self, name, terms.astype(np.float64))

    def include(self, other: Sums) -> None:
        """Add all sums of `other`."""
        self.count += other.count
        for f in fields(self):
            terms = getattr(other, f.name)
            if f.name != "count" and terms.size:
                self.add(f.name, terms)

    def of_rows(self, rows: slice) -> Sums:
        """The sums of some of the N outputs."""
        parts = {name: getattr(self, name) for name in ("xd", "d", "dd", "y", "yy")}
        kept = {name: part[..., rows] if part.size else part for name, part in parts.items()}
        return Sums(xx=self.xx, x=self.x, count=self.count, **kept)


@dataclass(frozen=True)
class Selection:
    """Which of the teacher's outputs a layer that was made narrower still has.

    Attributes:
        axis: along which axis of the output they lie.
        indices: their numbers in the teacher, in the student's order.
    """

    axis: int
    indices: tuple[int, ...]

    def __call__(self, value: Array) -> Array:
        """What is left of the teacher's `value`."""
        left: Array = np.take(value, self.indices, self.axis)
        return left


def twin_of(ctx: PassContext, tensor: Tensor) -> Tensor | None:
    """What `tensor` is in the teacher; None where it is nothing there, or was rescaled since."""
    return None if ctx.notes.get(("scaled", tensor)) else ctx.teacher.tensor(tensor)


def selection_of(ctx: PassContext, tensor: Tensor) -> Selection | None:
    """Which of the teacher's elements of `tensor` are left, by what the passes before noted."""
    noted = ctx.notes.get(("kept", tensor))
    if noted is None:
        return None
    axis, indices = noted
    return Selection(int(axis), tuple(int(i) for i in indices))


class LayerMoments:
    """The sums of `Sums` in two halves, for one to check what was learned from the other.

    Updated with the layer's input alone, or with the input, the student's output and the teacher's. Products
    are float32, sums float64. Rows with NaN or infinity are left out.

    Args:
        unfolding: how values become rows.
        selection: the teacher's outputs that the student has; None for all.
        bounds: what follows clips the outputs to this range. Where the teacher's is beyond it, the student's
            may be anywhere beyond it: the wanted output is then its own, or the bound. With that the squared
            error is never below the one behind the clip, and equal to it where it stands (but for outputs
            that are clipped and should not be), so that lowering it lowers what counts.

    Attributes:
        halves: the sums, each over about half of the rows.
        left_out: rows left out.
    """

    def __init__(
        self,
        unfolding: ConvRows | MatrixRows,
        selection: Selection | None = None,
        bounds: tuple[float, float] = (-np.inf, np.inf),
    ) -> None:
        self.unfolding, self.selection, self.bounds = unfolding, selection, bounds
        self.halves = (Sums(), Sums())
        self.left_out = 0
        self._blocks = 0

    @property
    def key(self) -> Hashable:
        """Kind and settings."""
        return ("LayerMoments", self.unfolding, self.selection, self.bounds)

    @property
    def nbytes(self) -> int:
        """About how much memory this takes."""
        return sum(int(half.xx.nbytes + half.xd.nbytes) for half in self.halves)

    @property
    def total(self) -> Sums:
        """The sums over all rows."""
        total = Sums()
        for half in self.halves:
            total.include(half)
        return total

    @property
    def is_finite(self) -> bool:
        """Whether no sum overflowed."""
        return all(np.isfinite(getattr(half, f.name)).all() for half in self.halves for f in fields(half))

    def fresh(self) -> LayerMoments:
        """An empty one with the same settings."""
        return LayerMoments(self.unfolding, self.selection, self.bounds)

    def update(self, *values: Array) -> None:
        """Take in one batch: the layer's input and, both or none, the student's and the teacher's output.

        Raises:
            ValueError: the student's and the teacher's output differ in shape.
        """
        x, *outputs = (v.astype(np.float32, copy=False) for v in values)
        if outputs:
            mine, wanted = outputs
            if self.selection is not None:
                wanted = self.selection(wanted)
            if mine.shape != wanted.shape:
                raise ValueError(f"student and teacher differ in shape: {mine.shape}, {wanted.shape}")
            with np.errstate(over="ignore", invalid="ignore"):
                outputs = [self._error(mine, wanted), wanted]
        for block in self.unfolding.blocks(x, *outputs):
            block = self._finite(block)
            # Rows of one sample stay together as far as they can: neighbors are no test of each other.
            middle = block[0].shape[1] // 2
            for turn, at in enumerate((slice(middle), slice(middle, None))):
                half = self.halves[(turn + self._blocks) % 2]
                _accumulate(half, [part[:, at] for part in block])
            self._blocks += 1

    def merge(self, other: LayerMoments) -> None:
        """Take in what another one has seen."""
        if other.key != self.key:
            raise ValueError("statistics of different kinds do not merge")
        self.left_out += other.left_out
        for mine, theirs in zip(self.halves, other.halves, strict=True):
            mine.include(theirs)

    def _error(self, mine: Array, wanted: Array) -> Array:
        """What the student's outputs lack."""
        low, high = self.bounds
        error = wanted - mine
        if low > -np.inf:
            error = np.where(wanted <= low, np.minimum(low - mine, 0), error)
        if high < np.inf:
            error = np.where(wanted >= high, np.maximum(high - mine, 0), error)
        return error

    def _finite(self, block: list[Array]) -> list[Array]:
        """The block with zeros in the rows that are not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            if all(np.isfinite(part.sum()) for part in block):
                return block
        # A row is left out of all groups, so that all have the same number of them.
        good = np.logical_and.reduce([np.isfinite(part).all(axis=(0, 2)) for part in block])
        self.left_out += good.size - int(good.sum())
        return [part[:, good] for part in block]


def _accumulate(half: Sums, block: list[Array]) -> None:
    rows, *outputs = block
    if not rows.shape[1]:
        return
    turned = np.swapaxes(rows, 1, 2)
    half.count += rows.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large to square shows in the sums
        half.add("xx", turned @ rows)
        half.add("x", rows.sum(axis=1, dtype=np.float64))
        if outputs:
            half.add("xd", turned @ outputs[0])
        for name, values in zip(("d", "y"), outputs, strict=False):
            half.add(name, values.sum(axis=1, dtype=np.float64))
            half.add(name * 2, np.einsum("grn,grn->gn", values, values, dtype=np.float64))
