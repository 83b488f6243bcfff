"""Streams data through models and hands the values of their tensors to statistics.

Memory is bounded by one run, a slice of tapped values, and the statistics. As many tensors are observed at
once as `slice_bytes` hold for one batch; batches shrink first, then there are more slices, each of which runs
the part of the model that its tensors need.

Models run without onnxruntime's optimizations unless asked: what a node computes then does not depend on
which of its neighbours are observed at the same time, or on how the tensors are sliced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from graphopt import ir
from graphopt.calibration.taps import CannotTap, Cut, Tap, cut
from graphopt.calibration.values import Array
from graphopt.errors import UserError
from graphopt.graph.shapes import infer
from graphopt.interface import UNCHANGED, InterfaceEdits
from graphopt.io.session_source import SessionSource
from graphopt.model import Model
from graphopt.pipeline.services import Request
from graphopt.runtime.session import Optimize, RuntimeFailure, Session, open_session

Tell = Callable[[str], None]


class BatchLike(Protocol):
    """Input for one run: see `graphopt.calibration.data.Batch`."""

    @property
    def feeds(self) -> Mapping[str, Any]:
        """Value per input of the model."""
        ...

    @property
    def size(self) -> int:
        """How many samples these are."""
        ...


#: The data, as batches of at most so many samples; called once per slice.
Batches = Callable[[int], Iterable[BatchLike]]


@dataclass(frozen=True)
class Collector:
    """How values are collected.

    Attributes:
        provider: execution provider to run on.
        threads: threads within an operator; 0 for as many as there are cores.
        max_batch: most samples at a time.
        slice_bytes: most bytes of observed values at a time, beyond one tensor of one sample.
        optimize: onnxruntime's optimization level.
        prepack: let kernels copy weights into the layout that they like best.
    """

    provider: str
    threads: int
    max_batch: int
    slice_bytes: int
    optimize: Optimize = "none"
    prepack: bool = True

    def collect(
        self,
        student: Model,
        teacher: Model | None,
        requests: Sequence[Request],
        batches: Batches,
        tell: Tell = lambda detail: None,
        source: SessionSource | None = None,
    ) -> list[Any]:
        """The statistics of `requests`, filled.

        Args:
            student, teacher: whose tensors the requests name.
            requests: what to accumulate; their statistics stay as they are.
            batches: the data.
            tell: called with how far it is.
            source: of the student, where the caller has it.

        Raises:
            UserError: a tensor cannot be observed, or a model does not run.
            MemoryError: not even one sample fits.
        """
        sides = [
            _Side(
                model, names, source if model is student else None, student.interface.since(model.interface)
            )
            for model, names in _by_side(student, teacher, requests)
        ]
        sizes = self._sizes(sides, batches)
        batch, slices = self._plan(requests, sizes)
        filled: dict[int, Any] = {}
        for number, members in enumerate(slices):
            prefix = f"slice {number + 1} of {len(slices)}, " if len(slices) > 1 else ""
            wanted = {i: requests[i] for i in members}
            filled |= self._slice(sides, wanted, batches, batch, _prefixed(tell, prefix))
        return [filled[i] for i in range(len(requests))]

    def _slice(
        self,
        sides: Sequence[_Side],
        requests: Mapping[int, Request],
        batches: Batches,
        batch: int,
        tell: Tell,
    ) -> dict[int, Any]:
        flat = False
        while True:
            statistics = {i: r.statistic.fresh() for i, r in requests.items()}
            try:
                self._stream(sides, requests, statistics, batches(batch), flat, tell)
                return statistics
            except MemoryError:
                if batch <= 1:
                    raise
                batch = max(1, batch // 2)
            except RuntimeFailure as e:
                # Values of a loop's iterations that differ in shape cannot be stacked.
                if flat or not any(s.has_nested for s in sides):
                    raise _does_not_run(e) from e
                flat = True

    def _stream(
        self,
        sides: Sequence[_Side],
        requests: Mapping[int, Request],
        statistics: Mapping[int, Any],
        batches: Iterable[BatchLike],
        flat: bool,
        tell: Tell,
    ) -> None:
        runs = []
        try:
            for side, names in zip(sides, _names(requests.values()), strict=False):
                runs.append(_Run(side, self._open(side, names, flat), names))
            # What no data flows into has the same value for every batch.
            fixed = {i for i, request in requests.items() if _is_fixed(runs, request)}
            done = 0
            for number, batch in enumerate(batches):
                values = [run.values(batch.feeds) for run in runs]
                for i, request in requests.items():
                    if number and i in fixed:
                        continue
                    both = (request.student, request.teacher)
                    rows = [v[n] for v, wanted in zip(values, both, strict=False) for n in wanted]
                    for together in _together(rows):
                        statistics[i].update(*together)
                del values
                done += batch.size
                tell(str(done))
        finally:
            for run in runs:
                run.close()

    def _open(self, side: _Side, names: Iterable[str], flat: bool) -> tuple[Session, Cut] | None:
        wanted = [n for n in names if n in side.computed]
        if not wanted:
            return None
        model = side.cut(wanted, flat=flat)
        return self._session(model), model

    def _session(self, source: Cut) -> Session:
        return open_session(
            source,
            optimize=self.optimize,
            threads=self.threads,
            provider=self.provider,
            arena=False,
            prepack=self.prepack,
        )

    def _sizes(self, sides: Sequence[_Side], batches: Batches) -> list[dict[str, int]]:
        """Bytes per sample of what each side computes, measured on one run without keeping any of it."""
        sizes: list[dict[str, int]] = []
        for side in sides:
            if len(side.computed) <= 1:
                sizes.append({})
                continue
            first = next(iter(batches(1)))
            counting = side.cut(side.computed, sizes=True)
            try:
                with self._session(counting) as session:
                    feeds = side.edits.original_feeds(first.feeds)
                    found = session.run({p.name: feeds[p.name] for p in session.inputs})
            except RuntimeFailure as e:
                if not side.has_nested:
                    raise _does_not_run(e) from e
                sizes.append({})
                continue
            samples = max(1, first.size)
            sizes.append(
                {
                    name: sum(4 * int(np.asarray(found[counting.sizes[t.output]])) for t in taps) // samples
                    for name, taps in counting.taps.items()
                }
            )
        return sizes

    def _plan(
        self, requests: Sequence[Request], sizes: Sequence[Mapping[str, int]]
    ) -> tuple[int, list[list[int]]]:
        """How many samples at a time, and which requests together."""
        total = max(1, sum(n for side in sizes for n in side.values()))
        batch = max(1, min(self.max_batch, self.slice_bytes // total))
        slices: list[list[int]] = []
        held: set[tuple[int, str]] = set()
        used = 0
        for i, request in enumerate(requests):
            names = {(s, n) for s, side in enumerate((request.student, request.teacher)) for n in side}
            new = sum(sizes[s].get(n, 0) for s, n in names - held if s < len(sizes)) * batch
            if not slices or (used and used + new > self.slice_bytes):
                slices.append([])
                held, used = set(), 0
                new = sum(sizes[s].get(n, 0) for s, n in names if s < len(sizes)) * batch
            slices[-1].append(i)
            held |= names
            used += new
        return batch, slices


class _Side:
    """A model that is observed, and how its tensors are found.

    Args:
        model: the model.
        names: all tensors of it that are wanted.
        source: its session source, where the caller has it.
        edits: how the interface was changed after this model: the data is as it is taken since.
    """

    def __init__(
        self,
        model: Model,
        names: Iterable[str],
        source: SessionSource | None = None,
        edits: InterfaceEdits = UNCHANGED,
    ) -> None:
        self.edits = edits
        self.source = source or model.session_source()
        graph = model.graph
        defaults = {t.name: c for t, c in graph.defaults.items()}
        self.inputs = {t.name for t in graph.inputs} - set(defaults)
        self.constants: dict[str, ir.Constant] = {}
        main = {t.name for node in graph.nodes for t in node.outputs} | self.inputs
        wanted = dict.fromkeys(names)
        bodies = model.bodies()
        for body in reversed(bodies):  # the main graph first
            if isinstance(body, ir.Function):
                continue
            for constant in body.initializers:
                if constant.name in wanted and constant.name not in main:
                    self.constants.setdefault(constant.name, constant)
        self.computed = [n for n in wanted if n not in self.inputs and n not in self.constants]
        nested = {n for n in self.computed if n not in main and n not in defaults}
        self.has_nested = bool(nested)
        self._dtypes: dict[str, int] = {}
        if nested:
            facts = infer(model)
            for body in bodies:
                for t in (*body.inputs, *(t for node in body.nodes for t in node.outputs)):
                    dtype = facts.dtype(t) if t.name in nested else None
                    if dtype is not None:
                        self._dtypes[t.name] = dtype

    def cut(self, names: Iterable[str], *, flat: bool = False, sizes: bool = False) -> Cut:
        """The model cut down to `names`."""
        source = self.source
        try:
            return cut(
                source.proto, source.folder, source, names, dtypes=self._dtypes, flat=flat, sizes=sizes
            )
        except CannotTap as e:
            raise UserError(f"a tensor cannot be observed: {e}") from e


@dataclass
class _Run:
    """A side while data streams through it."""

    side: _Side
    opened: tuple[Session, Cut] | None
    names: Sequence[str]
    constants: dict[str, list[Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.names:
            if name in self.side.constants:
                self.constants[name] = [_readable(np.asarray(self.side.constants[name].values))]

    def values(self, feeds: Mapping[str, Any]) -> dict[str, list[Array]]:
        """For each name the values of one run: one, or one per iteration of a loop, or none."""
        found: dict[str, list[Array]] = dict(self.constants)
        feeds = self.side.edits.original_feeds(feeds)
        if self.opened is not None:
            session, model = self.opened
            given = {p.name: feeds[p.name] for p in session.inputs}
            given |= {p.name: feeds[p.name] for p in session.overridable if p.name in feeds}
            results = session.run(given)
            for name, taps in model.taps.items():
                found[name] = [v for tap in taps for v in _tapped(name, tap, results)]
        for name in self.names:
            if name not in found:
                found[name] = [_readable(np.asarray(feeds[name]))]
        return found

    def close(self) -> None:
        if self.opened is not None:
            self.opened[0].close()


def _tapped(name: str, tap: Tap, results: Mapping[str, Any]) -> list[Array]:
    value = results[tap.output]
    if not isinstance(value, np.ndarray):
        raise UserError(f"the tensor {name!r} is a sequence or an optional, which cannot be observed")
    return tap.values(_readable(value))


def _readable(value: Array) -> Array:
    """float32 for half precision, which numpy computes with slowly or not at all."""
    if value.dtype == np.float16 or value.dtype.name == "bfloat16":
        return value.astype(np.float32)
    return value


def _is_fixed(runs: Sequence[_Run], request: Request) -> bool:
    names = (request.student, request.teacher)
    return all(n in run.constants for run, wanted in zip(runs, names, strict=False) for n in wanted)


def _together(rows: Sequence[list[Array]]) -> Iterator[list[Array]]:
    """What one update takes: values of the same iteration; a value that has none goes with each of them."""
    counts = {len(r) for r in rows}
    if not rows or 0 in counts:
        return
    most = max(counts)
    if counts - {1, most}:
        raise UserError("tensors of different loops cannot be observed together")
    for i in range(most):
        yield [r[i if len(r) > 1 else 0] for r in rows]


def _names(requests: Iterable[Request]) -> tuple[list[str], list[str]]:
    requests = list(requests)
    student = dict.fromkeys(n for r in requests for n in r.student)
    teacher = dict.fromkeys(n for r in requests for n in r.teacher)
    return list(student), list(teacher)


def _by_side(
    student: Model, teacher: Model | None, requests: Sequence[Request]
) -> Iterator[tuple[Model, list[str]]]:
    mine, others = _names(requests)
    yield student, mine
    if others:
        if teacher is None:
            raise ValueError("tensors of a teacher are wanted, but there is none")
        yield teacher, others


def _prefixed(tell: Tell, prefix: str) -> Tell:
    return lambda detail: tell(prefix + detail)


class DoesNotRun(UserError):
    """A model fails on the data, as many samples at a time as it was given."""


def _does_not_run(e: RuntimeFailure) -> DoesNotRun:
    return DoesNotRun(f"the model does not run on the calibration data: {e.message}")
