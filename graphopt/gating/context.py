"""What a gate measures, and what it measures it with; loaded once, shared by all checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from graphopt import summary
from graphopt.calibration.data import probe_sets
from graphopt.errors import ExternalDataError, GraphOptError
from graphopt.gating.asked import Asked
from graphopt.gating.policy import Policy
from graphopt.gating.reading import PolicyFile
from graphopt.graph.stats import model_stats
from graphopt.model import Model
from graphopt.report.document import FileInfo, ModelStats
from graphopt.report.timed import BenchReport
from graphopt.report.validated import ValidationReport
from graphopt.runtime.inputs import Synthesizer
from graphopt.runtime.probe import Probes, find_probes
from graphopt.runtime.providers import AS_DEPLOYED, ProviderSettings
from graphopt.runtime.session import RuntimeFailure, open_session

Tell = Callable[[str, str], None]


class Unreadable(GraphOptError):
    """The model's external data is refused, so that nothing else of it can be measured."""


@dataclass
class Context:
    """A model, the policy, and what they are measured with.

    Attributes:
        file: the policy.
        path: the model's file.
        loaded: the model; or why its external data is refused.
        reference: what it is compared with, if anything.
        old: an older version of it, if there is one.
        data: the user's inputs, None to synthesize them.
        metric: the user's task metric.
        providers: execution providers, by onnxruntime's names; the first is timed.
        input_shapes: dims by input name.
        settings: what the providers are opened with.
        trust: external data may lie anywhere.
        tell: told what is going on.
        warnings: what people should know besides the checks.
        validation: how the outputs compare with the reference's, once that is known.
        bench: how long runs take, once that is known.
    """

    file: PolicyFile
    path: Path
    loaded: Model | ExternalDataError
    reference: Model | None = None
    old: Model | None = None
    data: Any = None
    metric: Any = None
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    settings: ProviderSettings = AS_DEPLOYED
    trust: bool = False
    tell: Tell = lambda stage, detail: None
    warnings: list[str] = field(default_factory=list)
    validation: ValidationReport | None = None
    bench: BenchReport | None = None

    @property
    def policy(self) -> Policy:
        """What is asked for."""
        return self.file.policy

    @property
    def model(self) -> Model:
        """The model.

        Raises:
            Unreadable: its external data is refused.
        """
        if isinstance(self.loaded, ExternalDataError):
            raise Unreadable(self.loaded.what)
        return self.loaded

    def ask(
        self,
        key: tuple[str, ...],
        what: str,
        limit: str,
        allowed: float | None = None,
        *,
        at: str | None = None,
    ) -> Asked:
        """A limit of the policy.

        Args:
            key: where it stands.
            what, limit, allowed: as in `Asked`.
            at: a part of the name beyond the key, for a limit that is checked several times.
        """
        name = ".".join([*key, *([at] if at else [])])
        return Asked(name, what, limit, allowed, self.file.line(*key))

    @cached_property
    def stats(self) -> ModelStats:
        """What the model consists of."""
        return model_stats(self.model)

    @cached_property
    def info(self) -> FileInfo:
        """The model's files."""
        files = () if isinstance(self.loaded, ExternalDataError) else self.loaded.data_files
        return summary.file_info(self.path, files)

    @cached_property
    def reference_info(self) -> FileInfo | None:
        """The reference's files."""
        return (
            None
            if self.reference is None
            else summary.file_info(self.reference.path, self.reference.data_files)
        )

    @cached_property
    def inputs(self) -> Probes:
        """A few inputs that the reference (the model itself, where there is none) runs on, or why not.

        They come from the data, of which so few are taken that all can be run at once, or are synthesized.

        Raises:
            UserError: the data or the given shapes do not fit.
        """
        subject = self.reference or self.model
        self.tell("reference", "finding inputs")
        skeleton = subject.skeleton()
        maker = Synthesizer(skeleton, self.input_shapes)
        try:
            with open_session(subject.session_source(), arena=False, prepack=False) as session:
                try:
                    given = probe_sets(self.data, maker.structure) if self.data is not None else ()
                    found = find_probes(session, maker, data=given)
                except RuntimeFailure as failure:
                    if failure.kind != "run" or self.data is None:
                        raise
                    # Models that take one sample at a time only may say of their leading dim that it is open.
                    found = find_probes(
                        session, maker, data=probe_sets(self.data, maker.structure, singly=True)
                    )
        except RuntimeFailure as failure:
            verb = "run" if failure.kind == "run" else "load"
            which = "the reference" if self.reference is not None else "the model"
            return Probes(reason=f"{which} does not {verb}: {failure.message}")
        self.warnings += [note for note in found.notes if note not in self.warnings]
        return found
