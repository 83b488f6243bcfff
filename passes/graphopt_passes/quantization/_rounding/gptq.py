"""GPTQ: columns are rounded one after another, and the columns left make up for the error.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh: "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", arXiv:2210.17323, 2022.
"""

from __future__ import annotations

import numpy as np

from graphopt_passes.quantization._rounding.problem import Floats, Problem

# Columns whose updates are applied to the rest in one matrix product.
BLOCK = 64


def gptq(problem: Problem, *, block: int = BLOCK) -> Floats:
    """Codes, (G, N, K), by GPTQ in the order of falling Hessian diagonal ("act-order").

    The order is that of each group. Scales stay what they are, whatever the order, so the result fits any
    lattice, those of blocks included. Never worse than rounding to nearest: a row for which it is gets that.
    """
    order = np.argsort(-problem.diagonal, axis=1, kind="stable")
    hessian = np.take_along_axis(problem.hessian, order[:, :, None], 1)
    hessian = np.take_along_axis(hessian, order[:, None, :], 2)
    weights = np.take_along_axis(problem.target, order[:, None, :], 2)
    lattice = problem.lattice.reordered(order)
    factor = _inverse_factor(hessian)
    codes = np.empty_like(weights)
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
    back = np.argsort(order, axis=1, kind="stable")
    result = np.take_along_axis(codes, back[:, None, :], 2)
    return problem.better(problem.lattice.nearest(problem.target), result)


def _inverse_factor(hessian: Floats) -> Floats:
    """Upper triangular U with U^T U = H^-1.

    From the Cholesky factor of H read backwards, H = M M^T with M upper triangular, so U = M^-1: H itself is
    never inverted.
    """
    lower = np.linalg.cholesky(hessian[:, ::-1, ::-1])
    upper: Floats = np.linalg.inv(lower[:, ::-1, ::-1])
    return np.triu(upper)
