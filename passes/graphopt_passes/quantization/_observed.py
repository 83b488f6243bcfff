"""What calibration data says about the channels that linear operators read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from graphopt.passkit import Array, PassContext, RefusedRewrite, Rewriter, Tensor
from graphopt.quantkit import MinMax, Moments, Watch
from graphopt_passes.quantization._channels import Region


@dataclass(frozen=True)
class ChannelRanges:
    """The values of a tensor along its channels' axis, float64 `(C,)` each.

    Attributes:
        low, high: least and largest value; 0 where there was none.
        square: mean of the squared values.
    """

    low: Array
    high: Array
    square: Array

    @property
    def magnitude(self) -> Array:
        """Largest magnitude."""
        return np.maximum(-self.low, self.high)


Observed = Mapping[tuple[Tensor, int], ChannelRanges]


def observe_inputs(graph: Rewriter, ctx: PassContext, wanted: Iterable[tuple[Tensor, int]]) -> Observed:
    """The ranges of tensors along one of their axes, in one sweep over the calibration data."""
    keys = list(dict.fromkeys(wanted))
    watches = [Watch(s, student=(tensor,)) for tensor, axis in keys for s in (MinMax(axis), Moments(axis))]
    answers = iter(ctx.observe(graph, watches) if watches else [])
    found = {}
    for key in keys:
        extremes, moments = next(answers), next(answers)
        some = extremes.low <= extremes.high
        low, high = np.where(some, extremes.low, 0.0), np.where(some, extremes.high, 0.0)
        square = moments.sum_of_squares / np.maximum(moments.count, 1)
        found[key] = ChannelRanges(low, high, square)
    return found


def linear_reads(regions: Iterable[Region]) -> list[tuple[Tensor, int]]:
    """The tensors of `regions` that linear operators read, each with the axis of its channels."""
    return [(p.data, p.axis) for r in regions for p in r.readers if p.axis is not None]


def region_magnitude(region: Region, observed: Observed) -> Array:
    """The largest magnitude per channel of `region` over all that linear operators read, `(count,)`.

    Raises:
        RefusedRewrite: the data never got there.
    """
    found = np.zeros(region.count)
    for port in region.readers:
        if port.axis is not None and port.channels is not None:
            magnitude = observed[port.data, port.axis].magnitude
            if not magnitude.size:
                raise RefusedRewrite(f"the data has no values for {port.data.name}")
            np.maximum.at(found, port.channels, magnitude)
    return found
