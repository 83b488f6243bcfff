"""Which column blocks of a linear map to remove, and what the rest becomes, by second moments.

With H = X^T X, the error of Y = X W^T after removing the columns b and refitting all others optimally is
tr(W_b (H^-1_bb)^-1 W_b^T), and the refitted weights are W - W_b (H^-1_bb)^-1 H^-1_b: Hassibi and Stork,
"Optimal Brain Surgeon" (1993). Removing b from H^-1 is a downdate of rank |b|, so blocks are removed one
after another without another inversion, as in ZipLM (Kurtic et al., arXiv:2302.04089).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.linear.moments import Sums
from graphopt_passes.pruning._channels.labels import Ints, Mask

Floats = NDArray[np.float64]

# Steps in which units are removed; within one, scores are not refreshed.
_STEPS = 48
_DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1)
# Of problems with more columns fewer dampings are tried, on one half, and more units go at a time.
_LARGE = 1024


@dataclass
class Problem:
    """One consumer: what it multiplies with, and where it should come out.

    Attributes:
        xx: X^T X, (G, K, K), centred where a bias takes the mean.
        cross: X^T Y of the wanted outputs, (G, K, N).
        weights: those it has, (G, N, K).
        power: |Y|^2, centred likewise.
        units: (K,), the unit of each column, -1 for columns that stay.
        mean_x, mean_d: means of inputs, (G, K), and of what the outputs fall short of, (G, N); if centred.
    """

    xx: Floats
    cross: Floats
    weights: Floats
    power: float
    units: Ints
    mean_x: Floats | None = None
    mean_d: Floats | None = None

    def solve(self, columns: Mask, damping: float) -> Floats:
        """The weights (G, N, K) that come closest with only these columns, drawn towards those there are."""
        found = np.zeros_like(self.weights)
        if not columns.any():
            return found
        at = np.flatnonzero(columns)
        xx = self.xx[:, at[:, None], at[None, :]]
        ridge = _ridge(self.xx, damping)[:, columns]
        wanted = self.cross[:, columns] + ridge[:, :, None] * np.swapaxes(self.weights[..., columns], 1, 2)
        damped = xx + ridge[:, :, None] * np.eye(xx.shape[1])
        found[..., columns] = np.swapaxes(np.linalg.solve(damped, wanted), 1, 2)
        return found

    def error(self, weights: Floats) -> float:
        """|Y - X W^T|^2 up to a constant."""
        square = np.einsum("gnk,gnk->", weights @ self.xx, weights)
        return float(square - 2 * np.einsum("gkn,gnk->", self.cross, weights))

    def shift(self, weights: Floats) -> Floats | None:
        """What the bias has to take with other weights, (G, N)."""
        if self.mean_x is None or self.mean_d is None:
            return None
        moved: Floats = self.mean_d - np.einsum("gk,gnk->gn", self.mean_x, weights - self.weights)
        return moved


def _ridge(xx: Floats, damping: float) -> Floats:
    """What is added to the diagonal: relative to its mean, and more where an input never moves."""
    diagonal = np.diagonal(xx, axis1=1, axis2=2)
    mean = diagonal.mean(axis=1, keepdims=True)
    mean = np.where(mean > 0, mean, 1.0)
    return np.broadcast_to(damping * mean, diagonal.shape) + np.where(diagonal <= 1e-12 * mean, mean, 0.0)


def make_problem(sums: Sums, weights: Floats, units: Ints, centred: bool) -> Problem:
    """The problem of a consumer from the sums over its data.

    Args:
        sums: over its inputs, and the teacher's outputs where those were observed.
        weights: the consumer's, (G, N, K).
        units: (K,), the unit of each column, -1 for columns that stay.
        centred: a bias takes the mean error.
    """
    xx, count = sums.xx, max(sums.count, 1)
    mean_x = mean_d = None
    if centred:
        mean_x = sums.x / count
        xx = xx - sums.x[:, :, None] * mean_x[:, None, :]
    cross = xx @ np.swapaxes(weights, 1, 2)
    if centred:
        mean_d = sums.d / count if sums.d.size else np.zeros(weights.shape[:2])
    if sums.xd.size:
        cross = cross + sums.xd
        if centred:
            cross = cross - sums.x[:, :, None] * (sums.d / count)[:, None, :]
        power = float((sums.yy - (sums.y**2 / count if centred else 0.0)).sum())
    else:
        power = float(np.einsum("gkn,gnk->", cross, weights))
    return Problem(xx, cross, weights, max(power, 1e-30), units, mean_x, mean_d)


class Elimination:
    """Removes units from several problems at once, the least harmful first.

    Args:
        problems: the consumers of a group.
        count: units of the group.
        damping: added to the diagonals, relative to their means.
    """

    def __init__(self, problems: Sequence[Problem], count: int, damping: float = 1e-3) -> None:
        self._problems = problems
        self.alive: Mask = np.ones(count, bool)
        self._large = any(p.units.size > _LARGE for p in problems)
        #: What is left of each problem: the unit of each column, weights, and the inverse of X^T X.
        self._units = [p.units for p in problems]
        self._weights: list[Floats] = []
        self._inverse: list[Floats] = []
        for p in problems:
            ridge = _ridge(p.xx, damping)
            damped = p.xx.copy()
            at = np.arange(p.units.size)
            damped[:, at, at] += ridge
            inverse = np.linalg.inv(damped).astype(np.float64, copy=False)
            cross = p.cross + ridge[:, :, None] * np.swapaxes(p.weights, 1, 2)
            self._inverse.append(inverse)
            self._weights.append(np.swapaxes(inverse @ cross, 1, 2))

    def scores(self) -> Floats:
        """By unit, the error that removing it alone adds, relative to the power of the outputs."""
        total = np.zeros(len(self.alive))
        for p, units, w, inverse in zip(
            self._problems, self._units, self._weights, self._inverse, strict=True
        ):
            columns = np.argsort(units, kind="stable")
            found, first, sizes = np.unique(units[columns], return_index=True, return_counts=True)
            for size in np.unique(sizes[found >= 0]):
                chosen = np.flatnonzero((sizes == size) & (found >= 0))
                at = columns[first[chosen][:, None] + np.arange(size)]
                blocks = inverse[:, at[:, :, None], at[:, None, :]]
                parts = np.moveaxis(w[:, :, at], 1, 3)  # (G, units, size, N)
                errors = (parts * np.linalg.solve(blocks, parts)).sum(axis=(0, 2, 3))
                total[found[chosen]] += errors / p.power
        total[~self.alive] = np.inf
        return total

    def remove(self, units: Ints) -> None:
        """Take units out, refitting what is left."""
        self.alive[units] = False
        for i, (mine, w, inverse) in enumerate(zip(self._units, self._weights, self._inverse, strict=True)):
            goes = np.isin(mine, units)
            if not goes.any():
                continue
            at, rest = np.flatnonzero(goes), np.flatnonzero(~goes)
            block = inverse[:, at[:, None], at[None, :]]
            step = np.linalg.solve(block, inverse[:, at[:, None], rest[None, :]])
            self._units[i] = mine[rest]
            self._weights[i] = w[:, :, rest] - w[:, :, at] @ step
            left = inverse[:, rest[:, None], rest[None, :]]
            left -= inverse[:, rest[:, None], at[None, :]] @ step
            self._inverse[i] = left

    def order(self, most: int) -> tuple[Ints, Floats]:
        """Remove `most` units; in which order they went, and what each added to the error."""
        went: list[int] = []
        costs: list[float] = []
        step = max(1, -(-len(self.alive) // (_STEPS // 2 if self._large else _STEPS)))
        while len(went) < most:
            scores = self.scores()
            worst = np.argsort(scores, kind="stable")[: min(step, most - len(went))]
            went.extend(worst.tolist())
            costs.extend(scores[worst].tolist())
            self.remove(worst)
        return np.array(went, np.int64), np.array(costs)


def refit(problem: Problem, halves: Sequence[Problem], columns: Mask) -> Floats:
    """Weights for the columns that are left, with the damping that holds on data it was not fitted to.

    Where no fit does, the weights are left as they are.

    Args:
        problem: on all data.
        halves: on one half of the data each; the first damping is taken without two of them.
        columns: (K,), those that are left.
    """
    if len(halves) < 2:
        return problem.solve(columns, _DAMPINGS[1])
    large = columns.size > _LARGE
    fitted = halves[:1] if large else halves
    judges = halves[1:] if large else halves[::-1]

    def held_out(fits: Sequence[Floats]) -> float:
        return sum(half.error(fit) / half.power for half, fit in zip(judges, fits, strict=True))

    plain = np.where(columns, problem.weights, 0.0)
    best, damping = held_out([plain] * len(judges)), None
    for tried in _DAMPINGS[1:3] if large else _DAMPINGS:
        error = held_out([half.solve(columns, tried) for half in fitted])
        if error < best:
            best, damping = error, tried
    return plain if damping is None else problem.solve(columns, damping)
