"""Move outliers of activations into the weights, without changing the function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from graphopt.passkit import (
    Array,
    Node,
    Numerics,
    Pass,
    PassContext,
    RefusedRewrite,
    Rewriter,
    Tensor,
    UserError,
)
from graphopt_passes.quantization._channels import Region
from graphopt_passes.quantization._noise import read_reader
from graphopt_passes.quantization._observed import Observed, linear_reads, observe_inputs, region_magnitude
from graphopt_passes.quantization._scaling import (
    centred,
    find_regions,
    local_regions,
    rescale,
    spread,
)

_GRID = tuple(i / 20 for i in range(1, 20))
# A scale is worth a rewrite if it takes this share off the noise that quantization is expected to make.
# Rounding to powers of two leaves less than that to be had, so that a second run finds nothing to do.
_GAIN = 0.5
# An activation whose rounding is expected to make less noise than this is not what costs accuracy, whatever
# the weights do: 40 dB are what layers without outliers have at 8 bits.
_QUIET = 1e-4
# For a fixed alpha: how far apart scales must be, as log2.
_WORTH = 1.5


@dataclass(frozen=True)
class SmoothActivations(Pass):
    """X W = (X S^-1) (S W) with S = diag(max|X_j|^alpha / max|W_j|^(1 - alpha)): SmoothQuant.

    A few channels of an activation that are a hundred times larger than the others leave these with one or
    two of the 256 steps of an 8-bit scale. Dividing each channel of the activation by s_j, and multiplying
    the weights that read it by s_j, moves the difference to where there is a scale per channel. The division
    goes into whatever computes the activation: the scale and bias of a LayerNormalization, RMSNormalization,
    BatchNormalization or Mul, or the weights of the layer before, through every operator that a scale passes
    (see equalize-layers). All readers of an activation (the projections of queries, keys and values) share
    one scale. Where nothing can take the division, such as in front of the second layer of a feed-forward
    block with Gelu, a Mul does it: put this pass behind those that would fold it away again.

    Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large language models",
    ICML 2023 (arXiv:2211.10438). `alpha=auto` tries 0.05 ... 0.95 and none at all on each activation, and
    takes what makes the least noise: that of an 8-bit scale per activation and per output channel of the
    weights, as expected from the observed ranges and mean squares.

    Refuses when: less than half of the expected noise would go, or that of the activation alone is below
    -40 dB; no Mul may be inserted and the activation is
    a graph input or output, or is computed or read by something that does not pass a scale on; a weight is
    not constant; scaled weights are not finite or lose precision in float16; weights with other readers
    would have to be copied and are large; tensors are in a local function.
    """

    name: ClassVar[str] = "smooth-activations"
    numerics: ClassVar[Numerics] = Numerics.CLOSE
    uses_data: ClassVar[bool] = True

    alpha: float | Literal["auto"] = field(
        default="auto",
        metadata={"help": "share of the difference that moves to the weights, or what is best"},
    )
    insert_mul: Literal["never", "products", "always"] = field(
        default="products",
        metadata={
            "help": "a Mul in front of layers whose input nothing else can scale: of no layer, of "
            "MatMul and Gemm, or also of Conv and ConvTranspose"
        },
    )
    exact_scales: bool = field(
        default=True, metadata={"help": "round scales to powers of two, which changes no bit of a product"}
    )
    bits: int = field(default=8, metadata={"help": "bits of weights and activations, for alpha=auto"})

    def __post_init__(self) -> None:
        """Check ranges."""
        if not isinstance(self.alpha, str) and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, not {self.alpha:g}")
        if not 2 <= self.bits <= 16:
            raise ValueError(f"bits must be from 2 to 16, not {self.bits}")

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Smooth what the linear operators of one body read."""
        possible = find_regions(graph)
        local = local_regions(graph, self._may_insert(possible.stuck))
        served = {port.node for region in local for port in region.ports}
        for node, reason in possible.failed.items():
            if node not in served:
                graph.refuse(node, reason)
        regions = [r for r in possible.found if any(p.is_linear for p in r.readers)]
        if not regions and not local:
            return
        if not ctx.has_data:
            raise UserError(
                "smooth-activations needs calibration data, typical inputs to see which channels stand out",
                fix="hand them in with --data calib.npz (see `graphopt run --help`), or use a preset that "
                "needs none: int8-dynamic or int8-weights",
            )
        if graph.is_function:
            for region in [*regions, *local]:
                graph.refuse(region.root, "tensors of local functions are not observed")
            return
        observed = observe_inputs(graph, ctx, linear_reads([*regions, *local]))
        for region, insert in [*((r, False) for r in regions), *((r, True) for r in local)]:
            try:
                scales, why = self.scales(graph, region, observed)
                if scales.any():
                    rescale(graph, ctx, region, scales, why, insert=insert)
            except RefusedRewrite as refused:
                graph.refuse(region.root, refused.reason)

    def _may_insert(self, stuck: Sequence[tuple[Node, Tensor]]) -> list[tuple[Node, Tensor]]:
        if self.insert_mul == "never":
            return []
        return [at for at in stuck if self.insert_mul == "always" or at[0].op in ("MatMul", "Gemm")]

    def scales(self, graph: Rewriter, region: Region, observed: Observed) -> tuple[Array, str]:
        """log2 of the scales of one region, float64 `(count,)`, all 0 where they are not worth it; why.

        Args:
            graph: the body.
            region: the region.
            observed: what its linear operators read.
        """
        x = region_magnitude(region, observed)
        readers = [
            read_reader(graph, port, observed[port.data, port.axis])
            for port in region.readers
            if port.axis is not None
        ]
        w = np.zeros(region.count)
        for reader in readers:
            np.maximum.at(w, reader.channels, reader.magnitude)
        live = (x > 0) & (w > 0) & np.isfinite(x) & np.isfinite(w) & ~region.fixed
        log_x, log_w = (np.log2(np.where(live, v, 1.0)) for v in (x, w))

        def smoothed(alpha: float) -> Array:
            logs: Array = alpha * log_x - (1 - alpha) * log_w
            return logs

        nothing = np.zeros(region.count)
        if not isinstance(self.alpha, str):
            logs = smoothed(self.alpha)
            if spread(logs, live) <= _WORTH:
                return nothing, ""
            return centred(logs, live, exact=self.exact_scales), f"smoothed with alpha {self.alpha:g}"

        if max(reader.relative_noise(nothing, self.bits)[0] for reader in readers) < _QUIET:
            return nothing, ""

        def noise(logs: Array) -> float:
            return sum(sum(reader.relative_noise(logs, self.bits)) for reader in readers)

        before = noise(nothing)
        tried = {alpha: centred(smoothed(alpha), live, exact=self.exact_scales) for alpha in _GRID}
        noises = {alpha: noise(logs) for alpha, logs in tried.items()}
        best = min(noises, key=noises.__getitem__)
        if not noises[best] < (1 - _GAIN) * before:
            return nothing, ""
        decibels = 10 * np.log10(before / noises[best])
        return tried[best], f"smoothed with alpha {best:g}: {decibels:.1f} dB less noise expected"
