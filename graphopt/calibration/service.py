"""What passes may ask for that needs data, on one dataset: statistics, scores, latency."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import onnx

from graphopt import ir
from graphopt.budget import Score
from graphopt.calibration.collect import Collector, DoesNotRun
from graphopt.calibration.data import Batch, Dataset, Part, Port, batches, narrowed, ports_of
from graphopt.calibration.fingerprint import Fingerprint, session_hash
from graphopt.calibration.histogram import Histogram
from graphopt.calibration.outputs import Lazily, TeacherOutputs, copied, run_batch
from graphopt.calibration.ranges import Choice, RangeBook
from graphopt.calibration.score import Agreement, Outputs, as_metrics, drops
from graphopt.calibration.statistics import MinMax
from graphopt.errors import UserError
from graphopt.graph.shapes import infer
from graphopt.interface import InterfaceEdits
from graphopt.io.session_source import SessionSource
from graphopt.model import Model
from graphopt.pipeline.services import Request
from graphopt.runtime import session as runtime
from graphopt.runtime.latency import compare_latency
from graphopt.runtime.session import CPU, Optimize, RuntimeFailure, Session, open_session

#: Called with pairs of (what went in: inputs, labels and whatever else the data holds; outputs by name).
#: Arrays have one row per sample. Returns a figure, or several by name; higher is better.
Metric = Callable[[Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]], Any]

_T = TypeVar("_T")
_SCORED_SAMPLES: Final = 256
_CACHED_STATISTIC: Final = 1 << 20
_CACHED_STATISTICS: Final = 1 << 26
_TEACHERS: Final = 4
_LEAST_SLICE: Final = 16 << 20
_MOST_SLICE: Final = 256 << 20
_PREPACKED: Final = 256 << 20
_FLOATS: Final = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)
_HOLD_BACK: Final = 8


class CalibrationService:
    """Runs models on a dataset. Answers depend on nothing but the arguments and the data.

    A model that was given as a teacher must not change afterwards.

    Args:
        dataset: the samples; every 8th is held back, for `held_back_score` alone.
        provider: execution provider to run on.
        threads: threads within an operator; None for as many as there are cores.
        max_batch: most samples at a time.
        metric: the user's task metric, see `Metric`.
        wanted: names of figures that the metric has to return.
        slice_bytes: most bytes of observed values at a time; by default half of what the weights take, but
            16 MiB at least and 256 MiB at most.
        tell: called with a stage and a detail as work goes on.
        part: which samples `observe` takes.
        optimize: onnxruntime's optimization level while observing. "all" is faster (2.6 times, measured on a
            residual network), but what it fuses, and so the last bits, depends on what is observed. By
            default it is "none" for statistics that promise the same bits however the data is divided.
        ports: what the data is about: inputs and overridable initializers of the model as it was loaded; by
            default those of the first model that is run.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        provider: str = CPU,
        threads: int | None = None,
        max_batch: int = 32,
        metric: Metric | None = None,
        wanted: Sequence[str] = (),
        slice_bytes: int | None = None,
        tell: Callable[[str, str], None] = lambda stage, detail: None,
        part: Part = "calibration",
        optimize: Optimize | None = None,
        ports: tuple[list[Port], list[Port]] | None = None,
    ) -> None:
        self.dataset, self.provider, self.metric, self.part = dataset, provider, metric, part
        self.threads = threads or 0
        self.max_batch, self.wanted = max_batch, tuple(wanted)
        self._tell = tell
        self._slice_bytes = slice_bytes
        self._optimize = optimize
        self._ports = ports
        self._observed: dict[Hashable, Any] = {}
        self._observed_bytes = 0
        self._teacher_hashes: weakref.WeakKeyDictionary[Model, str] = weakref.WeakKeyDictionary()
        self._latencies: dict[Hashable, float] = {}
        self._scores: dict[Hashable, Score] = {}
        self._teachers: dict[Hashable, TeacherOutputs] = {}
        self._counts: dict[Part, int] = {}

    # -- statistics --------------------------------------------------------------------------------

    def observe(self, student: Model, teacher: Model | None, requests: Sequence[Request]) -> list[Any]:
        """The statistics of `requests`, in their order, over the calibration samples.

        Args:
            student, teacher: whose tensors the requests name: of any body but those of local functions;
                graph inputs, initializers. Where branches of an If share a name, the values of both count.
            requests: what to accumulate. Their own statistics stay empty.

        Raises:
            UserError: a tensor cannot be observed, or a model does not run on the data.
        """
        source = student.session_source()
        watched = any(r.teacher for r in requests)
        prints = (
            session_hash(source),
            self._teacher_hash(teacher) if watched and teacher is not None else "",
        )
        keys = [
            (prints[0], prints[1] if r.teacher else "", r.student, r.teacher, r.statistic.key)
            for r in requests
        ]
        missing = {k: r for k, r in zip(keys, requests, strict=True) if k not in self._observed}
        found: dict[Hashable, Any] = {k: self._observed[k] for k in keys if k in self._observed}
        if missing:
            size = self._slice_bytes or min(max(student.nbytes // 2, _LEAST_SLICE), _MOST_SLICE)
            prepack = student.nbytes < _PREPACKED  # it holds a second copy of the weights
            exact = any(getattr(r.statistic, "exact", False) for r in missing.values())
            level: Optimize = self._optimize or ("none" if exact else "all")
            filled = self._whole_or_single(
                lambda most: Collector(self.provider, self.threads, most, size, level, prepack).collect(
                    student,
                    teacher,
                    list(missing.values()),
                    lambda most: self._counted(student, most),
                    lambda detail: self._tell("calibrate", f"{detail}{self._of_all()} samples"),
                    source,
                )
            )
            found |= dict(zip(missing, filled, strict=True))
            for key, statistic in zip(missing, filled, strict=True):
                self._remember(key, statistic)
        # The caller may change what it gets; what is cached stays. Large statistics are handed out once.
        once = {key for key in missing if key not in self._observed and keys.count(key) == 1}
        return [found[key] if key in once else _twin(found[key]) for key in keys]

    @property
    def observed_samples(self) -> int:
        """How many samples `observe` took; 0 before the first time."""
        return self._counts.get(self.part, 0)

    def _remember(self, key: Hashable, statistic: Any) -> None:
        size = int(getattr(statistic, "nbytes", 0))
        if size >= _CACHED_STATISTIC:
            return
        self._observed[key] = statistic
        self._observed_bytes += size
        while self._observed_bytes > _CACHED_STATISTICS:
            dropped = self._observed.pop(next(iter(self._observed)))
            self._observed_bytes -= int(getattr(dropped, "nbytes", 0))

    def ranges(
        self, model: Model, choice: Choice, *, passes: str = "", bins: int = 2048, per_channel: bool = False
    ) -> RangeBook:
        """The ranges of all float tensors that the data flows through, those of If and Loop bodies included.

        Args:
            model: whose tensors are measured.
            choice: how ranges are chosen.
            passes: the pipeline that made the model, for the file.
            bins: of the histograms.
            per_channel: measure the extremes along axis 1 as well, where there is one.

        Raises:
            UserError: as for `observe`.
        """
        facts = infer(model)
        wanted: dict[str, tuple[str, bool]] = {}
        for body in reversed(model.bodies()):  # the main graph first
            if isinstance(body, ir.Function):
                continue
            inputs = [t for t in body.inputs if body is model.graph and t not in body.defaults]
            computed = (t for node in body.nodes if node.op != "Constant" for t in node.outputs)
            for tensor in (*inputs, *computed):
                dtype = facts.dtype(tensor)
                if dtype in _FLOATS and tensor.name and tensor.name not in wanted:
                    has_channels = per_channel and len(facts.shape(tensor) or ()) >= 2
                    wanted[tensor.name] = (onnx.TensorProto.DataType.Name(dtype).lower(), has_channels)
        requests = [Request(Histogram(bins), (name,)) for name in wanted]
        ranked = [name for name, (_, has_channels) in wanted.items() if has_channels]
        requests += [Request(MinMax(axis=1), (name,)) for name in ranked]
        found = self.observe(model, None, requests)
        channels = dict(zip(ranked, found[len(wanted) :], strict=True))
        observed = {
            name: (dtype, histogram, channels.get(name))
            for (name, (dtype, _)), histogram in zip(wanted.items(), found[: len(wanted)], strict=True)
        }
        return RangeBook.of(Fingerprint.of(model), passes, self._counts[self.part], choice, observed)

    # -- scores ------------------------------------------------------------------------------------

    def score(self, student: Model, teacher: Model, samples: int | None = None) -> Score:
        """How close `student` is to `teacher` on the first calibration samples, as both are run.

        Args:
            student, teacher: models with the same inputs and outputs.
            samples: how many samples at most; 256 by default.
        """
        return self._score(student, teacher, "calibration", samples or _SCORED_SAMPLES)

    def held_back_score(self, student: Model, teacher: Model) -> Score:
        """How close `student` is to `teacher` on the samples that were held back."""
        return self._score(student, teacher, "held-back", None)

    def whole_score(self, student: Model, teacher: Model) -> Score:
        """How close `student` is to `teacher` on all samples, where none serve for calibration."""
        return self._score(student, teacher, "all", None)

    def held_back_words(self) -> str:
        """In words, what `held_back_score` is measured on."""
        n = self._counts.get("held-back")
        if n is None:
            return "held-back samples"
        if n < 2 and self._counts.get("calibration", n) == n:
            return "all samples, too few to hold any back"
        return f"{n} held-back samples"

    def _score(self, student: Model, teacher: Model, part: Part, most: int | None) -> Score:
        source = student.session_source()
        prints = session_hash(source), self._teacher_hash(teacher)
        key, edits = (*prints, part, most), student.interface
        if key not in self._scores:
            # Outputs are kept by batch, and metrics belong to so many samples.
            on = (prints[1], part, most, edits.key)
            self._scores[key] = self._whole_or_single(
                lambda _: self._measure(source, edits, teacher, self._known(on), part, most)
            )
        return self._scores[key]

    def _known(self, on: Hashable) -> TeacherOutputs:
        if on not in self._teachers:
            if len(self._teachers) >= _TEACHERS:
                del self._teachers[next(iter(self._teachers))]
            self._teachers[on] = TeacherOutputs()
        return self._teachers[on]

    def _measure(
        self,
        student: SessionSource,
        edits: InterfaceEdits,
        teacher: Model,
        known: TeacherOutputs,
        part: Part,
        most: int | None,
    ) -> Score:
        agreement = Agreement()
        if self._ports is None:
            self._ports = ports_of(teacher.skeleton())
        since = edits.since(teacher.interface)
        yardstick: runtime.Source = teacher.session_source()
        if since:  # the teacher takes and gives what the student does
            yardstick = runtime.Translated(yardstick, since)

        def of_user(outputs: Outputs) -> Outputs:
            """As the model that was loaded gives them, if that can be had back."""
            found = edits.original_outputs(outputs) if edits else None
            return outputs if found is None else found

        with (
            Lazily(lambda: self._open(yardstick)) as reference,
            Lazily(lambda: self._open(student)) as candidate,
        ):

            def both() -> Iterator[tuple[Mapping[str, Any], Outputs]]:
                for number, (batch, fed) in enumerate(self._scored(edits, part, most)):
                    expected = known.outputs(number, fed, reference)
                    actual = run_batch(candidate(), fed)
                    agreement.update(expected, actual)
                    yield {**batch.feeds, **batch.extra}, of_user(actual)

            def alone() -> Iterator[tuple[Mapping[str, Any], Outputs]]:
                for number, (batch, fed) in enumerate(self._scored(edits, part, most)):
                    # The metric may work in place; what is kept stays.
                    yield (
                        {**batch.feeds, **batch.extra},
                        of_user(copied(known.outputs(number, fed, reference))),
                    )

            pairs = both()
            metrics = as_metrics(self.metric, pairs, self.wanted) if self.metric is not None else {}
            for _ in pairs:  # a metric need not look at all of them
                pass
            if self.metric is not None and known.metrics is None:
                known.metrics = as_metrics(self.metric, alone(), self.wanted)
        return replace(agreement.score(), metrics=metrics, drops=drops(known.metrics or {}, metrics))

    def _scored(self, edits: InterfaceEdits, part: Part, most: int | None) -> Iterator[tuple[Batch, Batch]]:
        """Batches as the user gave them, and as a model takes them whose interface was changed by `edits`."""
        done = 0
        for batch in self._user_batches(edits, part, min(self.max_batch, most or self.max_batch)):
            yield batch, replace(batch, feeds=edits.feeds(batch.feeds))
            done += batch.size
            self._tell("score", f"{done} samples")
            if most is not None and done >= most:
                return
        self._counts[part] = done

    def pairs(self, student: Model, teacher: Model) -> Iterator[tuple[Mapping[str, Any], Outputs]]:
        """Batches of calibration inputs of `student`, and what `teacher` computes of them."""
        with Lazily(lambda: self._open(teacher.session_source())) as reference:
            for batch in self._batches(student, "calibration", self.max_batch):
                yield batch.feeds, run_batch(reference(), batch)

    # -- latency -----------------------------------------------------------------------------------

    def latency(self, student: Model, teacher: Model) -> float:
        """Time of `student` over time of `teacher`, paired and interleaved, one sample and one thread."""
        source = student.session_source()
        key = (session_hash(source), self._teacher_hash(teacher))
        if key not in self._latencies:
            self._tell("latency", "student and teacher in turns")
            feeds = self._first(student)
            since = student.interface.since(teacher.interface)
            try:
                found = compare_latency(
                    teacher.session_source(),
                    source,
                    [since.original_feeds(given) for given in feeds],
                    b_feeds=feeds,
                    provider=self.provider,
                )
            except RuntimeFailure as e:
                raise UserError(f"the model does not run on the data: {e.message}") from e
            self._latencies[key] = found.ratio
        return self._latencies[key]

    def latency_feeds(self) -> list[dict[str, Any]]:
        """Inputs to time models on: the first sample. Empty before any model was run on the data."""
        if self._ports is None:
            return []
        for batch in batches(self.dataset, self._ports[0], 1, "calibration", self._ports[1]):
            return [batch.feeds]
        return []

    def _first(self, model: Model) -> list[dict[str, Any]]:
        for batch in self._batches(model, "calibration", 1):
            return [batch.feeds]
        raise UserError("the data holds no samples", where=self.dataset.name)

    # -- running -----------------------------------------------------------------------------------

    def _whole_or_single(self, attempt: Callable[[int], _T]) -> _T:
        """`attempt` with as many samples at a time as may be; one by one if the model takes no more.

        Such models declare their leading dim open, but have a size of 1 written into a Reshape, say.
        """
        try:
            return attempt(self.max_batch)
        except DoesNotRun:
            if self.max_batch == 1:
                raise
            self.max_batch = 1
            self._teachers.clear()  # they know their outputs by batch
            return attempt(1)

    def _counted(self, model: Model, most: int) -> Iterator[Batch]:
        done = 0
        for batch in self._batches(model, self.part, most):
            yield batch
            done += batch.size
        self._counts[self.part] = done

    def _batches(self, model: Model, part: Part, most: int) -> Iterator[Batch]:
        """The data as `model` takes it."""
        if self._ports is None:
            self._ports = ports_of(model.skeleton())
        edits = model.interface
        for batch in self._user_batches(edits, part, most):
            yield replace(batch, feeds=edits.feeds(batch.feeds)) if edits else batch

    def _user_batches(self, edits: InterfaceEdits, part: Part, most: int) -> Iterator[Batch]:
        """The data as the model took it that was loaded, as many samples at a time as since `edits`."""
        assert self._ports is not None
        return batches(self.dataset, narrowed(self._ports[0], edits), most, part, self._ports[1])

    def _open(self, source: runtime.Source) -> Session:
        try:
            return open_session(source, optimize="all", threads=self.threads, provider=self.provider)
        except RuntimeFailure as e:
            raise UserError(f"the model does not load: {e.message}") from e

    def _teacher_hash(self, teacher: Model) -> str:
        if teacher not in self._teacher_hashes:
            self._teacher_hashes[teacher] = session_hash(teacher.session_source())
        return self._teacher_hashes[teacher]

    def _of_all(self) -> str:
        size = self.dataset.size
        if size is None:
            return ""
        held = size // _HOLD_BACK if self.part == "calibration" else 0
        return f" of {size - held}"


def _twin(statistic: Any) -> Any:
    """A copy of a statistic."""
    copy = statistic.fresh()
    copy.merge(statistic)
    return copy
