"""What searching for a fault came to: the guilty rewrite of a pipeline, the smallest model that shows one.

Plain data under the rules of `document`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from graphopt.report.document import Culprit, FileInfo, ModelStats

BISECT_SCHEMA = "graphopt.bisect/1"
REDUCE_SCHEMA = "graphopt.reduce/1"


@dataclass(frozen=True)
class BisectReport:
    """What `graphopt bisect` has to say.

    Attributes:
        model: the model.
        pipeline: pipeline string that reproduces the run.
        check: the command that judged; "": the comparison with the original did.
        verdict: "found"; "right", where nothing is wrong with the result; "undecided", where the check could
            not tell; or "not separable", where it is wrong whatever is left out.
        reason: one sentence for people.
        culprits: the guilty rewrites.
        rewrites: how many are left without them.
        rest: verdict on the result without them, in words.
        checks: how often the command was run.
        seconds: wall time.
        versions: graphopt, onnx, onnxruntime, ... -> version.
    """

    model: FileInfo
    pipeline: str
    check: str
    verdict: Literal["found", "right", "undecided", "not separable"]
    reason: str = ""
    culprits: tuple[Culprit, ...] = ()
    rewrites: int = 0
    rest: str = ""
    checks: int = 0
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    def exit_code(self) -> int:
        """0 if nothing is wrong with the result, 1 if something is."""
        return 1 if self.verdict in ("found", "not separable") else 0


@dataclass(frozen=True)
class Reduction:
    """One thing that was tried, and kept, to make a failing model smaller.

    Attributes:
        what: in words.
        nodes: how many are left, nested bodies included.
        checks: how often the check had been run by then.
    """

    what: str
    nodes: int
    checks: int


@dataclass(frozen=True)
class ReduceReport:
    """What `graphopt reduce` has to say.

    Attributes:
        model: the model that fails its check.
        output: the smallest model found that fails in the same way.
        inputs: an .npz file of inputs for it; "" if none was written.
        check: the command.
        failure: how it fails, in words.
        before, after: statistics of both models.
        steps: what made it smaller.
        minimal: nothing more can be left out; False where the search was stopped before.
        stopped: why it was.
        text: the model found, as text, if it is small.
        checks: how often the command was run.
        seconds: wall time.
    """

    model: FileInfo
    output: FileInfo | None
    inputs: str
    check: str
    failure: str
    before: ModelStats
    after: ModelStats
    steps: tuple[Reduction, ...] = ()
    minimal: bool = True
    stopped: str = ""
    text: str = ""
    checks: int = 0
    seconds: float = 0.0
