"""The original's side of a proof: what it computes on the probes, and how noisy that is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import onnx

from graphopt.calibration.data import DataSpec, probe_sets
from graphopt.errors import UserError
from graphopt.interface import UNCHANGED, InterfaceEdits, edits_of
from graphopt.runtime.inputs import ProbeSet, Synthesizer
from graphopt.runtime.probe import Probes, find_probes, randomness
from graphopt.runtime.providers import ProviderSettings, current
from graphopt.runtime.session import (
    CPU,
    RuntimeFailure,
    Session,
    Source,
    Translated,
    open_session,
    resolve_provider,
)
from graphopt.runtime.structure import Structure
from graphopt.runtime.values import Array, Value
from graphopt.validation.compare import (
    Pointed,
)
from graphopt.validation.indices import index_outputs, pointed_since, pointed_values, tap, to_tap
from graphopt.validation.interface import Interface
from graphopt.validation.tolerance import FloorRuns, Floors, noise_floors

# Above this many bytes of weights, or tensors, the floor is measured with one session instead of three.
_LEAN_BYTES = 64 << 20
_LEAN_TENSORS = 5000
# Above this many bytes of weights, kernels do not get to repack (copy) them.
_PREPACK_BYTES = 256 << 20


class Subject(Protocol):
    """What can be proven: `graphopt.model.Model` is one, and `ProtoSubject` wraps a ModelProto."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        ...

    def skeleton(self) -> onnx.ModelProto:
        """The model without the data of its large tensors."""
        ...

    def session_source(self) -> Source:
        """What a session is opened from."""
        ...


@dataclass(frozen=True)
class ProtoSubject:
    """A ModelProto (below 2 GiB) as a subject."""

    model: onnx.ModelProto

    @property
    def nbytes(self) -> int:
        """Bytes of the message."""
        return int(self.model.ByteSize())

    def skeleton(self) -> onnx.ModelProto:
        """The message itself."""
        return self.model

    def session_source(self) -> onnx.ModelProto:
        """The message itself."""
        return self.model


@dataclass(frozen=True)
class Options:
    """How to prove.

    Attributes:
        providers: where the candidate must hold besides the CPU (which is always there).
        probe_sets: how many sets of inputs are synthesized.
        input_shapes: dims by input name, from the user.
        seed: for the synthesized values.
        floor_runs: "full", "lean", or "auto": lean for large models.
        same_dims: also the dims of inputs and outputs must be unchanged.
        default_run: compare under onnxruntime's default optimizations as well.
        more_shapes: further dims by input name: inputs are synthesized for each of these too.
        settings: what other providers than the CPU are opened with.
    """

    providers: tuple[str, ...] = (CPU,)
    probe_sets: int = 2
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seed: int = 0
    floor_runs: FloorRuns | Literal["auto"] = "auto"
    same_dims: bool = True
    default_run: bool = True
    more_shapes: tuple[Mapping[str, Sequence[int]], ...] = ()
    settings: ProviderSettings = field(default_factory=current)


DEFAULTS = Options()


class Reference:
    """The original's side of a proof, computed once: probes, outputs, noise floors.

    Holds arrays only; every session is closed again, so that one is open at a time.

    Args:
        model: the original.
        data: the user's inputs; None to synthesize them.
        options: how to prove.
        probes: inputs of another reference, to use the same ones.
        edits: how the interface of what is compared was changed: inputs and outputs here are those of
            the changed model. `data`, `probes` and `options` are about the model itself.

    Attributes:
        structure: the original's graph.
        interface: its inputs and outputs.
        reason: why nothing can be proven about this model; "" when it can.
        probes: the inputs, and the outputs under the judge.
        floors: the noise floors on the CPU.
        warnings: about the original itself.

    Raises:
        ProviderError: onnxruntime, or a provider that was asked for, is not there.
        UserError: the user's data or shapes do not fit the model, or it does not run on them.
    """

    def __init__(
        self,
        model: Subject | onnx.ModelProto,
        data: DataSpec | None = None,
        options: Options = DEFAULTS,
        probes: Sequence[ProbeSet] | None = None,
        edits: InterfaceEdits = UNCHANGED,
    ) -> None:
        self.subject: Subject = ProtoSubject(model) if isinstance(model, onnx.ModelProto) else model
        self.options, self.edits = options, edits
        #: All edits since the model was loaded: those that the subject comes with, and `edits`.
        self.all_edits = edits_of(self.subject).plus(*edits)
        if edits:
            options = replace(options, input_shapes={**options.input_shapes, **edits.fixed()})
        self.providers = [p for p in map(resolve_provider, options.providers) if p != CPU]
        skeleton = self.subject.skeleton()
        maker = Synthesizer(skeleton, options.input_shapes, options.seed)
        self.structure: Structure = maker.structure
        self.interface = Interface.of(skeleton).after(edits)
        self.reason = randomness(self.structure)
        self.warnings: list[str] = []
        self.probes = Probes()
        self.original_sets: tuple[ProbeSet, ...] = ()
        self.floors = Floors(())
        self.outputs: list[dict[str, Value]] = []
        self._pointed: list[dict[str, Pointed]] = []
        self._elsewhere: dict[str, tuple[list[dict[str, Value]], Floors] | str] = {}
        self._optimized: list[dict[str, Value]] | str | None = None
        self._through: dict[Hashable, Reference] = {}
        given = self._given(data) if data is not None else probes or ()
        self._has_data = bool(given)
        more = [Synthesizer(skeleton, shapes, options.seed) for shapes in options.more_shapes]
        if not self.reason:
            self._run([maker, *more], given, data)

    def through(self, edits: InterfaceEdits) -> Reference:
        """The same model on the same inputs, as a model whose interface was changed by `edits` sees them."""
        if edits.key not in self._through:
            given = self.original_sets if self._has_data else None
            edits_so_far = self.edits.plus(*edits)
            self._through[edits.key] = Reference(self.subject, None, self.options, given, edits_so_far)
        return self._through[edits.key]

    def _given(self, data: DataSpec) -> list[ProbeSet]:
        return probe_sets(data, self.structure)

    def _run(self, makers: Sequence[Synthesizer], given: Sequence[ProbeSet], data: DataSpec | None) -> None:
        indices = index_outputs(self.structure)
        source: Source = self.subject.session_source()
        names = to_tap(indices, self.structure)
        if names:
            source = tap(source, names)
        raws: list[dict[str, Value]] = []
        try:
            with open_session(source, optimize="none", prepack=False, arena=False) as session:
                try:
                    self.probes = _all_probes(session, makers, self.options.probe_sets, given)
                except RuntimeFailure as e:
                    if e.kind != "run" or data is None:
                        raise
                    # Models that take one sample at a time only may say of their leading dim that it is open.
                    singles = probe_sets(data, self.structure, singly=True)
                    self.probes = find_probes(session, makers[0], data=singles)
                self.original_sets, raws = self.probes.sets, list(self.probes.outputs)
                if self.edits:
                    raws = self._translate(session)
        except RuntimeFailure as e:
            if e.kind == "run":
                raise UserError(
                    f"the original does not run on the given inputs: {e.message}",
                    fix="check their shapes and values against the model's inputs",
                ) from e
            lacking = (
                "onnxruntime has no kernel for one of its operators"
                if e.kind == "no-kernel"
                else "onnxruntime cannot load the original"
            )
            self.reason = f"{lacking}: {e.message}"
            return
        self.reason = self.probes.reason
        self.warnings.extend(self.probes.notes)
        if self.reason:
            return
        if self.edits:
            source = Translated(source, self.edits)
        self.floors = noise_floors(
            source, self.probes, self.structure, runs=self._floor_runs(), prepack=prepacks(self.subject)
        )
        wanted = [v.name for v in self.structure.outputs]
        self.outputs = [{n: o[n] for n in wanted} for o in self.probes.outputs]
        changed = {e.name for e in self.edits if e.kind == "output" and e.adapter is not None}
        indices = [i for i in indices if i.output not in changed]
        for probe, raw, tolerances in zip(self.original_sets, raws, self.floors.tolerances, strict=True):
            pointed = pointed_values(indices, probe.feeds, raw, tolerances)
            self._pointed.append(pointed | pointed_since(self.edits, raw))
        if self.floors.default_fails:
            why = self.floors.default_fails
            self.warnings.append(f"the original does not run under onnxruntime's defaults: {why}")
        for path, why in self.floors.own.items():
            if path.partition("[")[0] in wanted:
                self.warnings.append(
                    f"onnxruntime's own optimizer changes output {path!r} of the original: {why}"
                )

    def _translate(self, session: Session) -> list[dict[str, Value]]:
        """Make `probes` those of the changed model; returns the outputs of the model itself."""
        made_up = not self._has_data
        sets = [replace(s, feeds=self.edits.feeds(s.feeds, synthesized=made_up)) for s in self.probes.sets]
        raws = [session.run(self.edits.original_feeds(s.feeds)) for s in sets]
        self.original_sets = tuple(replace(s, feeds=self.edits.original_feeds(s.feeds)) for s in sets)
        outputs = tuple(self.edits.outputs(raw) for raw in raws)
        self.probes = replace(self.probes, sets=tuple(sets), outputs=outputs)
        return raws

    def _floor_runs(self) -> FloorRuns:
        if self.options.floor_runs != "auto":
            return self.options.floor_runs
        large = self.subject.nbytes > _LEAN_BYTES or len(self.structure.producers) > _LEAN_TENSORS
        return "lean" if large else "full"

    def pointed(self, probe: int) -> dict[str, Pointed]:
        """What the index outputs point into, on one probe."""
        return self._pointed[probe]

    def optimized(self) -> list[dict[str, Value]] | str:
        """The original's outputs with onnxruntime's optimizations, or why it does not run with them."""
        if self._optimized is None:
            source: Source = self.subject.session_source()
            if self.edits:
                source = Translated(source, self.edits)
            prepack = prepacks(self.subject)
            try:
                with open_session(source, optimize="all", prepack=prepack, arena=False) as session:
                    self._optimized = [session.run(s.feeds) for s in self.probes.sets]
            except RuntimeFailure as e:
                self._optimized = e.message
        return self._optimized

    def on(self, provider: str) -> tuple[list[dict[str, Value]], Floors] | str:
        """The original's outputs and floors on another provider, or why it does not run there."""
        if provider not in self._elsewhere:
            self._elsewhere[provider] = self._run_on(provider)
        return self._elsewhere[provider]

    def _run_on(self, provider: str) -> tuple[list[dict[str, Value]], Floors] | str:
        source: Source = self.subject.session_source()
        if self.edits:
            source = Translated(source, self.edits)
        try:
            settings = self.options.settings
            with open_session(
                source, optimize="all", provider=provider, arena=False, settings=settings
            ) as session:
                outputs = [session.run(s.feeds) for s in self.probes.sets]
        except RuntimeFailure as e:
            return e.message
        there = replace(self.probes, outputs=tuple(self.outputs))
        floors = noise_floors(source, there, self.structure, provider=provider, settings=settings)
        for path, why in floors.own.items():
            self.warnings.append(f"{provider} changes output {path!r} of the original: {why}")
        return outputs, floors

    def feeds(self, probe: int) -> Mapping[str, Value]:
        """The inputs of one probe set (for a reproducer)."""
        return self.probes.sets[probe].feeds


def _all_probes(
    session: Session, makers: Sequence[Synthesizer], count: int, given: Sequence[ProbeSet]
) -> Probes:
    """The user's inputs; without them, inputs of all sizes that were asked for, or of none."""
    found = [find_probes(session, maker, count=count, data=given) for maker in makers[: 1 if given else None]]
    for probes in found:
        if probes.reason:
            return probes
    return Probes(
        tuple(s for p in found for s in p.sets),
        tuple(o for p in found for o in p.outputs),
        tuple(dict.fromkeys(n for p in found for n in p.notes)),
    )


def prepacks(subject: Subject) -> bool:
    """The model is small enough that copies of its weights do not matter."""
    return subject.nbytes <= _PREPACK_BYTES


def feeds_as_arrays(feeds: Mapping[str, Value]) -> dict[str, Array]:
    """The feeds that are arrays, as .npz files can hold them."""
    return {k: v for k, v in feeds.items() if isinstance(v, np.ndarray)}
