"""GPTQ: columns are rounded one after another, and the columns left make up for the error.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh: "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", arXiv:2210.17323, 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt_passes.quantization._rounding.problem import Floats, Lattice, Problem

# Columns whose updates are applied to the rest in one matrix product.
BLOCK = 64


def gptq(problem: Problem, *, block: int = BLOCK) -> Floats:
    """Codes, (G, N, K), by GPTQ in the order of falling Hessian diagonal ("act-order").

    The order is that of each group. Scales stay what they are, whatever the order, so the result fits any
    lattice, those of blocks included. Never worse than rounding to nearest: a row for which it is gets that.
    """
    codes, _ = sweep(Ordered.of(problem), problem.target, problem.lattice, block)
    return problem.better(problem.lattice.nearest(problem.target), codes)


@dataclass(frozen=True, eq=False)
class Ordered:
    """What GPTQ needs of a Hessian, for any weights and lattice.

    Attributes:
        order: columns in the order in which they are rounded, (G, K).
        factor: upper triangular U with U^T U = H^-1 in that order, (G, K, K).
    """

    order: NDArray[Any]
    factor: Floats

    @staticmethod
    def of(problem: Problem) -> Ordered:
        """Of the Hessian of `problem`."""
        order = np.argsort(-problem.diagonal, axis=1, kind="stable")
        hessian = np.take_along_axis(problem.hessian, order[:, :, None], 1)
        hessian = np.take_along_axis(hessian, order[:, None, :], 2)
        return Ordered(order, _inverse_factor(hessian))


def sweep(ordered: Ordered, target: Floats, lattice: Lattice, block: int = BLOCK) -> tuple[Floats, Floats]:
    """Round all columns of `target`, (G, N, K), once: the codes, and the objective of each row, (G, N).

    The objective comes for free: it is the sum of the squared errors that are handed on.
    """
    order, factor = ordered.order, ordered.factor
    weights = np.take_along_axis(target, order[:, None, :], 2)
    lattice = lattice.reordered(order)
    codes = np.empty_like(weights)
    losses = np.zeros(weights.shape[:2])
    columns = weights.shape[2]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = np.empty((*weights.shape[:2], stop - start))
        for k in range(start, stop):
            at = slice(k, k + 1)
            part = lattice.columns(at)
            codes[..., at] = part.nearest(weights[..., at])
            error = (weights[..., at] - part.values(codes[..., at])) / factor[:, k, k, None, None]
            errors[..., k - start : k - start + 1] = error
            weights[..., k:stop] -= error * factor[:, None, k, k:stop]
        weights[..., stop:] -= errors @ factor[:, start:stop, stop:]
        losses += np.einsum("gnk,gnk->gn", errors, errors)
    back = np.argsort(order, axis=1, kind="stable")
    return np.take_along_axis(codes, back[:, None, :], 2), losses


def _inverse_factor(hessian: Floats) -> Floats:
    """Upper triangular U with U^T U = H^-1.

    From the Cholesky factor of H read backwards, H = M M^T with M upper triangular, so U = M^-1: H itself is
    never inverted.
    """
    lower = _cholesky(hessian[:, ::-1, ::-1])
    return np.triu(np.asarray(np.linalg.inv(lower[:, ::-1, ::-1]), np.float64))


def _cholesky(hessian: Floats) -> Floats:
    """The Cholesky factor of `hessian`; where rounding has left it indefinite, of the next one that has one.

    Few rows of data with a large mean come to that: what is left of them without it is noise.
    """
    size = np.linalg.norm(hessian, axis=(1, 2))[:, None, None] * np.eye(hessian.shape[1])
    for extra in (0.0, 1e-9, 1e-7, 1e-5, 1e-3):
        try:
            return np.asarray(np.linalg.cholesky(hessian + extra * size), np.float64)
        except np.linalg.LinAlgError:
            continue
    return np.asarray(np.linalg.cholesky(hessian + 2.0 * size), np.float64)  # no eigenvalue is below -size
