"""What a pass may ask for that needs data: statistics of tensors, scores, latency.

A pass never opens a session and never sees a dataset. It says what it wants to know about which tensors;
whoever runs the pipeline streams the data through the model and hands the answer back.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from graphopt.graph.view import Array
from graphopt.model import Model


class Statistic(Protocol):
    """Something that is accumulated over the values that tensors take."""

    @property
    def key(self) -> Hashable:
        """The kind of statistic and its settings: equal keys accumulate the same thing."""
        ...

    def update(self, *values: Array) -> None:
        """Take in one batch: the values of all watched tensors, the student's first."""
        ...

    def merge(self, other: Self) -> None:
        """Take in what another object of the same key has accumulated."""
        ...

    def fresh(self) -> Self:
        """An empty statistic with the same settings."""
        ...


@dataclass(frozen=True)
class Score:
    """How close the model at hand is to the teacher, over the calibration data.

    Attributes:
        sqnr_db: signal-to-quantization-noise ratio of the worst float output, in dB.
        cosine: cosine similarity of the worst float output, over all samples.
        metrics: the user's task metrics, by name; higher is better.
        drops: by how much each metric is below the teacher's.
    """

    sqnr_db: float
    cosine: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    drops: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """What a LOSSY result must keep. None: not asked for.

    Attributes:
        min_cosine: least cosine similarity with the original of every float output.
        min_sqnr_db: least signal-to-noise ratio of every float output, in dB.
        max_drop: how far each task metric may fall, by its name.
        max_latency_ratio: largest latency in units of the original's.
    """

    min_cosine: float | None = None
    min_sqnr_db: float | None = None
    max_drop: Mapping[str, float] = field(default_factory=dict)
    max_latency_ratio: float | None = None

    def misses(self, score: Score, latency: float | None = None) -> list[str]:
        """In words, what of this budget `score` does not keep; empty when it keeps everything."""
        found = []
        # A score that is NaN keeps nothing: hence the negations.
        if self.min_cosine is not None and not score.cosine >= self.min_cosine:
            found.append(f"cosine {score.cosine:.5g} is below {self.min_cosine:g}")
        if self.min_sqnr_db is not None and not score.sqnr_db >= self.min_sqnr_db:
            found.append(f"SQNR {score.sqnr_db:.4g} dB is below {self.min_sqnr_db:g} dB")
        for name, limit in self.max_drop.items():
            drop = score.drops.get(name)
            if drop is None:
                found.append(f"the metric {name!r} was not measured")
            elif not drop <= limit:
                found.append(f"{name} falls by {drop:.4g}, more than {limit:g}")
        if self.max_latency_ratio is not None and latency is not None and latency > self.max_latency_ratio:
            found.append(f"latency ratio {latency:.3f} is above {self.max_latency_ratio:g}")
        return found


@dataclass(frozen=True)
class Request:
    """A statistic that is wanted of named tensors.

    Attributes:
        statistic: an empty one.
        student: names in the model as it now stands.
        teacher: names in the teacher.
    """

    statistic: Statistic
    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()


class Services(Protocol):
    """Runs models on the calibration data. Answers depend on nothing but the arguments and the data."""

    def observe(self, student: Model, teacher: Model | None, requests: Sequence[Request]) -> list[Any]:
        """The statistics of `requests`, in their order, over all calibration samples."""
        ...

    def score(self, student: Model, teacher: Model) -> Score:
        """How close `student` is to `teacher`."""
        ...

    def latency(self, student: Model, teacher: Model) -> float:
        """Time of `student` over time of `teacher`, paired and interleaved, one thread."""
        ...
