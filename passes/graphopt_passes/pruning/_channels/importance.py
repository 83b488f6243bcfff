"""How much each unit of a group matters, by its weights or by its activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from graphopt.passkit import GraphView, PassContext, Tensor
from graphopt.quantkit import Watch
from graphopt_passes.pruning._channels.axes import Axes
from graphopt_passes.pruning._channels.groups import Group
from graphopt_passes.pruning._channels.labels import Ints, Mask
from graphopt_passes.pruning._channels.readers import ChannelSums, Floats

Importance: TypeAlias = Literal["auto", "l1", "l2", "activation", "variance", "reconstruction"]


def unit_numbers(axes: Axes, group: Group, labels: Ints) -> Ints:
    """The number of each label's unit, -1 for labels of no unit of the group."""
    roots = axes.labels.find(labels)
    places = np.searchsorted(group.units, roots).clip(max=group.size - 1)
    return np.where(group.units[places] == roots, places, -1)


def weight_norms(graph: GraphView, axes: Axes, group: Group, gone: Mask, power: int) -> Floats:
    """By unit, the l1 or squared l2 norm of its rows in all producers, each relative to its mean."""
    total = np.zeros(group.size)
    nodes = {p.node for p in group.producers}
    for cut in axes.cuts:
        if cut.node not in nodes:
            continue
        values = graph.array(cut.node.inputs[cut.slot])
        if values is None or values.ndim < 2:
            continue
        axis = next((a for a, d in enumerate(cut.layout.shape) if d > 1), None)
        if axis is None:
            continue
        labels = axes.labels.find(cut.layout.reshape(-1))
        numbers = unit_numbers(axes, group, labels[~gone[labels]])
        producer = next(p for p in group.producers if p.node is cut.node)
        if not (numbers >= 0).any() or not np.isin(labels, axes.labels.find(producer.labels)).any():
            continue
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
        norms = (np.abs(rows) ** power).sum(axis=1)
        part = np.bincount(numbers[numbers >= 0], norms[numbers >= 0], group.size)
        total += part / max(float(part.mean()), 1e-30)
    return total


def watched_channels(axes: Axes, group: Group) -> dict[Tensor, int]:
    """The tensors that consumers of a group read, or else its producers compute, and their channels' axis."""
    tensors = [c.data for c in group.consumers] or [p.node.outputs[0] for p in group.producers]
    found = {}
    for t in tensors:
        layout = axes.layouts.get(t)
        varying = axes.labels.varying(layout) if layout is not None else []
        if len(varying) == 1:
            found[t] = varying[0]
    return found


def activation_scores(
    graph: GraphView, ctx: PassContext, axes: Axes, groups: Sequence[Group], gone: Mask, kind: str
) -> list[Floats]:
    """By group and unit, the mean magnitude or variance of what consumers read of it."""
    places = [watched_channels(axes, group) for group in groups]
    tensors = {t: axis for found in places for t, axis in found.items()}
    watches = [Watch(ChannelSums(axis), student=(t,)) for t, axis in tensors.items()]
    sums = dict(zip(tensors, ctx.observe(graph, watches) if watches else [], strict=True))
    scores = []
    for group, found in zip(groups, places, strict=True):
        total = np.zeros(group.size)
        count = np.zeros(group.size)
        for t in found:
            layout = axes.labels.compress(axes.layouts[t]).reshape(-1)
            numbers = unit_numbers(axes, group, layout[~gone[layout]])
            values = sums[t].magnitude if kind == "activation" else sums[t].variance
            here = numbers >= 0
            if values.size == numbers.size:
                total += np.bincount(numbers[here], values[here], group.size)
                count += np.bincount(numbers[here], minlength=group.size)
        scores.append(total / np.maximum(count, 1))
    return scores
