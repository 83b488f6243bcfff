"""What is measured of a result that moves the numbers: accuracy, latency, sparsity, stages of a recipe.

Parts of `document.RunReport`, under its rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricRow:
    """A task metric before and after; higher is better."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class AccuracyReport:
    """How far a result that moves the numbers moved them.

    Attributes:
        measured_on: in words, the samples that it was measured on.
        sqnr_db: signal-to-noise ratio of the worst float output, in dB.
        cosine: cosine similarity of the worst float output.
        metrics: the user's task metrics.
        budget: what was asked for, in words.
        misses: what of that is not kept, in words; empty when all is.
    """

    measured_on: str
    sqnr_db: float
    cosine: float
    metrics: tuple[MetricRow, ...] = ()
    budget: tuple[str, ...] = ()
    misses: tuple[str, ...] = ()


@dataclass(frozen=True)
class LatencyReport:
    """Latency before and after: paired runs, interleaved, one thread.

    Attributes:
        provider: the execution provider.
        ratio: time of the result over time of the original: below 1, the result is faster.
        low, high: 99% interval of the ratio.
        before_ms, after_ms: median times of one run.
        fell_back: nodes that were quantized and yet run in float, with the reason.
        verdict: "faster", "slower", or "no difference".
        before_quantiles_ms, after_quantiles_ms: 101 points of each distribution, from 0% to 100%.
    """

    provider: str
    ratio: float
    low: float
    high: float
    before_ms: float
    after_ms: float
    fell_back: tuple[str, ...] = ()
    verdict: Literal["faster", "slower", "no difference"] = "no difference"
    before_quantiles_ms: tuple[float, ...] = ()
    after_quantiles_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class SparseTensor:
    """How much of one weight is zero.

    Attributes:
        name: of the initializer.
        weights: number of elements.
        zeros: how many of them are zero.
    """

    name: str
    weights: int
    zeros: int


@dataclass(frozen=True)
class SparsityReport:
    """How much of the weights is zero, of all matrices and filters together.

    Attributes:
        weights: number of elements, of floats and of integers that stand for them.
        zeros: how many of them are zero.
        bytes: what they take as they are stored.
        packed_bytes: what they would take as one bit per element and the elements that are not zero.
        tensors: each of them.
    """

    weights: int
    zeros: int
    bytes: int
    packed_bytes: int
    tensors: tuple[SparseTensor, ...] = ()


@dataclass(frozen=True)
class StageReport:
    """What one stage of a recipe came to. Ratios are to the original: below 1, the stage left less.

    Attributes:
        name: the stage.
        passes: its passes, as the recipe has them.
        verdict: "passed" its gate; "measured", without one; "failed", and the run ended there; "skipped":
            failed, and undone; "warned": failed, and stays; "not reached".
        gate: what was asked for, in words.
        misses: what of that is not kept, in words.
        rewrites: how many sites its passes rewrote.
        sqnr_db, cosine: of the worst float output, on the held-back samples; None without data.
        metrics: the user's task metrics.
        size_ratio: bytes of the file.
        latency_ratio: time of a run, paired, one thread; None without data.
        seconds: wall time of the passes.
    """

    name: str
    passes: str
    verdict: Literal["passed", "measured", "failed", "skipped", "warned", "not reached"] = "measured"
    gate: tuple[str, ...] = ()
    misses: tuple[str, ...] = ()
    rewrites: int = 0
    sqnr_db: float | None = None
    cosine: float | None = None
    metrics: tuple[MetricRow, ...] = ()
    size_ratio: float | None = None
    latency_ratio: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class FloatNode:
    """A node that could have been quantized and was left, or put back, in float."""

    node: str
    op: str
    reason: str
