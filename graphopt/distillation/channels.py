"""Which of the teacher's channels a student with fewer, or with others, is to have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from graphopt.distillation.similarity import Floats, correlations

Indices = NDArray[np.int64]

# Mean correlation of matched channels from which on the student is taken to have learned them.
_LEARNED: Final = 0.5


def choose_channels(student: Sequence[Floats], teacher: Sequence[Floats], width: int) -> Indices | None:
    """The teacher's channels that the student's are to be, in the student's order; None: as they are.

    A student that was trained has some of them already: each of its channels gets the one that it correlates
    with most. For one that was not, those are chosen from which all others follow best, one after another: by
    each the largest share of the variance that is left (A. K. Farahat, A. Ghodsi, M. S. Kamel, "An efficient
    greedy method for unsupervised feature selection", ICDM 2011).

    Args:
        student, teacher: rows of matched tensors with the same channels.
        width: how many the student has.
    """
    theirs = teacher[0].shape[1]
    found = [np.abs(correlations(mine, other)) for mine, other in zip(student, teacher, strict=True)]
    strength: NDArray[np.float64] = np.mean(found, axis=0)
    assigned, mean = assign(strength)
    if width == theirs:
        as_is = float(np.mean(np.diagonal(strength)))
        better = mean >= _LEARNED and mean > as_is + 0.1
        return assigned if better else None
    if mean >= _LEARNED:
        return assigned
    chosen = representative(teacher, width)
    order, _ = assign(strength[:, chosen])
    return chosen[order]


def assign(strength: NDArray[np.float64]) -> tuple[Indices, float]:
    """A column for each row, each once, the strongest first; and their mean strength."""
    rows, columns = strength.shape
    found = np.full(rows, -1, np.int64)
    taken = np.zeros(columns, bool)
    left = rows
    for at in np.argsort(-strength, axis=None, kind="stable"):
        row, column = divmod(int(at), columns)
        if found[row] < 0 and not taken[column]:
            found[row], taken[column] = column, True
            left -= 1
            if not left:
                break
    return found, float(strength[np.arange(rows), found].mean())


def representative(tensors: Sequence[Floats], width: int) -> Indices:
    """Channels from which all others follow best by linear regression, the most telling first."""
    channels = tensors[0].shape[1]
    left = np.zeros((channels, channels))
    for rows in tensors:
        x = np.nan_to_num(rows.astype(np.float64), posinf=0, neginf=0)
        x = x - x.mean(axis=0)
        covariance = x.T @ x
        left += covariance / max(float(np.trace(covariance)), 1e-30)
    chosen: list[int] = []
    least = 1e-9 * float(np.trace(left)) / channels
    for _ in range(width):
        power = np.diagonal(left)
        gains = np.where(power > least, (left**2).sum(axis=0) / np.maximum(power, least), -1.0)
        gains[chosen] = -2.0
        best = int(np.argmax(gains))
        chosen.append(best)
        if power[best] > least:
            left = left - np.outer(left[best], left[best]) / power[best]
    return np.array(chosen, np.int64)
