"""What timing models came to: distributions, paired comparisons, operators.

Plain data under the rules of `document`. Times are in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from graphopt.report.document import FileInfo

SCHEMA = "graphopt.bench/1"


@dataclass(frozen=True)
class OpTime:
    """What one kind of operator takes of a run, from onnxruntime's profiler.

    Attributes:
        op: the operator that is executed (after onnxruntime's own fusions).
        provider: where.
        nodes: how many nodes of it are executed per run (the mean where that varies).
        ms: time per run, of all of them.
        share: of the time of all operators.
    """

    op: str
    provider: str
    nodes: float
    ms: float
    share: float


@dataclass(frozen=True)
class Timing:
    """How long one model takes.

    Attributes:
        label: a short name: "A", "B", ...
        file: the model.
        runs: timed runs, in the steady state.
        warm_up: runs before that, which do not count.
        sessions: how often its session was opened anew.
        disturbed: share of the timed runs that other threads interrupted. They are in these figures, and not
            in ratios.
        steady: the steady state was reached; otherwise times still drift, and `note` says so.
        mean_ms, min_ms, p50_ms, p90_ms, p95_ms, p99_ms: of one run.
        quantiles_ms: 101 points of the distribution, from 0% to 100%.
        create_ms: to open a session (median).
        peak_bytes: memory that loading and running the model adds, in a process of its own; None where that
            was not measured.
        ops: time by operator, the most expensive first.
        note: what else there is to know.
    """

    label: str
    file: FileInfo
    runs: int
    warm_up: int
    steady: bool
    mean_ms: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    quantiles_ms: tuple[float, ...] = ()
    create_ms: float | None = None
    peak_bytes: int | None = None
    ops: tuple[OpTime, ...] = ()
    note: str = ""
    sessions: int = 0
    disturbed: float = 0.0


@dataclass(frozen=True)
class PairedRatio:
    """One model against another, in paired and interleaved runs.

    Attributes:
        a, b: labels.
        ratio: time of b over time of a: below 1, b is faster.
        low, high: interval of that ratio at `confidence`.
        confidence: as in 0.99. Looking before the end is accounted for.
        pairs: how many.
        resolution: the smallest relative difference that this measurement could have told from none.
        verdict: of b: "no difference" where the interval holds 1, or the difference is below `min_effect`.
        sessions: how many rounds of new sessions: the independent observations behind the interval.
        min_effect: the smallest relative difference that counts.
        equivalent: the interval leaves no doubt that the difference is smaller than that.
    """

    a: str
    b: str
    ratio: float
    low: float
    high: float
    confidence: float
    pairs: int
    resolution: float
    verdict: Literal["faster", "slower", "no difference"]
    sessions: int = 0
    min_effect: float = 0.01
    equivalent: bool = False


@dataclass(frozen=True)
class BenchReport:
    """Everything that `graphopt bench` has to say.

    Attributes:
        provider: the execution provider.
        optimizations: onnxruntime's level.
        threads: within an operator.
        affinity: the cores that they are bound to, empty when they are not.
        settings: what else changes times, in words: TF32, IO binding, memory arena, ...
        inputs: what was run, one description each, with shapes.
        timings: per model.
        ratios: every other model against the first.
        notes: what people should know: the machine is noisy, times drift, ...
        machine: processor, or GPU and driver.
        versions: graphopt, onnx, onnxruntime, ... -> version.
    """

    provider: str
    optimizations: str
    threads: int
    affinity: tuple[int, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    timings: tuple[Timing, ...] = ()
    ratios: tuple[PairedRatio, ...] = ()
    notes: tuple[str, ...] = ()
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
