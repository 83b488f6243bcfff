"""What data says about weights that share values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from graphopt.passkit import Array, PassContext, RefusedRewrite, Rewriter
from graphopt.quantkit import Watch
from graphopt_passes.linear.error import OutputError
from graphopt_passes.linear.layer import LinearLayer, read_linear
from graphopt_passes.linear.least_squares import damped
from graphopt_passes.linear.moments import LayerMoments
from graphopt_passes.linear.power import ColumnPower
from graphopt_passes.quantization._weights import Weight
from graphopt_passes.sharing._assign import Task, assign
from graphopt_passes.sharing._palettes import Shared, Slices, share, spread_importance

#: Columns of the largest second-moment matrix: 512 MiB in float64.
COLUMNS: Final = 8192
_DAMPING: Final = 0.01
# Rows per input of an output below which the teacher's outputs are no target, see refine-weights.
_ROWS_PER_INPUT: Final = 8


def layer_of(graph: Rewriter, weight: Weight) -> LinearLayer | None:
    """The one layer that reads the weight, if it is understood and not too large for its moments."""
    if not weight.local or len(weight.roles) != 1:
        return None
    try:
        layer = read_linear(graph, weight.node, weight.roles[0].slot)
    except RefusedRewrite:
        return None
    return layer if layer.shape[2] <= COLUMNS else None


def input_powers(graph: Rewriter, ctx: PassContext, weights: Iterable[Weight]) -> dict[int, Array]:
    """By the id of its tensor, the mean square of the input of each weight, of the weight's shape.

    Of weights with several readers the sum; nothing of those whose readers are not understood.
    """
    layers: list[tuple[int, LinearLayer]] = []
    for weight in weights:
        if not weight.local:
            continue
        try:
            own = [(id(weight.tensor), read_linear(graph, r.node, r.slot)) for r in weight.roles]
        except RefusedRewrite:
            continue
        layers.extend(own)
    watches = [
        Watch(ColumnPower(layer.unfolding), student=(layer.node.inputs[layer.data_slot],))
        for _, layer in layers
    ]
    found: dict[int, Array] = {}
    for (key, layer), power in zip(layers, ctx.observe(graph, watches) if watches else [], strict=True):
        if power.count and np.isfinite(power.squares).all() and power.squares.any():
            found[key] = found.get(key, 0.0) + _per_weight(layer, spread_importance(power.mean))
    return found


def _per_weight(layer: LinearLayer, power: Array) -> Array:
    """(G, K) in the shape of the weight."""
    return layer.from_rows(np.broadcast_to(power[:, None, :], layer.shape))


def share_by_outputs(
    layer: LinearLayer,
    moments: LayerMoments,
    values: Array,
    entries: int,
    slices: Slices,
    *,
    keep_zero: bool,
) -> tuple[Shared, str]:
    """Palettes and indices with a low error of the layer's outputs, and that in words.

    Args:
        layer: the layer.
        moments: of its inputs; towards the teacher's output if they have it, else towards its own.
        values: its weight as it is stored.
        entries, slices, keep_zero: as for `share`.

    Raises:
        RefusedRewrite: the data cannot say.
    """
    total = moments.total
    if not total.count or not total.xx.any():
        raise RefusedRewrite("the data has no finite inputs for it")
    if not moments.is_finite:
        raise RefusedRewrite("its inputs or outputs are too large to be squared in float32")
    now = layer.to_rows(values).astype(np.float64)
    power = np.diagonal(total.xx, axis1=1, axis2=2) / total.count
    first = share(values, entries, slices, _per_weight(layer, spread_importance(power)), keep_zero=keep_zero)
    error = OutputError(total, now, now, centered=False)
    frozen = now == 0 if keep_zero else None
    target = now
    if error.sees_outputs and total.count >= _ROWS_PER_INPUT * now.shape[2]:
        target = error.ideal(_DAMPING, None if frozen is None else ~frozen)
    task = Task(damped(total.xx, _DAMPING), target, layer.to_rows(first.which()), frozen)
    index, palettes = assign(task, first.palettes.astype(np.float64))
    fitted = Shared(palettes.astype(values.dtype), layer.from_rows(index), slices)
    before, after = (error.of(layer.to_rows(s.expand()).astype(np.float64)) for s in (first, fitted))
    best = fitted if after < before and np.isfinite(fitted.palettes).all() else first
    return best, f"SQNR of the output {error.sqnr(before):.1f} -> {error.sqnr(min(before, after)):.1f} dB"
