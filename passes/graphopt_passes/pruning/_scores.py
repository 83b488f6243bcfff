"""What single weights matter, all layers being what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import numpy as np

from graphopt.passkit import PassContext, Rewriter
from graphopt_passes.linear.judged import watch_layer
from graphopt_passes.linear.layer import Floats
from graphopt_passes.linear.least_squares import damped
from graphopt_passes.linear.sweeps import plan_sweeps
from graphopt_passes.pruning._sites import Site
from graphopt_passes.pruning._structure import channels_last

#: What a weight matters, see prune-weights.
Importance: TypeAlias = Literal["auto", "magnitude", "wanda", "obs"]

# Columns of the largest second-moment matrix: 512 MiB in float64.
_COLUMNS: Final = 8192


def scores_of(
    graph: Rewriter, ctx: PassContext, sites: Sequence[Site], how: Importance, damping: float
) -> list[Floats]:
    """What each weight matters, squared, (G, N, K): of all sites on the model as it is.

    Args:
        graph: the body.
        ctx: observes inputs, for all but `magnitude`.
        sites: the weights.
        how: what is measured; weights that the data says nothing about are scored by magnitude.
        damping: added to the inputs' moments before they are inverted, relative to their mean.
    """
    scores = [site.rows(graph) ** 2 for site in sites]
    if how == "magnitude":
        return scores
    at = {s.node: i for i, s in enumerate(sites) if has_moments(s)}
    layers = [layer for s in sites if s.node in at and (layer := s.layer) is not None]
    for sweep in plan_sweeps(graph, layers, "no"):
        watches = [watch_layer(layer, ctx, None) for layer, _ in sweep]
        for (layer, _), moments in zip(sweep, ctx.observe(graph, watches), strict=True):
            total, order = moments.total, channels_last(layer)
            if not total.count or not moments.is_finite:
                continue
            xx = total.xx
            if how == "obs":
                xx = np.linalg.inv(damped(xx, damping))
            power = np.diagonal(xx, axis1=1, axis2=2)[:, None, order]
            power = np.maximum(power, np.finfo(np.float64).tiny)
            scores[at[layer.node]] *= 1 / power if how == "obs" else power
    return scores


def has_moments(site: Site) -> bool:
    """Whether the data can say what its weights matter."""
    return site.layer is not None and not site.is_shared and site.layer.shape[2] <= _COLUMNS
