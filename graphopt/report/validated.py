"""What comparing two models came to: per output, per runtime, and layer by layer.

Plain data under the rules of `document`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from graphopt.report.document import FileInfo, ModelStats, OutputRow, to_json
from graphopt.report.measured import MetricRow

SCHEMA = "graphopt.validate/2"

ValidationVerdict = Literal["proven", "unproven", "failed"]
#: Whose fault a difference is; "" where there is none.
Fault = Literal["", "candidate", "onnxruntime's optimizer", "provider kernel", "float reordering"]
#: How two tensors of different models came to be compared: they have one name; their nodes have, or come from
#: one place; they are computed or read alike; they hold the same.
MatchedBy = Literal["name", "provenance", "structure", "value"]


@dataclass(frozen=True)
class RuntimeRow:
    """How both models compute under one runtime, next to the reference under the judge.

    Attributes:
        runtime: in words, as in "CPU, optimizations on".
        provider: the execution provider.
        optimizations: "off", "on", or a level.
        reference_used: largest share of its allowance by which the reference itself moves here (1 is the
            limit); None where it does not run, or where outputs have no allowance.
        candidate_used: the same of the candidate, compared with the reference under the judge.
        reference_ok: the reference computes here what it does under the judge.
        candidate_ok: the candidate computes here what the reference does under the judge.
        fault: who makes the candidate differ here.
        note: what else there is to know: why one does not run, TF32, ...
    """

    runtime: str
    provider: str
    optimizations: str
    reference_used: float | None = None
    candidate_used: float | None = None
    reference_ok: bool = True
    candidate_ok: bool = True
    fault: Fault = ""
    note: str = ""


@dataclass(frozen=True)
class LayerRow:
    """How far one intermediate tensor of the candidate is from the reference's.

    Attributes:
        tensor: its name in the reference.
        counterpart: its name in the candidate.
        matched_by: why these two are compared.
        node, op: what computes it in the reference.
        depth: length of the longest path to it from an input, in nodes of the reference.
        sqnr_db: signal to noise ratio; infinite for equal values, None where neither makes sense.
        max_abs: largest absolute difference; None where shapes or dtypes differ.
        used: share of the allowance that is used (1 is the limit); None where there is none.
        ok: within the allowance.
        body: the nested body that it is in; "" for the main graph.
    """

    tensor: str
    counterpart: str
    matched_by: MatchedBy
    node: str
    op: str
    depth: int
    sqnr_db: float | None = None
    max_abs: float | None = None
    used: float | None = None
    ok: bool = True
    body: str = ""


@dataclass(frozen=True)
class NearbyNode:
    """A node of the candidate around the place where it diverges.

    Attributes:
        name, op: the node.
        inputs, outputs: names of the tensors that it reads and computes.
        made_by: the pass that made it; "" for nodes of the input model.
        state: whether its outputs agree with the reference's; "unknown" where they have no counterpart.
        guilty: it is where the divergence starts.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    made_by: str = ""
    state: Literal["agrees", "diverges", "unknown"] = "unknown"
    guilty: bool = False


@dataclass(frozen=True)
class Localization:
    """Where the candidate starts to differ from the reference.

    Attributes:
        found: a tensor was found that diverges although everything it is computed from agrees.
        reason: in words, what was found, or why nothing was.
        first: that tensor.
        node, op: the candidate's node that computes it.
        made_by: the pass that made this node; "" for nodes of the input model.
        body: the nested body that it is in; "" for the main graph.
        agreed: the nearest tensors before it that still agree, by their names in the candidate.
        runtime: where it was looked for.
        probe: the inputs that show it.
        matched: tensors that have a counterpart.
        compared: how many of these were compared.
        runs: how often the models were run for that.
        neighbourhood: the nodes around it.
    """

    found: bool
    reason: str = ""
    first: LayerRow | None = None
    node: str = ""
    op: str = ""
    made_by: str = ""
    body: str = ""
    agreed: tuple[str, ...] = ()
    runtime: str = ""
    probe: str = ""
    matched: int = 0
    compared: int = 0
    runs: int = 0
    neighbourhood: tuple[NearbyNode, ...] = ()


@dataclass(frozen=True)
class ValidationReport:
    """Everything that comparing two models has to say.

    Attributes:
        reference, candidate: the files; the same file twice when one model was compared with itself on
            several runtimes.
        verdict: "failed"; "proven"; or "unproven", where no runtime here can tell.
        reason: why it is not proven; "" when it is.
        numerics: what was asked for: EXACT, CLOSE, LOSSY, or TOLERANCE for explicit tolerances.
        fault: whose fault the failure is.
        explanation: the fault in one sentence for people.
        outputs: per output the worst over all probes and runtimes.
        runtimes: one row per runtime.
        mapping: names of the candidate's inputs and outputs -> the reference's, where they differ.
        metrics: task metrics of both.
        layers: intermediate tensors in order of depth, where they were asked for.
        localization: where the difference starts, if that was asked for.
        probes: the inputs, one description each.
        warnings: what is not the candidate's fault, and yet people should know.
        before, after: statistics of both models.
        seconds: wall time by stage.
        versions: graphopt, onnx, onnxruntime, ... -> version.
    """

    reference: FileInfo
    candidate: FileInfo
    verdict: ValidationVerdict
    reason: str = ""
    numerics: str = "CLOSE"
    fault: Fault = ""
    explanation: str = ""
    outputs: tuple[OutputRow, ...] = ()
    runtimes: tuple[RuntimeRow, ...] = ()
    mapping: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[MetricRow, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    localization: Localization | None = None
    probes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    before: ModelStats = field(default_factory=ModelStats)
    after: ModelStats = field(default_factory=ModelStats)
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Nothing wrong was found: proven or unproven."""
        return self.verdict != "failed"

    def exit_code(self, *, strict: bool = False) -> int:
        """The process exit code; with `strict`, also what is unproven is a failure."""
        return 1 if self.verdict == "failed" or (strict and self.verdict != "proven") else 0

    def to_json(self, *, indent: int | None = 2) -> str:
        """This report as JSON, with its schema version first."""
        return to_json(self, SCHEMA, indent=indent)
