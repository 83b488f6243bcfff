"""How much of each layer goes, so that a share of all of them does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt_passes.linear.layer import Floats
from graphopt_passes.pruning._structure import least


def global_shares(scores: Sequence[Floats], sparsity: float) -> list[float]:
    """The share of each layer that goes when weights of all layers compete by their LAMP scores.

    The score of a weight relative to the sum of all scores of its layer that are not below it, so that the
    last weight of a layer has the score 1 and no layer is removed as a whole: J. Lee, S. Park, S. Mo, S. Ahn,
    J. Shin, "Layer-adaptive sparsity for the magnitude-based pruning", arXiv:2010.07611 (2021); theirs are
    squared magnitudes.

    Args:
        scores: of each layer, not negative, of any shape.
        sparsity: share of all weights that goes.
    """
    ranked = []
    for score in scores:
        rising = np.sort(score.reshape(-1))
        above = np.cumsum(rising[::-1])[::-1]
        ranked.append(np.divide(rising, above, out=np.ones_like(rising), where=above > 0))
    gone = least(np.concatenate(ranked), round(sparsity * sum(r.size for r in ranked)))
    borders = np.cumsum([r.size for r in ranked])[:-1]
    return [float(part.mean()) for part in np.split(gone, borders)]


def erk_shares(shapes: Sequence[tuple[int, int]], sizes: Sequence[int], sparsity: float) -> list[float]:
    """The share of each layer that goes when its density is proportional to (inputs + outputs) / weights.

    Small layers stay denser than large ones; layers that would be more than dense are dense, and the others
    make up for it. Erdos-Renyi kernel: U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the
    lottery: making all tickets winners", arXiv:1911.11134 (2020).

    Args:
        shapes: inputs and outputs of each layer.
        sizes: its number of weights.
        sparsity: share of all weights that goes.
    """
    total = np.array(sizes, np.float64)
    raw = np.array([a + b for a, b in shapes], np.float64) / total
    dense = np.zeros(len(total), bool)
    density = np.ones(len(total))
    while not dense.all():
        budget = (1 - sparsity) * total.sum() - total[dense].sum()
        scale = budget / (raw[~dense] * total[~dense]).sum()
        density = np.where(dense, 1.0, np.maximum(scale, 0.0) * raw)
        over = ~dense & (density > 1)
        if not over.any():
            break
        dense |= over
    return [float(1 - d) for d in np.minimum(density, 1.0)]
