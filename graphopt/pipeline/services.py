"""What a pass may ask for that needs data: statistics of tensors, scores, latency.

A pass never opens a session and never sees a dataset. It says what it wants to know about which tensors;
whoever runs the pipeline streams the data through the model and hands the answer back.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from graphopt.budget import Score
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

    def score(self, student: Model, teacher: Model, samples: int | None = None) -> Score:
        """How close `student` is to `teacher`, on the first `samples` (None: as many as are sensible)."""
        ...

    def latency(self, student: Model, teacher: Model) -> float:
        """Time of `student` over time of `teacher`, paired and interleaved, one thread."""
        ...
