"""Models with outlier channels, as large language models have them: the same function, harder to quantize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx

from graphopt.model import Model
from graphopt.passkit import Array, Numerics, Pass, PassContext, Rewriter
from graphopt.testing import apply
from graphopt_passes.quantization._scaling import find_regions, rescale


@dataclass(frozen=True)
class InjectOutliers(Pass):
    """Multiply channels of activations, and divide the weights that read them: W X = (W / S) (S X).

    Every activation between two operators that can take up scales is changed, by powers of two.

    Attributes:
        kind: a few channels made much larger, or all channels made uneven.
        bits: log2 of the largest factor.
        seed: of the channels and factors.
    """

    name: ClassVar[str] = "inject-outliers"
    numerics: ClassVar[Numerics] = Numerics.CLOSE

    kind: Literal["few", "uneven"] = "few"
    bits: int = 6
    seed: int = 0

    def run(self, graph: Rewriter, ctx: PassContext) -> None:
        """Change all activations of one body."""
        rng = np.random.default_rng(self.seed)
        for region in find_regions(graph).found:
            if any(port.is_linear for port in region.readers):
                rescale(graph, ctx, region, -self._factors(rng, region.count), "outliers")

    def _factors(self, rng: np.random.Generator, count: int) -> Array:
        if self.kind == "uneven":
            return rng.integers(-self.bits // 2, self.bits // 2 + 1, count).astype(np.float64)
        factors = np.zeros(count)
        chosen = rng.choice(count, max(1, count // 50), replace=False)
        factors[chosen] = rng.integers(self.bits - 1, self.bits + 1, len(chosen))
        return factors


def with_outliers(model: onnx.ModelProto, kind: Literal["few", "uneven"], bits: int = 6) -> onnx.ModelProto:
    """A copy of `model` that computes the same with outlier channels in its activations.

    Raises:
        ValueError: no activation of it could be changed.
    """
    done = apply(InjectOutliers(kind, bits), model)
    if not done.journal.changes:
        raise ValueError(f"no activation can take outliers: {done.reasons}")
    return Model.load(done.proto).to_proto(weights="inline")
