"""What calibration measured of a model's tensors, and the ranges that were chosen.

Plain data under the rules of `document`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CalibratedTensor:
    """The values of one tensor, and its range.

    Attributes:
        name, dtype: the tensor.
        low, high: the range that is used.
        edited: somebody wrote this range; no method chose it.
        minimum, maximum: of the finite values.
        count: finite values, zeros included.
        zeros, nans, infinities: how many of these.
        methods: the range that each method chooses.
        edges: of the bins, from left to right; one more than there are bins.
        counts: values per bin, zeros left out.
    """

    name: str
    dtype: str
    low: float
    high: float
    edited: bool
    minimum: float
    maximum: float
    count: int
    zeros: int
    nans: int
    infinities: int
    methods: Mapping[str, tuple[float, float]]
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def outside(self) -> int:
        """Values that the range cuts off, to within a bin."""
        pairs = zip(self.edges, self.edges[1:], self.counts, strict=False)
        return sum(n for a, b, n in pairs if b <= self.low or a >= self.high)


@dataclass(frozen=True)
class CalibrationReport:
    """Everything that a file of ranges has to say.

    Attributes:
        model: the model, by name.
        passes: the pipeline that ran before it was measured.
        samples: how many were run.
        method: how ranges were chosen.
        type: the integer type that they are for.
        symmetric: without a zero point.
        tensors: what was measured.
    """

    model: str
    passes: str
    samples: int
    method: str
    type: str
    symmetric: bool
    tensors: tuple[CalibratedTensor, ...] = ()
