"""Indices and palettes with the least error of a layer's outputs. Pure numpy.

The weights of each output are set to the nearest entry one after another, and those still to come make up for
the error (GPTQ, Frantar et al., arXiv:2210.17323, with palettes in the place of integers). Then by turns:
every weight moves to its best entry while all others stay (QuantEase, Behdin et al., arXiv:2309.01885), and
all entries of all palettes move at once to where the squared error is least, by conjugate gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from graphopt.passkit import Array
from graphopt_passes.linear.layer import Floats

_TURNS: Final = 6
_SWEEPS: Final = 3
_STEPS: Final = 12
# Multiplications of one sweep above which the first solution has to do.
_DEAR: Final = 1 << 30
# Relative decrease of the error that is worth another turn.
_WORTH: Final = 2e-3


@dataclass(frozen=True)
class Task:
    """|X (Q - T)^T|^2 is to be small, with every element of Q an entry of its palette.

    Attributes:
        hessian: X^T X, (G, K, K), safe to invert.
        target: T, (G, N, K).
        which: the palette of each weight, (G, N, K).
        frozen: weights that are 0 and stay so, (G, N, K); None: none. Their palettes keep an entry of 0.
    """

    hessian: Floats
    target: Floats
    which: Array
    frozen: Array | None

    def error(self, weights: Floats) -> float:
        """The squared error."""
        step = weights - self.target
        return float(np.einsum("gnk,gnk->", step @ self.hessian, step))


def assign(task: Task, palettes: Floats) -> tuple[Array, Floats]:
    """The best palettes and indices that were found.

    Args:
        task: what to minimize.
        palettes: to begin with, (palettes, entries), each ascending.

    Returns:
        uint8 indices, (G, N, K), and palettes as they were given, with other values.
    """
    index = _forward(task, palettes)
    best = task.error(_take(palettes, task.which, index))
    dear = task.target.size * task.target.shape[2] > _DEAR
    for _ in range(1 if dear else _TURNS):
        moved, turned = _move(task, palettes, index)
        if not dear:
            turned = _descend(task, moved, turned)
        error = task.error(_take(moved, task.which, turned))
        if not error < best:
            break
        enough = error > best * (1 - _WORTH)
        palettes, index, best = moved, turned, error
        if enough:
            break
    return index.astype(np.uint8), palettes


def _take(palettes: Floats, which: Array, index: Array) -> Floats:
    found: Floats = palettes[which, index]
    return found


def _snap(palettes: Floats, which: Array, values: Floats) -> Array:
    """Index of the nearest entry of each value's palette."""
    middles = (palettes[:, 1:] + palettes[:, :-1]) / 2
    if len(palettes) == 1:
        found: Array = np.searchsorted(middles[0], values)
        return found
    return np.asarray((values[..., None] > middles[which]).sum(axis=-1))


def _forward(task: Task, palettes: Floats) -> Array:
    """One column after another, the columns with the largest inputs first."""
    groups, _, columns = task.target.shape
    power = np.diagonal(task.hessian, axis1=1, axis2=2).sum(axis=0)
    order = np.argsort(-power, kind="stable")
    inverse = np.linalg.inv(task.hessian[:, order][:, :, order])
    upper = np.swapaxes(np.linalg.cholesky((inverse + np.swapaxes(inverse, 1, 2)) / 2), 1, 2)
    weights = task.target[..., order].copy()
    index = np.zeros(task.target.shape, np.int64)
    for k, column in enumerate(order):
        which = task.which[..., column]
        chosen = _snap(palettes, which, weights[..., k])
        if task.frozen is not None:
            chosen = np.where(task.frozen[..., column], _zero_of(palettes)[which], chosen)
        index[..., column] = chosen
        error = (weights[..., k] - palettes[which, chosen]) / upper[:, k, k].reshape(groups, 1)
        weights[..., k + 1 :] -= error[..., None] * upper[:, None, k, k + 1 : columns]
    return index


def _zero_of(palettes: Floats) -> Array:
    """Index of the entry nearest to 0 of each palette."""
    nearest: Array = np.abs(palettes).argmin(axis=1)
    return nearest


def _descend(task: Task, palettes: Floats, index: Array) -> Array:
    """Each weight to its best entry while the others stay, column by column."""
    index = index.copy()
    hessian = task.hessian
    diagonal = np.diagonal(hessian, axis1=1, axis2=2)
    now = _take(palettes, task.which, index)
    gradient = (now - task.target) @ hessian
    for _ in range(_SWEEPS):
        moved = 0
        for k in range(index.shape[2]):
            which = task.which[..., k]
            wanted = now[..., k] - gradient[..., k] / diagonal[:, k, None]
            chosen = _snap(palettes, which, wanted)
            if task.frozen is not None:
                chosen = np.where(task.frozen[..., k], index[..., k], chosen)
            step = palettes[which, chosen] - now[..., k]
            if not step.any():
                continue
            moved += int(np.count_nonzero(step))
            index[..., k], now[..., k] = chosen, now[..., k] + step
            gradient += step[..., None] * hessian[:, None, k, :]
        if moved <= 1e-3 * index.size:
            break
    return index


def _move(task: Task, palettes: Floats, index: Array) -> tuple[Floats, Array]:
    """Palettes with the least error for these indices, in ascending order, and the indices into them."""
    entries = palettes.shape[1]
    flat = (task.which * entries + index).reshape(-1)
    free = np.ones(palettes.size, bool)
    if task.frozen is not None:
        free[np.arange(len(palettes)) * entries + _zero_of(palettes)] = False

    def gather(terms: Floats) -> Floats:
        sums = np.bincount(flat, terms.reshape(-1), palettes.size)
        return np.where(free, sums, 0.0)

    at = palettes.reshape(-1).copy()
    rest = gather((task.target - at[flat].reshape(index.shape)) @ task.hessian)
    direction, power = rest.copy(), float(rest @ rest)
    for _ in range(_STEPS):
        if power <= 0:
            break
        image = gather(direction[flat].reshape(index.shape) @ task.hessian)
        curvature = float(direction @ image)
        if curvature <= 0:
            break
        length = power / curvature
        at += length * direction
        rest -= length * image
        fresh = float(rest @ rest)
        direction, power = rest + (fresh / power) * direction, fresh
    moved = at.reshape(palettes.shape)
    order = np.argsort(moved, axis=1, kind="stable")
    places = np.argsort(order, axis=1, kind="stable")
    return np.take_along_axis(moved, order, axis=1), places[task.which, index]
