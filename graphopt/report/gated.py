"""What a deployment gate came to: one row per limit of its policy.

Plain data under the rules of `document`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from graphopt.report.document import FileInfo, ModelStats
from graphopt.report.timed import BenchReport
from graphopt.report.validated import ValidationReport

SCHEMA = "graphopt.gate/1"


@dataclass(frozen=True)
class Check:
    """One limit of a policy, and what was found.

    Attributes:
        name: where it stands in the policy: "latency.max_ratio", "numerics.outputs.logits.min_sqnr_db".
        what: in words, as in "latency over the reference's".
        value: what was found, in words with its unit.
        limit: what the policy asks for, in words.
        verdict: "passed", "failed", or "error" where it could not be measured, which lets nothing pass.
        measured, allowed: the same as numbers, where they are.
        detail: more of it: the nodes concerned, an interval, why it could not be measured.
        line: of the policy file.
        seconds: wall time.
    """

    name: str
    what: str
    value: str
    limit: str
    verdict: Literal["passed", "failed", "error"]
    measured: float | None = None
    allowed: float | None = None
    detail: str = ""
    line: int | None = None
    seconds: float = 0.0

    @property
    def group(self) -> str:
        """The policy's table that it stands in."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Older:
    """What changed since an older version of the model.

    Attributes:
        file: the older version.
        stats: what it consists of.
        interface: changes of inputs and outputs, one phrase each.
        properties: changes of opsets, IR version, producer, metadata, functions, one phrase each.
        nodes, initializers: how many were "removed", "added", "changed".
        ops: operator -> how many before and after, where that differs.
    """

    file: FileInfo
    stats: ModelStats
    interface: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    nodes: Mapping[str, int] = field(default_factory=dict)
    initializers: Mapping[str, int] = field(default_factory=dict)
    ops: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class GateReport:
    """Everything that `graphopt gate` has to say.

    Attributes:
        model: what is to be deployed.
        policy: the policy file.
        name: what the policy calls itself.
        verdict: "passed" only if every check did.
        checks: in the policy's order.
        reference: what the model was compared with; None: nothing.
        validation: how its outputs compare with the reference's.
        bench: how its latency does.
        changes: what changed since the version given with `--against`, in words.
        against: the same as figures; None: there is no older version.
        before, after: statistics of the reference and of the model.
        warnings: what else people should know.
        seconds: wall time by stage.
        versions: graphopt, onnx, onnxruntime, ... -> version.
    """

    model: FileInfo
    policy: str
    name: str
    verdict: Literal["passed", "failed"]
    checks: tuple[Check, ...] = ()
    reference: FileInfo | None = None
    validation: ValidationReport | None = None
    bench: BenchReport | None = None
    changes: tuple[str, ...] = ()
    against: Older | None = None
    before: ModelStats | None = None
    after: ModelStats | None = None
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def exit_code(self) -> int:
        """0 if the model may be deployed, 1 if not."""
        return 0 if self.verdict == "passed" else 1
