"""Even out the ranges of channels between layers, without changing the function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from graphopt.passkit import Array, Numerics, Pass, PassContext, RefusedRewrite, Rewriter, UserError
from graphopt_passes.quantization._channels import Region
from graphopt_passes.quantization._observed import linear_reads, observe_inputs, region_magnitude
from graphopt_passes.quantization._scaling import (
    Magnitudes,
    centred,
    find_regions,
    rescale,
    spread,
)

# A region is rewritten if its scales are further apart than this, as log2. 1 is what rounding to powers of
# two leaves, so that a second run finds nothing to do.
_WORTH = 1.5
# Rounds stop when no channel moves by more than this, as log2.
_SETTLED = 1e-3


@dataclass(frozen=True)
class EqualizeLayers(Pass):
    """W2 f(W1 x + b1) = W2 S f(S^-1 W1 x + S^-1 b1) for positive diagonal S: cross-layer equalization.

    f is any chain of operators through which a positive scale per channel passes: Relu, LeakyRelu, PRelu,
    pooling, Reshape, Transpose, Concat, Split, residual Adds (all their branches are scaled together),
    products with other tensors, ... The scale of a channel is s = sqrt(r1 / r2), with r1 its largest weight
    on the writing side and r2 on the reading side, each in units of the largest of its layer; this is
    repeated over all layers, depthwise convolutions included, until nothing moves. Afterwards every channel
    uses as much of its layer's range on one side as on the other, which is what quantization with one scale
    for a weight, or for an activation, needs.

    Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019
    (arXiv:1906.04721), section 4.1; Meller et al., "Same, same but different", ICML 2019
    (arXiv:1902.01917). With `criterion=activations` r1 is the largest activation observed on calibration
    data instead, and with `both` the larger of the two.

    Refuses when: a tensor in between is a graph output, a graph input, is read in a body of a control-flow
    operator, or by an operator that does not pass the scale on (Clip bounded by anything but 0, Sigmoid,
    Gelu, normalizations, ...); a weight is not constant; scaled weights are not finite or lose precision in
    float16; weights with other readers would have to be copied and are large.
    """

    name: ClassVar[str] = "equalize-layers"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    uses_data: ClassVar[bool] = True

    exact_scales: bool = field(
        default=True, metadata={"help": "round scales to powers of two, which changes no bit of a product"}
    )
    criterion: Literal["weights", "activations", "both"] = field(
        default="weights", metadata={"help": "what is evened out against the weights of the reading layer"}
    )
    rounds: int = field(default=50, metadata={"help": "rounds over all layers at most"})

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, not {self.rounds}")

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Equalize all layers of one body together."""
        possible = find_regions(graph)
        for node, reason in possible.failed.items():
            graph.refuse(node, reason)
        regions = [r for r in possible.found if _is_between_layers(r)]
        if not regions:
            return
        observed: list[Array] | None = None
        if self.criterion != "weights":
            if not ctx.has_data:
                raise UserError(
                    f"equalize-layers{{criterion={self.criterion}}} needs calibration data", fix="give --data"
                )
            seen = observe_inputs(graph, ctx, linear_reads(regions))
            observed, known = [], []
            for region in regions:
                try:
                    observed.append(region_magnitude(region, seen))
                    known.append(region)
                except RefusedRewrite as refused:
                    graph.refuse(region.root, refused.reason)
            regions = known
        for region, logs in zip(regions, self.equalize(graph, regions, observed), strict=True):
            live = logs != 0
            if spread(logs, live | region.fixed) <= _WORTH:
                continue
            scales = centred(logs, live, exact=self.exact_scales, shift=not region.fixed.any())
            largest = float(np.abs(scales).max())
            try:
                rescale(graph, ctx, region, scales, f"channels scaled by up to 2^{largest:.3g}")
            except RefusedRewrite as refused:
                graph.refuse(region.root, refused.reason)

    def equalize(
        self, graph: Rewriter, regions: Sequence[Region], observed: Sequence[Array] | None = None
    ) -> list[Array]:
        """log2 of the scales of each region, float64 `(count,)` each, 0 for channels that hold nothing.

        Args:
            graph: the body.
            regions: what to scale.
            observed: per region the largest magnitudes of its channels' activations, unless the criterion is
                the weights.
        """
        weights = Magnitudes(graph, regions)
        for _ in range(self.rounds):
            moved = 0.0
            for index, region in enumerate(regions):
                logs = weights.logs[index]
                r1 = np.zeros(region.count)
                if self.criterion != "activations":
                    for port in region.writers:
                        if port.is_linear:
                            np.maximum(r1, weights.of(index, port), out=r1)
                if observed is not None:
                    now = observed[index] * np.exp2(-logs)
                    np.maximum(r1, now / (now.max() or 1.0), out=r1)
                r2 = np.zeros(region.count)
                for port in region.readers:
                    if port.is_linear:
                        np.maximum(r2, weights.of(index, port), out=r2)
                live = (r1 > 0) & (r2 > 0) & np.isfinite(r1) & np.isfinite(r2) & ~region.fixed
                if not live.any():
                    continue
                step = np.zeros(region.count)
                step[live] = 0.5 * (np.log2(r1[live]) - np.log2(r2[live]))
                # A factor common to all channels changes nothing and would only drift.
                if not region.fixed.any():
                    step[live] -= np.median(step[live])
                moved = max(moved, float(np.abs(step).max()))
                weights.logs[index] = logs + step
            if moved < _SETTLED:
                break
        return weights.logs


def _is_between_layers(region: Region) -> bool:
    return any(p.is_linear for p in region.writers) and any(p.is_linear for p in region.readers)
