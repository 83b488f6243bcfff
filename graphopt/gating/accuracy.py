"""Running the reference and the model over the data: distances per output, and the task metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np

from graphopt.calibration.collect import DoesNotRun
from graphopt.calibration.data import Batch, Dataset, batches, load_callable, open_dataset, ports_of
from graphopt.calibration.outputs import run_batch
from graphopt.calibration.score import Sums, as_metrics
from graphopt.errors import GraphOptError
from graphopt.gating.context import Context
from graphopt.model import Model
from graphopt.runtime.probe import randomness
from graphopt.runtime.providers import EXACT_MATH
from graphopt.runtime.session import CPU, RuntimeFailure, Session, open_session
from graphopt.runtime.structure import Structure
from graphopt.validation.metrics import is_float, leaves, measure

_MAX_BATCH = 32

Outputs = Mapping[str, Any]
_T = TypeVar("_T")


class NotMeasured(GraphOptError):
    """Why accuracy cannot be measured, in words."""


@dataclass(frozen=True)
class Distance:
    """How far one output is from the reference's; the worst over providers (and sets of made-up inputs).

    Attributes:
        floats: its values are inexact, so that ratios of them make sense.
        sqnr_db, cosine: over all values; of float outputs.
        max_abs: largest difference; NaN where NaN or infinity stand at other places, or shapes differ.
        max_rel: largest difference over the reference's value; likewise.
        equal: share of the values that are equal.
        where: the provider (and inputs) that the worst figures come from.
    """

    floats: bool
    sqnr_db: float = np.inf
    cosine: float = 1.0
    max_abs: float = 0.0
    max_rel: float = 0.0
    equal: float = 1.0
    where: str = ""

    def worst(self, other: Distance) -> Distance:
        """The worse of each figure; NaN is the worst."""
        sqnr = float(np.minimum(self.sqnr_db, other.sqnr_db))
        return Distance(
            self.floats or other.floats,
            sqnr,
            float(np.minimum(self.cosine, other.cosine)),
            float(np.maximum(self.max_abs, other.max_abs)),
            float(np.maximum(self.max_rel, other.max_rel)),
            float(np.minimum(self.equal, other.equal)),
            other.where if sqnr != self.sqnr_db or np.isnan(other.max_abs) else self.where,
        )


@dataclass
class _Running:
    """One output's distance, being summed up."""

    sums: Sums = field(default_factory=Sums)
    floats: bool = False
    max_abs: float = 0.0
    max_rel: float = 0.0
    equal: int = 0
    count: int = 0

    def add(self, expected: Any, actual: Any) -> None:
        """Take in the values of one batch; None is an empty optional."""
        if expected is None or actual is None or expected.shape != actual.shape or _text(expected, actual):
            same = expected is actual is None or (
                expected is not None
                and actual is not None
                and expected.dtype == actual.dtype == object
                and expected.shape == actual.shape
            )
            self.count += max(1, getattr(expected, "size", 1))
            self.equal += int(np.count_nonzero(expected == actual)) if same and expected is not None else same
            if not same:
                self.max_abs = self.max_rel = self.sums.error = np.nan
            return
        self.floats = self.floats or is_float(expected.dtype)
        if expected.dtype.kind != "c":
            self.sums.add(expected, actual)
        found = measure(expected, actual)
        pattern = np.nan if not found.same_pattern else 0.0
        self.max_abs = float(np.maximum(self.max_abs, found.max_abs + pattern))
        self.max_rel = float(np.maximum(self.max_rel, found.max_rel + pattern))
        self.equal += found.count - found.differing
        self.count += found.count

    def distance(self, where: str) -> Distance:
        """What it came to."""
        share = self.equal / self.count if self.count else 1.0
        return Distance(
            self.floats, self.sums.sqnr_db, self.sums.cosine, self.max_abs, self.max_rel, share, where
        )


def _text(a: Any, b: Any) -> bool:
    return bool(a.dtype == object or b.dtype == object)


class Accuracy:
    """Outputs and figures of a gate's models on its inputs; everything is measured on first use.

    The reference runs on the CPU with optimizations off; the model as it will be run: with optimizations on,
    on every provider.
    """

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self._most = _MAX_BATCH
        self._set = ""
        self.samples = 0

    @cached_property
    def _random(self) -> str:
        models = [m for m in (self.ctx.reference, self.ctx.model) if m is not None]
        return next((why for m in models if (why := randomness(Structure(m.skeleton())))), "")

    @cached_property
    def _results(self) -> tuple[dict[str, Distance], dict[str, float]]:
        """Distances by output, and the model's figures: the worst over providers."""
        distances: dict[str, Distance] = {}
        figures: dict[str, float] = {}
        for provider in self.ctx.providers:
            found, numbers = self._whole_or_single(partial(self._on, provider))
            for name, distance in found.items():
                distances[name] = distances[name].worst(distance) if name in distances else distance
            for name, value in numbers.items():
                figures[name] = float(np.minimum(figures.get(name, value), value))
        return distances, figures

    def distances(self) -> dict[str, Distance]:
        """Distance by output.

        Raises:
            NotMeasured: the outputs cannot be compared.
            UserError: the data cannot be used.
        """
        if self._random:
            raise NotMeasured(self._random)
        return self._results[0]

    def figures(self) -> dict[str, float]:
        """What the task metric makes of the model.

        Raises:
            NotMeasured: the model does not run on the data.
            UserError: the data or the metric cannot be used.
        """
        return self._results[1]

    @cached_property
    def reference_figures(self) -> dict[str, float]:
        """What the task metric makes of the reference; see `figures`."""
        metric, reference = self._metric, self.ctx.reference
        assert metric is not None
        assert reference is not None

        def run() -> dict[str, float]:
            self.ctx.tell("score", "the reference")
            with self._open(reference, CPU, judge=True) as session:

                def pairs() -> Iterator[tuple[Mapping[str, Any], Outputs]]:
                    for batch in self._batches():
                        yield {**batch.feeds, **batch.extra}, self._run(session, batch, "the reference")

                return as_metrics(metric, pairs())

        return self._whole_or_single(run)

    # -- running -----------------------------------------------------------------------------------

    def _on(self, provider: str) -> tuple[dict[str, Distance], dict[str, float]]:
        """Both models over all inputs, the model on `provider`."""
        found: dict[str, Distance] = {}
        running: dict[str, _Running] = {}
        compared = self.ctx.policy.numerics is not None and not self._random
        reference = self.ctx.reference if compared else None
        self.ctx.tell("score", f"on {provider}")
        with self._open(self.ctx.model, provider) as session:
            yardstick = None if reference is None else self._open(reference, CPU, judge=True)
            try:

                def pairs() -> Iterator[tuple[Mapping[str, Any], Outputs]]:
                    self.samples = 0
                    for batch in self._batches():
                        actual = self._run(session, batch, "the model")
                        if yardstick is not None:
                            expected = self._run(yardstick, batch, "the reference")
                            _add(running, expected, actual)
                        self.samples += batch.size
                        yield {**batch.feeds, **batch.extra}, actual
                        if self.ctx.data is None:  # made-up inputs differ in shape: each set by itself
                            _close(found, running, f"{provider}, {self._set}")

                todo = pairs()
                figures = as_metrics(self._metric, todo) if self._metric is not None else {}
                for _ in todo:  # a metric need not look at all of them
                    pass
            finally:
                if yardstick is not None:
                    yardstick.close()
        _close(found, running, provider)
        return found, figures

    def _whole_or_single(self, attempt: Callable[[], _T]) -> _T:
        """`attempt`, one sample at a time if the models take no more."""
        try:
            return attempt()
        except DoesNotRun as failure:
            if self._most == 1 or self.ctx.data is None:
                raise NotMeasured(str(failure)) from failure
            self._most = 1
        try:
            return attempt()
        except DoesNotRun as failure:
            raise NotMeasured(str(failure)) from failure

    def _open(self, model: Model, provider: str, *, judge: bool = False) -> Session:
        try:
            return open_session(
                model.session_source(),
                optimize="none" if judge else "all",
                prepack=not judge,
                threads=0,
                provider=provider,
                settings=EXACT_MATH if judge else self.ctx.settings,
            )
        except RuntimeFailure as failure:
            which = "the reference" if judge else "the model"
            raise NotMeasured(f"{which} does not load on {provider}: {failure.message}") from failure

    def _run(self, session: Session, batch: Batch, which: str) -> Outputs:
        missing = [p.name for p in session.inputs if p.name not in batch.feeds]
        if missing:
            raise NotMeasured(f"{which} has the input {missing[0]!r}, for which there are no values")
        try:
            return run_batch(session, batch)
        except DoesNotRun as failure:
            raise DoesNotRun(str(failure).replace("the model", which, 1)) from failure

    # -- inputs ------------------------------------------------------------------------------------

    @cached_property
    def _metric(self) -> Any:
        metric = self.ctx.metric
        return load_callable(metric, "the metric") if isinstance(metric, str) else metric

    @cached_property
    def dataset(self) -> Dataset | None:
        """The user's data; None where inputs are synthesized."""
        if self.ctx.data is None:
            return None
        skeleton = (self.ctx.reference or self.ctx.model).skeleton()
        ports, overridable = ports_of(skeleton)
        return open_dataset(self.ctx.data, ports, overridable, model=skeleton)

    def _batches(self) -> Iterator[Batch]:
        dataset, limit = self.dataset, self.ctx.policy.measure.max_samples
        if dataset is None:
            if self.ctx.inputs.reason:
                raise NotMeasured(self.ctx.inputs.reason)
            for given in self.ctx.inputs.sets:
                self._set = given.describe()
                yield Batch(dict(given.feeds), {}, 1)
            return
        ports, overridable = ports_of((self.ctx.reference or self.ctx.model).skeleton())
        done = 0
        most = self._most if limit is None else min(self._most, limit)
        for batch in batches(dataset, ports, most, "all", overridable):
            yield batch
            done += batch.size
            self.ctx.tell("score", f"{done} samples")
            if limit is not None and done >= limit:
                return

    def measured_on(self) -> str:
        """In words, what it was measured on."""
        if self.ctx.data is None:
            sets = self.ctx.inputs.sets
            return f"{len(sets)} sets of synthesized inputs" if len(sets) != 1 else "synthesized inputs"
        return f"{self.samples:,} samples"


def _add(running: dict[str, _Running], expected: Outputs, actual: Outputs) -> None:
    for output, value in expected.items():
        if output not in actual:
            raise NotMeasured(f"the model has no output {output!r}; it has: {', '.join(actual)}")
        theirs, mine = leaves(output, value), leaves(output, actual[output])
        for name in {**theirs, **mine}:
            running.setdefault(name, _Running()).add(theirs.get(name), mine.get(name))


def _close(found: dict[str, Distance], running: dict[str, _Running], where: str) -> None:
    """Move what was summed up into `found`."""
    for name, item in running.items():
        distance = item.distance(where)
        found[name] = found[name].worst(distance) if name in found else distance
    running.clear()
